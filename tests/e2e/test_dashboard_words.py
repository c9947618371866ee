"""The numbers of the pages read like those of the report and the command line: format.js against tuner/report/wording.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Site
from playwright.sync_api import Browser
from running_server import RunningServer

from tuner.job import Constraint
from tuner.report.wording import DropWords, duration, percent, quantity

VALUES = (0.0, 1e-9, 0.000123, 0.00512, 0.0123, 0.5, 0.99999, 1.0, 1.239, 12.3456, 123.456, 999.6, 1234.6, 123456.0, 1.5e6, 2.75e9, -0.031)
COUNTS = (0, 1, 17, 999, 1000, 1023, 1024, 20_480, 999_499, 1_048_000, 1_048_576, 123_456_789, 5_000_000_000)
SECONDS = (0.0, 0.0004, 0.25, 0.9994, 1.04, 12.34, 59.94, 61, 600, 3599, 3661, 90_000)
METRICS = ("top1", "agreement", "mse", "size_bytes", "macs", "params", "latency_ms")
CONSTRAINTS = (
    Constraint(metric="top1", max_drop=0.01, relative=True),
    Constraint(metric="top1", max_drop=0.01),
    Constraint(metric="mse", max_drop=0.5),
)


@pytest.fixture(scope="module")
def said(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Calls a function of format.js in the browser."""
    folder: Path = tmp_path_factory.mktemp("words")
    with RunningServer(folder) as server, Site(browser, server.url).open() as at:
        at.go("/")
        home = at.page.locator('link[rel="stylesheet"]').get_attribute("href")
        assert home is not None
        module = f"import('{home.removesuffix('style.css')}format.js')"

        def call(expression: str) -> Any:
            return at.page.evaluate(f"async () => {{ const f = await {module}; return {expression}; }}")

        yield call


@pytest.mark.parametrize("metric", METRICS)
def test_quantities(said: Any, metric: str) -> None:
    values = COUNTS if metric in ("size_bytes", "macs", "params") else VALUES
    assert said(f"{json.dumps(values)}.map((value) => f.quantity('{metric}', value))") == [quantity(metric, value) for value in values]


def test_what_is_not_known(said: Any) -> None:
    assert said("[null, undefined, NaN, Infinity].map((value) => f.quantity('mse', value))") == [quantity("mse", None)] * 4


def test_durations_and_shares(said: Any) -> None:
    assert said(f"{json.dumps(SECONDS)}.map((value) => f.duration(value))") == [duration(value) for value in SECONDS]
    assert said(f"{json.dumps(VALUES)}.map((value) => f.percent(value))") == [percent(value) for value in VALUES]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: f"{one.metric} {'relative' if one.relative else 'absolute'}")
def test_drops(said: Any, constraint: Constraint) -> None:
    words, drops = DropWords(constraint), (0.0, 0.0123, -0.004, 0.25)
    told = said(f"{json.dumps(drops)}.map(f.dropWords({constraint.model_dump_json()}).short)")
    assert told == [words.short(drop) for drop in drops]
