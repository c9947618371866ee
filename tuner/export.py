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
from tuner.wire import TrialSummary, summarize

FIXED_COLUMNS = (
    *("number", "state", "feasible", "drop", "drop_lower", "drop_upper", "verdict", "samples"),
    *("speedup", "speedup_lower", "speedup_upper", "seconds", "plan_digest", "notes", "error"),
)
COSTS_SHOWN = ("latency_ms", "size_bytes", "macs", "params")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class TrialTable:
    """trials.csv: one row per finished trial, on disk before the next begins."""

    def __init__(self, path: Path, metrics: Sequence[str], known: Iterable[TrialResult]) -> None:
        """Writes the rows already known anew, so that a row cut short by a crash is whole again."""
        self.path = path
        self._metrics = trial_metrics(metrics)
        write_text(path, csv_text([trial_columns(self._metrics), *(trial_row(summarize(trial), self._metrics) for trial in known)]))

    def append(self, trial: TrialResult) -> None:
        with writing("trials.csv"):
            with self.path.open("a", newline="") as file:
                file.write(csv_text([trial_row(summarize(trial), self._metrics)]))
                file.flush()
                os.fsync(file.fileno())


def trial_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """The measurements that trials.csv shows: the job's metrics, then the costs."""
    return tuple(dict.fromkeys((*metrics, *COSTS_SHOWN)))


def trial_columns(metrics: Iterable[str]) -> list[str]:
    """The header of trials.csv. metrics: from `trial_metrics`."""
    return [*FIXED_COLUMNS, *metrics]


def trial_row(trial: TrialSummary, metrics: Iterable[str]) -> list[object]:
    """One trial's row under `trial_columns`; what is not known stays empty."""
    error = f"{trial.error.step}: {trial.error.type}: {trial.error.message}" if trial.error else ""
    known: list[object] = [trial.number, trial.state.value, trial.feasible]
    known += [trial.drop, trial.drop_lower, trial.drop_upper, trial.decision, trial.samples]
    known += [trial.speedup, trial.speedup_lower, trial.speedup_upper]
    known += [trial.seconds, trial.plan_digest, " | ".join(trial.notes), error]
    return ["" if cell is None else cell for cell in (*known, *(trial.values.get(name) for name in metrics))]


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
    write_text(folder / "sensitivity.csv", csv_text([columns, *(list(row.model_dump().values()) for row in sensitivity)]))
    layers = [row.layer for row in sensitivity]
    write_text(folder / "report.html", render_report(job, result, trials, sensitivity, layers, applied.structure))
    # Last, because who finds it takes the job for finished.
    write_text(folder / "result.json", result.model_dump_json(indent=2))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([_plain(cell) for cell in row] for row in rows)
    return text.getvalue()


def unguarded(cell: str) -> str:
    """A text as it was before `csv_text` put an apostrophe in front of it."""
    return cell[1:] if cell.startswith("'") and _risky(cell) else cell


def _plain(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _risky(cell) else cell


def _risky(cell: str) -> bool:
    return cell.lstrip("'").startswith(FORMULA)
