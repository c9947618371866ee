"""What a terminal shows: text from errors and notes must reach it as it stands."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from server.console import ProgressView, amount, change
from tests.fake_service import events, trial
from tests.tiny_jobs import tiny_job
from tuner.progress import Event
from tuner.results import Interval, Measurement, TrialFailure, TrialResult, TrialState
from tuner.store import JobState

BROKEN = TrialResult(
    number=7,
    state=TrialState.FAILED,
    assignment={},
    plan_digest="d",
    error=TrialFailure(type="RuntimeError", message="shape [/x] of [red] is odd", step="session"),
)


def shown(folder: Path, terminal: bool) -> str:
    text = StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with ProgressView(tiny_job(folder), console) as view:
        view(Event(phase="search", done=1, total=5, seconds=1.5, trial=BROKEN))
    return text.getvalue()


def test_a_failed_trial_is_shown_in_the_live_table(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "failed in session: shape [/x] of [red] is odd" in text
    assert "prepare → baseline → calibrate → sensitivity → search" in text


def test_without_a_terminal_each_trial_is_one_line(tmp_path: Path) -> None:
    assert shown(tmp_path, terminal=False).splitlines() == [
        "[    1.5 s] search",
        "[    1.5 s] trial 1/5: #7 failed in session: shape [/x] of [red] is odd",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_events_that_a_server_tells_are_shown_like_those_of_a_job_here(tmp_path: Path, terminal: bool) -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with ProgressView(tiny_job(tmp_path), console) as view:
        first, *others = events(JobState.QUEUED, "[red]cast[/x]", trial(0))
        view(first)
        assert not terminal or view._bar.tasks[0].description == "queued"
        for event in others:
            view(event)
    if terminal:
        assert "best so far: #0 met after 600 rows, drop 0.0010, 1.50×, 2.00 KiB" in text.getvalue()
        assert re.search(r"0 +met after 600 rows +0\.0010 +1\.50× +2\.00 KiB", text.getvalue())
        return
    words = "#0 met after 600 rows, drop 0.0010, 1.50×, 2.00 KiB"
    assert text.getvalue().splitlines() == [
        "job queued",
        "[    2.0 s] job: [red]cast[/x]",
        "[    3.0 s] search",
        f"[    3.0 s] trial 1/5: {words}; best {words}",
    ]


def test_amounts_carry_their_unit() -> None:
    def said(metric: str, value: float, unit: str = "", stderr: float | None = None) -> str:
        return amount(Measurement(metric=metric, value=value, unit=unit, stderr=stderr))

    assert said("size_bytes", 273 * 1024) == "273 KiB"
    assert said("latency_ms", 0.612, "ms") == "0.612 ms"
    assert said("macs", 40_600_000) == "40.6 M"
    assert said("top1", 0.9183, stderr=0.0025) == "91.83 % ± 0.25 %"


def test_changes_make_no_claim_where_there_is_none() -> None:
    before, after = (Measurement(metric="size_bytes", value=value) for value in (1000.0, 250.0))
    speed = Interval(value=1.01, lower=0.99, upper=1.03)
    assert change("latency_ms", before, after, None, speed).startswith("no measurable difference (0.99× to 1.03×")
    assert change("size_bytes", before, after, None, speed) == "25.0 % of the original, 4.00× smaller"
    drop = Interval(value=0.002, lower=-0.001, upper=0.005)
    assert change("top1", before, after, drop, speed) == "drop 0.00200 (at least −0.00100, at most 0.00500)"
