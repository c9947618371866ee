"""The files of a finished job: results, tables, plan, report."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from tuner.errors import writing
from tuner.files import write_text
from tuner.job import JobSpec
from tuner.plan import AppliedPlan
from tuner.report import render_report
from tuner.results import JobResult, SensitivityRow, TrialResult

FIXED_COLUMNS = (
    *("number", "state", "feasible", "drop", "drop_lower", "drop_upper", "verdict", "samples"),
    *("speedup", "speedup_lower", "speedup_upper", "seconds", "plan_digest", "notes", "error"),
)


class TrialTable:
    """trials.csv: one row per finished trial, on disk before the next begins."""

    def __init__(self, path: Path, metrics: Sequence[str], known: Iterable[TrialResult]) -> None:
        """Writes the rows already known anew, so that a row cut short by a crash is whole again."""
        self.path = path
        self._metrics = [*metrics, "latency_ms", "size_bytes", "macs", "params"]
        write_text(path, _csv([[*FIXED_COLUMNS, *self._metrics], *(self._row(trial) for trial in known)]))

    def append(self, trial: TrialResult) -> None:
        with writing("trials.csv"):
            with self.path.open("a", newline="") as file:
                file.write(_csv([self._row(trial)]))
                file.flush()
                os.fsync(file.fileno())

    def _row(self, trial: TrialResult) -> list[object]:
        verdict = trial.verdicts[0] if trial.verdicts else None
        speed = trial.speedup
        fixed: list[object] = [trial.number, trial.state.value, trial.feasible]
        fixed += [verdict.drop, verdict.lower, verdict.upper, verdict.decision, verdict.samples] if verdict else [""] * 5
        fixed += [speed.value, speed.lower, speed.upper] if speed else [""] * 3
        error = f"{trial.error.step}: {trial.error.type}: {trial.error.message}" if trial.error else ""
        fixed += [round(sum(trial.timings.values()), 4), trial.plan_digest, " | ".join(trial.notes), error]
        return [*fixed, *("" if (value := trial.value(name)) is None else value for name in self._metrics)]


def write_results(
    folder: Path,
    job: JobSpec,
    result: JobResult,
    applied: AppliedPlan,
    trials: Sequence[TrialResult],
    sensitivity: Sequence[SensitivityRow],
) -> None:
    """Everything that DESIGN calls the folder of a finished job, but for trials.csv and the model files, which are there already."""
    write_text(folder / "job.json", job.model_dump_json(indent=2))
    write_text(folder / "best.plan.json", applied.model_dump_json(indent=1))
    columns = list(SensitivityRow.model_fields)
    write_text(folder / "sensitivity.csv", _csv([columns, *(list(row.model_dump().values()) for row in sensitivity)]))
    layers = [row.layer for row in sensitivity]
    write_text(folder / "report.html", render_report(job, result, trials, sensitivity, layers))
    # Last, because who finds it takes the job for finished.
    write_text(folder / "result.json", result.model_dump_json(indent=2))


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
