"""Every page of the dashboard, light and dark: nothing goes wrong on it, it asks nobody else, everybody can read it, it fits a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chromium import NARROW, WIDE, Scheme, Site, axe
from dashboard_jobs import addresses, failed, finished, long_job, submitted
from playwright.sync_api import Browser
from running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VIEWS: tuple[tuple[Scheme, int], ...] = (("light", WIDE), ("dark", NARROW))
PAGES = ("jobs", "new", "job", "trial", "compare", "layers", "system", "signin", "running", "failed", "cancelled")


@dataclass(frozen=True)
class Pages(Site):
    """A server without keys. pages: the address of each."""

    pages: dict[str, str]


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder: Path = tmp_path_factory.mktemp("dashboard")
    with RunningServer(folder) as server:
        pages = addresses(server, finished(server, folder))
        lost, cancelled = failed(server, folder)
        running = submitted(server, long_job(folder / "running", name="under way"))
        server.wait(running, "running")
        pages |= {"failed": f"/jobs/{lost}", "cancelled": f"/jobs/{cancelled}", "running": f"/jobs/{running}"}
        yield Pages(browser, server.url, pages)


def test_every_page_is_tried(site: Pages) -> None:
    assert sorted(site.pages) == sorted(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_in_order(site: Pages, name: str) -> None:
    """Also when the system turns dark, or the window narrow, while it is open."""
    with site.open("light") as at:
        assert at.go(site.pages[name]).status == 200
        at.drawn()
        for scheme, width in VIEWS:
            at.page.emulate_media(color_scheme=scheme)
            assert at.sideways(width) == 0, (scheme, width)
            assert "\n".join(axe(at.page)) == "", (scheme, width)


def test_a_page_is_in_order_on_a_phone(site: Pages) -> None:
    with site.open(width=NARROW) as at:
        at.go(site.pages["job"])
        at.drawn()
        assert "\n".join(axe(at.page)) == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_not_there_is_a_page_too(site: Pages, scheme: Scheme) -> None:
    with site.open(scheme) as at:
        with at.expecting("status of 404"):
            assert at.go("/jobs/20260101-000000-00000000", ready=False).status == 404
        assert at.page.get_by_role("link", name="See all jobs").is_visible()
        assert "\n".join(axe(at.page)) == ""
        assert at.sideways(NARROW) == 0


def test_the_list_leads_to_the_verdict_and_its_model(site: Pages) -> None:
    with site.open() as at:
        at.go("/")
        at.page.get_by_text("quick").first.click()
        at.page.get_by_text(re.compile("target met", re.IGNORECASE)).first.wait_for()
        assert at.page.url == f"{site.url}{site.pages['job']}"
        with at.page.expect_download() as download:
            at.page.get_by_role("link", name=re.compile("download", re.IGNORECASE)).first.click()
        assert download.value.suggested_filename.endswith(".onnx")


def test_pages_have_titles_and_one_heading_of_their_own(site: Pages) -> None:
    titles = {}
    with site.open() as at:
        for name in PAGES:
            at.go(site.pages[name])
            titles[name] = at.page.title()
            assert at.page.locator("h1:visible").count() == 1, name
    assert len(set(titles.values())) == len(titles)


def test_the_policy_refuses_scripts_within_the_page(site: Pages) -> None:
    """What keeps a name that holds markup from doing anything, if it ever got into a page."""
    with site.open() as at:
        policy = at.go("/").headers["content-security-policy"]
        assert "script-src 'self';" in policy and "default-src 'none'" in policy
        with at.expecting("Content Security Policy"):
            at.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.caught = 1'}))")
            assert at.page.evaluate("window.caught") is None
