"""What a terminal shows: text from errors and notes must reach it as it stands."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from server.console import ProgressView, amount
from tests.tiny_jobs import tiny_job
from tuner.progress import Event
from tuner.results import Measurement, TrialFailure, TrialResult, TrialState

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
    def said(value: float, unit: str = "", stderr: float | None = None) -> str:
        return amount(Measurement(metric="m", value=value, unit=unit, stderr=stderr))

    assert said(273_000, "bytes") == "0.27 MB"
    assert said(9_413, "bytes") == "9.4 kB"
    assert said(0.612, "ms") == "0.612 ms"
    assert said(40_600_000) == "40.60 M"
    assert said(0.9183, stderr=0.0025) == "0.9183 ± 0.0025"
