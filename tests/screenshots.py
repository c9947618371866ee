"""Draws every page of the dashboard to docs/images, light and dark, wide and narrow: `make screenshots`.

A real server on a folder of its own tunes the network of `tuner demo` first, which takes about two minutes. The names of the pictures are
always the same; what they show is what this machine measured."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import get_args

from chromium import NARROW, WIDE, Scheme, launched, missing, watched
from dashboard_jobs import addresses, failed, long_job, submitted
from PIL import Image
from playwright.sync_api import Browser
from running_server import RunningServer

from tuner.demo import prepare_demo
from tuner.job import load_job

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTHS = {"wide": WIDE, "narrow": NARROW}
OVERVIEW = 1230
"""Pixels from the top of the job's page that the README shows."""
RUNNING_TRIALS = 4
"""How many trials of the running job are there before it is drawn."""


def main() -> None:
    if reason := missing():
        sys.exit(f"no pictures: {reason}")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="accutune-screenshots-") as made, furnished(Path(made)) as (url, pages), launched() as browser:
        for (name, path), scheme, width in product(pages.items(), get_args(Scheme), WIDTHS):
            picture = IMAGES / f"{name}-{scheme}-{width}.png"
            draw(browser, url, path, picture, scheme, WIDTHS[width])
            if (name, scheme, width) == ("job", "light", "wide"):
                Image.open(picture).crop((0, 0, WIDE, OVERVIEW)).save(IMAGES / "overview.png", optimize=True)
            say(f"{picture.relative_to(Path.cwd())}: {picture.stat().st_size / 1e3:.0f} kB")


@contextmanager
def furnished(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a server with jobs in every state, and the address of each of its pages by name."""
    job = load_job(prepare_demo(folder / "demo", say))
    with RunningServer(folder) as server:
        say("A server tunes it.")
        digits = submitted(server, job)
        server.wait(digits, "succeeded", seconds=300)
        lost, _ = failed(server, folder)
        running = submitted(server, long_job(folder / "running", name="under way"))
        submitted(server, long_job(folder / "waiting", name="waiting"))
        while server.get(f"/jobs/{running}")["progress"]["trials"] < RUNNING_TRIALS:
            time.sleep(0.5)
        pages = addresses(server, digits) | {"running": f"/jobs/{running}", "failed": f"/jobs/{lost}"}
        yield server.url, pages


def draw(browser: Browser, url: str, path: str, picture: Path, scheme: Scheme, width: int) -> None:
    with watched(browser, url, scheme, width) as at:
        at.go(path)
        at.drawn()
        taken = Image.open(BytesIO(at.page.screenshot(full_page=True))).convert("RGB")
        # 256 colours are all that a page needs, and make a file of a third of the size.
        taken.quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
