"""Signing in to a server with keys: what is refused and how, that the key is kept nowhere, and where one ends up."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from chromium import NARROW, Site, Watched, axe, sign_in
from playwright.sync_api import Browser, expect
from running_server import RunningServer

STORED = """() => [document.cookie, ...Object.values(localStorage), ...Object.values(sessionStorage)].join("")"""


@dataclass(frozen=True)
class Guarded(Site):
    """A server that asks for keys. keys: by role."""

    keys: dict[str, str]


@pytest.fixture(scope="module")
def guarded(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    keys = {role: new_key(folder, role) for role in ("viewer", "submitter", "admin")}
    with RunningServer(folder) as server:
        yield Guarded(browser, server.url, keys)


def new_key(folder: Path, role: str) -> str:
    tuner = str(Path(sys.executable).with_name("tuner"))
    command = [tuner, "keys", "create", f"the {role}", "--role", role, "--data-dir", str(folder / "data")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def show_key(at: Watched, key: str) -> None:
    at.page.get_by_label("API key").fill(key)
    at.page.get_by_role("button", name="Sign in").click()


def test_who_is_not_known_signs_in_and_comes_back(guarded: Guarded) -> None:
    with guarded.open() as at:
        at.go("/system")
        assert re.fullmatch(rf"{guarded.url}/signin\?next=(/|%2F)system", at.page.url)
        show_key(at, guarded.keys["submitter"])
        at.page.wait_for_url(f"{guarded.url}/system")
        at.ready()
        expect(at.page.get_by_text("the submitter (submitter)")).to_be_visible()
        assert guarded.keys["submitter"] not in at.page.evaluate(STORED)
        (cookie,) = at.page.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("accutune_session", True, "Strict")
        assert guarded.keys["submitter"].rpartition("_")[2] not in cookie["value"]


def test_a_wrong_key_is_told_and_can_be_mended(guarded: Guarded) -> None:
    with guarded.open() as at:
        at.go("/signin")
        for wrong in ("acc_key0_nothing", "no key at all"):
            with at.expecting("status of 401|status of 422"):
                with at.page.expect_response("**/session"):
                    show_key(at, wrong)
                expect(at.page.get_by_role("alert").filter(has_text="key")).to_be_visible()
                expect(at.page.get_by_label("API key")).to_be_focused()
        assert "\n".join(axe(at.page)) == ""
        assert at.sideways(NARROW) == 0
        assert at.page.context.cookies() == []
        show_key(at, guarded.keys["viewer"])
        at.page.wait_for_url(f"{guarded.url}/")
        at.ready()


def test_signing_out_ends_the_session_on_the_server_too(guarded: Guarded) -> None:
    with guarded.open() as at:
        sign_in(at.page.context, guarded.url, guarded.keys["admin"])
        (cookie,) = at.page.context.cookies()
        kept = {cookie["name"]: cookie["value"]}
        assert httpx.get(f"{guarded.url}/api/v1/jobs", cookies=kept).status_code == 200
        at.go("/")
        at.page.get_by_role("button", name="Sign out").click()
        at.page.wait_for_url(re.compile("/signin"))
        assert at.page.context.cookies() == []
        assert httpx.get(f"{guarded.url}/api/v1/jobs", cookies=kept).status_code == 401
        at.go("/new")
        assert "/signin" in at.page.url


@pytest.mark.parametrize("next", ["https://example.org/", "//example.org/", "/\\example.org", "javascript:alert(1)", "signin", ""])
def test_nobody_is_led_to_another_place(guarded: Guarded, next: str) -> None:
    with guarded.open() as at:
        at.go(f"/signin?next={quote(next, safe='')}")
        show_key(at, guarded.keys["viewer"])
        at.page.wait_for_url(f"{guarded.url}/")


def test_a_session_that_is_over_leads_to_the_sign_in_page(guarded: Guarded) -> None:
    with guarded.open() as at:
        sign_in(at.page.context, guarded.url, guarded.keys["submitter"])
        at.go("/")
        at.page.context.clear_cookies()
        with at.expecting("status of 401"):
            at.page.get_by_label("Search").fill("resnet")
            at.page.wait_for_url(re.compile("/signin"), timeout=60_000)


def test_a_viewer_is_offered_nothing_that_is_refused(guarded: Guarded) -> None:
    with guarded.open() as at:
        sign_in(at.page.context, guarded.url, guarded.keys["viewer"])
        for path in ("/", "/system"):
            at.go(path)
            assert at.page.get_by_role("link", name="New job").count() == 0
            assert "\n".join(axe(at.page)) == ""
