"""A job of 10,000 trials in the browser: its page shows something at once, and never draws all of them.

How long the first paint took is printed: `.venv/bin/python -m pytest tests/e2e/test_dashboard_many_trials.py -s`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chromium import NARROW, WIDE, Site, axe
from dashboard_jobs import TRIALS, finished, grow
from playwright.sync_api import Browser
from running_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
POINTS = "[...document.querySelectorAll('.js-plotly-plot')].flatMap((chart) => chart.data.map((trace) => (trace.x ?? []).length))"
MOST_DRAWN = 1100
"""What `/trials/sample` answers at most, and marks like those for the original and the best."""
MOST_ROWS = 200


@dataclass(frozen=True)
class Large(Site):
    """A server with one job."""

    job: str


@pytest.fixture(scope="module")
def large(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Large]:
    folder: Path = tmp_path_factory.mktemp("large")
    with RunningServer(folder) as server:
        job_id = finished(server, folder)
        grow(server, job_id)
        assert server.get(f"/jobs/{job_id}")["progress"]["trials"] == TRIALS
        yield Large(browser, server.url, job_id)


def test_its_page_shows_something_and_draws_a_part(large: Large, record_property: Callable[[str, object], None]) -> None:
    with large.open() as at:
        at.go(f"/jobs/{large.job}")
        at.page.wait_for_selector(".js-plotly-plot", timeout=60_000)
        at.drawn()
        painted = float(at.page.evaluate(PAINT))
        record_property("first contentful paint, ms", painted)
        print(f"first contentful paint of a job with {TRIALS:,} trials after {painted:.0f} ms")  # noqa: T201
        assert max(at.page.evaluate(POINTS)) <= MOST_DRAWN
        assert 0 < at.page.locator("tbody tr").count() <= MOST_ROWS
        assert "\n".join(axe(at.page)) == ""
        assert {width: at.sideways(width) for width in (NARROW, WIDE)} == {NARROW: 0, WIDE: 0}


def test_the_list_of_jobs_counts_them(large: Large) -> None:
    with large.open() as at:
        at.go("/")
        assert at.page.get_by_text("quick").first.is_visible()
