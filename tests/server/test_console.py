"""What a terminal shows: text from errors and notes must reach it as it stands."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from server.console import ProgressView, amount, change
from tests.tiny_jobs import tiny_job
from tuner.progress import Event
from tuner.results import Interval, Measurement, TrialFailure, TrialResult, TrialState

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
    assert "prepare → calibrate → sensitivity → search" in text


def test_without_a_terminal_each_trial_is_one_line(tmp_path: Path) -> None:
    assert shown(tmp_path, terminal=False).splitlines() == [
        "[    1.5 s] search",
        "[    1.5 s] trial 1/5: #7 failed in session: shape [/x] of [red] is odd",
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
