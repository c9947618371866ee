from __future__ import annotations

import csv
from pathlib import Path

import pytest
from fake_executor import measured

from tuner.export import TrialTable, csv_text, unguarded
from tuner.results import Interval, TrialFailure, TrialResult, TrialState, Verdict

VERDICT = Verdict(metric="top1", drop=0.01, lower=-0.02, upper=0.03, confidence=0.95, decision="met", violation=-0.01, samples=128)


def trial(number: int) -> TrialResult:
    return TrialResult(
        number=number,
        state=TrialState.COMPLETE,
        assignment={"a": "float"},
        plan_digest=f"digest {number}",
        measurements={"top1": measured("top1", 0.9, False), "size_bytes": measured("size_bytes", 1234)},
        verdicts=(VERDICT,),
        speedup=Interval(value=1.5, lower=1.4, upper=1.6),
        notes=("one", "two, with a comma"),
        timings={"build": 0.25, "accuracy": 1.0},
    )


FAILED = TrialResult(
    number=1,
    state=TrialState.FAILED,
    assignment={},
    plan_digest="digest 1",
    error=TrialFailure(type="Timeout", message='took "too" long\nreally', step="evaluate"),
)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(keepends=True)))


def test_every_trial_is_a_row_and_its_number_the_first_column(tmp_path: Path) -> None:
    table = TrialTable(tmp_path / "trials.csv", ["top1"], [])
    assert (tmp_path / "trials.csv").read_text().startswith("number,state,feasible,")
    table.append(trial(0))
    assert len(rows_of(tmp_path / "trials.csv")) == 1
    table.append(FAILED)
    first, second = rows_of(tmp_path / "trials.csv")
    assert first == {
        **{"number": "0", "state": "complete", "feasible": "True", "drop": "0.01", "drop_lower": "-0.02", "drop_upper": "0.03"},
        **{"verdict": "met", "samples": "128", "speedup": "1.5", "speedup_lower": "1.4", "speedup_upper": "1.6", "seconds": "1.25"},
        **{"plan_digest": "digest 0", "notes": "one | two, with a comma", "error": "", "top1": "0.9", "latency_ms": ""},
        **{"size_bytes": "1234.0", "macs": "", "params": ""},
    }
    assert (second["number"], second["state"], second["feasible"], second["drop"]) == ("1", "failed", "False", "")
    assert second["error"] == 'evaluate: Timeout: took "too" long\nreally'


def test_known_trials_are_written_anew_so_that_a_cut_row_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    TrialTable(path, ["top1"], []).append(trial(0))
    path.write_text(path.read_text() + "1,compl")
    table = TrialTable(path, ["top1"], [trial(0), trial(1)])
    table.append(trial(2))
    assert [row["number"] for row in rows_of(path)] == ["0", "1", "2"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "'", "plain", "/conv1/Conv", ""])
def test_no_text_is_a_formula_and_each_can_be_had_back(text: str) -> None:
    (cell,) = next(csv.reader(csv_text([[text, -1.5]]).splitlines(keepends=True)))[:1]
    assert not cell.startswith(("=", "+", "-", "@", "\t"))
    assert unguarded(cell) == text


def test_negative_numbers_stay_numbers() -> None:
    assert csv_text([[-1.5, "-1.5"]]) == "-1.5,'-1.5\n"
