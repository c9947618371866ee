"""A real browser for tests of the dashboard: Chromium, watched for errors and for requests to strangers, and what axe-core finds.

The fixtures last for one file of tests: while Playwright runs, nothing else in its thread can have an event loop."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response

Scheme = Literal["light", "dark"]

BINARY = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
AXE = Path(__file__).parent / "browser" / "node_modules" / "axe-core" / "axe.min.js"
WIDE, NARROW = 1440, 360
HEIGHT = 900
READY_MS = 60_000
SETTLE_MS = 1000
OPTIONS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
GRAVE = ("serious", "critical")


def missing() -> str | None:
    """Why nothing can be tried in a browser here, and the way out; None where it can."""
    if not os.access(BINARY, os.X_OK):
        return f"there is no browser at {BINARY}. Install Debian's package chromium, or name another's binary in the variable CHROMIUM."
    if not AXE.is_file():
        return "axe-core is not installed. `make test` does it where npm is there; by hand: cd tests/browser && npm ci"
    return None


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BINARY, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    with launched() as browser:
        yield browser


class Watched:
    """A page of the server at `home`, and everything that went wrong in its browser context."""

    def __init__(self, context: BrowserContext, home: str) -> None:
        self.page: Page = context.new_page()
        self.home = home
        self.wrong: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self._note(f"uncaught: {error.error}"))
        context.on("request", self._request)

    def go(self, path: str, ready: bool = True) -> Response:
        """Open a page of the server, up to its first data."""
        response = self.page.goto(f"{self.home}{path}")
        assert response is not None, path
        if ready:
            self.ready()
        return response

    def ready(self) -> None:
        """Until the page has drawn its first data."""
        self.page.wait_for_selector("body[data-ready]", state="attached", timeout=READY_MS)

    def drawn(self, seconds: float = 20.0) -> None:
        """Until no more charts come: none is being drawn and nothing is being fetched for one."""
        count = -1
        deadline = time.monotonic() + seconds
        while count != (now := self.page.locator(".js-plotly-plot").count()) and time.monotonic() < deadline:
            count = now
            self.page.wait_for_timeout(SETTLE_MS)

    @contextmanager
    def expecting(self, pattern: str) -> Iterator[None]:
        """Errors that match are meant to happen meanwhile: a refused key, a server that is down."""
        self._expected.append(re.compile(pattern))
        try:
            yield
            self.page.wait_for_timeout(50)  # What was reported until now is heard.
        finally:
            self._expected.pop()

    def sideways(self, width: int) -> int:
        """By how many pixels the page is wider than a window of `width`, once charts have followed it."""
        self.page.set_viewport_size({"width": width, "height": HEIGHT})
        self.page.wait_for_timeout(200)
        for _ in range(20):
            if (over := int(self.page.evaluate(OVERFLOW))) <= 0:
                return 0
            self.page.wait_for_timeout(200)
        return over

    def check(self) -> None:
        """Nothing went wrong."""
        self.page.wait_for_timeout(50)
        assert not self.wrong, "\n".join(self.wrong)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._note(f"console: {message.text} ({message.location.get('url', '')})")

    def _request(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")) and urlsplit(request.url).netloc != urlsplit(self.home).netloc:
            self._note(f"request to a stranger: {request.url}")

    def _note(self, text: str) -> None:
        if not any(pattern.search(text) for pattern in self._expected):
            self.wrong.append(text)


@contextmanager
def watched(browser: Browser, home: str, scheme: Scheme = "light", width: int = WIDE) -> Iterator[Watched]:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": HEIGHT}, reduced_motion="reduce")
    try:
        page = Watched(context, home)
        yield page
        page.check()
    finally:
        context.close()


@dataclass(frozen=True)
class Site:
    """A server to look at."""

    browser: Browser
    url: str

    def open(self, scheme: Scheme = "light", width: int = WIDE) -> AbstractContextManager[Watched]:
        """A page in a browser context of its own, without cookies; at the end, nothing may have gone wrong on it."""
        return watched(self.browser, self.url, scheme, width)


def sign_in(context: BrowserContext, home: str, key: str) -> None:
    """What the sign-in page does, without the page."""
    answer = context.request.post(f"{home}/api/v1/session", data={"key": key})
    assert answer.status == 201, answer.text()


def axe(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical, colours' contrast among it: one line for each rule that is broken."""
    session = page.context.new_cdp_session(page)
    # Not as a script of the page, which its policy refuses.
    session.send("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    session.detach()
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations'], preload: false})).violations")
    return [_told(violation) for violation in found if violation["impact"] in GRAVE]


def _told(violation: dict[str, Any]) -> str:
    nodes = "\n".join(f"    {' '.join(map(str, node['target']))}: {_why(node)}" for node in violation["nodes"])
    return f"{violation['impact']} {violation['id']}: {violation['help']}\n{nodes}"


def _why(node: dict[str, Any]) -> str:
    return "; ".join(check["message"] for kind in ("any", "all", "none") for check in node[kind])
