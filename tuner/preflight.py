"""Everything that is checked before the search starts, cheapest first; and what the job will do, for the user to see."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from search_spaces.capability import known_targets
from search_spaces.presets import preset_names
from search_spaces.recovery import LABELS
from tuner.data.dataset import check_labels
from tuner.data.metrics import METRICS, Metric, check_classes, check_pairs, degenerate
from tuner.errors import DataError, JobError, UnknownName
from tuner.evaluator import Evaluator, first_output
from tuner.job import COST_METRICS, COSTS, Constraint, JobSpec
from tuner.measure.accuracy import baseline_scored, measure, silent
from tuner.measure.judge import allowance, nth_confidence
from tuner.measure.machine import processor_features
from tuner.measure.row_scores import keep_baseline
from tuner.measure.statistics import samples_needed
from tuner.results import Baseline, Preflight
from tuner.structure_checks import check_structure

REPEAT_ROWS = 64


def check_names(job: JobSpec) -> None:
    """Refuse names that nobody knows and demands that nobody can meet, before any file is opened."""
    if job.target.runtime not in known_targets():
        raise UnknownName("runtime", job.target.runtime, known_targets(), field="target.runtime")
    if isinstance(job.space, str) and job.space not in preset_names():
        raise UnknownName("space", job.space, preset_names(), field="space")
    if not isinstance(job.space, str):
        check_structure(job.space)
    for name in job.metrics:
        if name != "auto" and name not in METRICS:
            raise UnknownName("metric", name, [*METRICS], field="metrics")
    for objective in job.objectives:
        if objective not in COSTS and objective not in METRICS:
            raise UnknownName("objective", objective, [*COSTS, *METRICS], field="objectives")
    for constraint in job.constraints:
        if constraint.metric in COST_METRICS:
            if constraint.at_most is None:
                raise JobError(f"constraint on {constraint.metric}: a cost can only be limited with at_most", field="constraints")
        elif constraint.metric == "auto":
            continue
        elif constraint.metric not in METRICS:
            raise UnknownName("metric of a constraint", constraint.metric, [*METRICS, *COST_METRICS], field="constraints")
        else:
            _check_reachable(constraint, METRICS[constraint.metric])
    if all(constraint.metric in COST_METRICS for constraint in job.constraints):
        raise JobError("no constraint protects accuracy; add one like {metric: top1, max_drop: 0.01}", field="constraints")


def check_job(evaluator: Evaluator) -> list[str]:
    """Every check that needs the model and the data but not the original's scores; what `check_fit` has to tell."""
    _check_unchanged(evaluator)
    notes = check_fit(evaluator).notes
    if evaluator.spec.structural:
        from tuner.compress.restructure import check_operators  # Brings in what trains, which most jobs do without.

        check_operators(evaluator.structures.base)
    return [*notes]


def baseline(evaluator: Evaluator, notes: Sequence[str] = (), progress: Callable[[int, int], None] = silent) -> Preflight:
    """Score the original on the validation rows (outputs and scores are kept on disk for all trials), and check that a drop from it says
    something. Raises the InputError that says what is wrong. notes: of the checks before; progress: told of rows."""
    job, roles = evaluator.job, evaluator.roles
    evaluator.validation = evaluator.split("validation", roles.validation, progress)
    outputs = evaluator.validation.reference
    scored = baseline_scored(evaluator.validation, evaluator.metrics)
    measurements = {m.name: measure(m, scored, evaluator.validation, 0.0, job.target.name) for m in evaluator.metrics}
    for metric in evaluator.metrics:
        reason = degenerate(metric, measurements[metric.name].value, outputs[:4096], _labels(evaluator, 4096))
        if reason:
            raise DataError(f"the baseline says nothing: {reason}", field="metrics")
    keep_baseline(evaluator.cache, evaluator.leading, evaluator.validation)
    allowed: dict[str, float] = {}
    for metric, limit in evaluator.allowances(evaluator.validation):
        allowed[metric.name] = min(limit.allowed, allowed.get(metric.name, limit.allowed))
    return Preflight(
        space=evaluator.space,
        baseline=Baseline(measurements=measurements | evaluator.costs(evaluator.model.data)),
        metrics=tuple(metric.name for metric in evaluator.metrics),
        allowed=allowed,
        rows=roles.rows,
        notes=(*notes, *_sample_notes(evaluator)),
    )


@dataclass(frozen=True)
class Fit:
    """What the checks find. notes: what was decided for the user, and warnings; row_seconds: what the original takes for a row where it
    has one thread."""

    notes: tuple[str, ...]
    row_seconds: float


def check_fit(evaluator: Evaluator) -> Fit:
    """Every check that needs the model and the data, but not the original's outputs for more than a few rows. Raises the InputError
    that says what is wrong."""
    evaluator.space  # noqa: B018 (refuses a model without layers to compress, before the data are read)
    _check_taught(evaluator)
    notes = [*evaluator.roles.notes]
    processor = evaluator.target.processor(processor_features())
    notes += [f"processor: {processor.warning}"] if processor.warning else []
    outputs, labels, seconds = _check_repeatable(evaluator)
    for metric in evaluator.metrics:
        _check_metric(evaluator, metric, outputs, labels)
    return Fit(tuple(notes), seconds)


def search_aims(evaluator: Evaluator, discordance: float) -> dict[str, float]:
    """{metric: the drop on validation that a candidate should not exceed}, fixed before the first trial.

    Without a confidence, what the constraint allows. With one, less by the bound's expected half-width on the holdout, so that what
    passes has a fair chance of being certified; never less than half of what is allowed."""
    rows = len(evaluator.roles.holdout)
    aims: dict[str, float] = {}
    for metric, limit in evaluator.allowances(evaluator.validation):
        aim = limit.allowed
        if limit.constraint.confidence is not None and limit.allowed > 0 and metric.score is not None:
            z = float(norm.ppf(nth_confidence(limit.constraint.confidence, 1)))
            margin = z * np.sqrt(max(discordance, 1 / rows) / rows)
            aim = max(limit.allowed - float(margin), limit.allowed / 2)
        aims[metric.name] = min(aim, aims.get(metric.name, aim))
    return aims


def _check_reachable(constraint: Constraint, metric: Metric) -> None:
    if metric.bounds is None or constraint.max_drop is not None:
        return
    low, high = metric.bounds
    if constraint.at_least is not None and constraint.at_least > high:
        raise JobError(
            f"constraint: {metric.name} can be at most {high:g}, got at_least {constraint.at_least:g}; is it a percentage?",
            field="constraints",
        )
    if constraint.at_most is not None and constraint.at_most < low:
        raise JobError(f"constraint: {metric.name} is never below {low:g}, got at_most {constraint.at_most:g}", field="constraints")


def _check_unchanged(evaluator: Evaluator) -> None:
    """What is cached belongs to the files as they were when the job began: a resumed job must find the same."""
    found = {"model": evaluator.model.sha256}
    for role, ref in evaluator.job.data.roles().items():
        path = Path(ref.file)
        if path.is_file():
            found[role] = f"{path.stat().st_size} bytes, changed {path.stat().st_mtime_ns}"
    path = evaluator.cache / "inputs.json"
    if not path.is_file():
        path.write_text(json.dumps(found))
        return
    for name, known in json.loads(path.read_text()).items():
        if found.get(name) != known:
            raise JobError(
                f"the {name} file has changed since this job began ({known} then, {found.get(name)} now); "
                "put the old one back, or start a new job"
            )


def _check_repeatable(evaluator: Evaluator) -> tuple[np.ndarray, np.ndarray | None, float]:
    """The original must give the same outputs twice, else no drop can be told from chance. Its outputs for the first validation rows,
    their labels, and the seconds that a row takes."""
    data = evaluator.roles.validation
    rows = np.arange(min(REPEAT_ROWS, len(data)) if evaluator.fixed_batch is None else evaluator.fixed_batch) % len(data)
    run = first_output(evaluator.baseline)
    feed = data.batch(rows)
    first, one = _timed(lambda: run(feed))
    second, two = _timed(lambda: run(feed))
    if first.ndim == 0 or len(first) != len(rows):
        raise DataError(
            f"the model's first output '{evaluator.model.outputs[0].name}' must have one row per input row, got shape {first.shape} for "
            f"{len(rows)} rows; put the output to be compared first, with the batch as its first dimension"
        )
    if not np.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True):
        worst = float(np.abs(first - second).max())
        raise DataError(
            f"the original model gives different outputs for the same rows (by up to {worst:.3g}), so no drop can be measured; "
            "export it in evaluation mode, without random operators"
        )
    return first, data.labels(rows), min(one, two) / len(rows)


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The processor's time and not the clock's, so that other work on the machine does not count."""
    started = time.thread_time()
    return run(), time.thread_time() - started


def _check_taught(evaluator: Evaluator) -> None:
    """Rows that are trained on must have labels where the training is to learn from them."""
    spec, roles = evaluator.spec, evaluator.roles
    if not spec.structural or spec.recovery is None or LABELS not in spec.recovery.active:
        return
    role, rows = ("training", roles.training) if roles.training else ("calibration", roles.calibration)
    if not rows.has_labels:
        raise JobError(
            f"space.recovery.losses names labels, and the {role} rows have none; add an array with labels to data.{role}, "
            "or leave labels out and learn from the original's outputs (logits)",
            field="space.recovery.losses",
        )


def _check_metric(evaluator: Evaluator, metric: Metric, outputs: np.ndarray, labels: np.ndarray | None) -> None:
    """Outputs of some rows and all labels fit the metric, on the validation rows and on the holdout; its constraints can be met."""
    classes = check_classes(metric, outputs, labels)
    if classes is not None:
        check_labels(evaluator.roles.validation, classes)
        check_labels(evaluator.roles.holdout, classes)
    check_pairs(metric, outputs, labels)
    if not np.isfinite(outputs).all():
        raise DataError(f"the baseline says nothing: {degenerate(metric, 0.0, outputs, labels)}", field="metrics")
    for constraint in evaluator.constraints:
        if constraint.metric == metric.name:
            _check_reachable(constraint, metric)
            allowance(constraint, metric.direction, 1.0)  # Refuses a limit on the wrong side.


def _labels(evaluator: Evaluator, rows: int) -> np.ndarray | None:
    labels = evaluator.validation.labels
    return None if labels is None else np.asarray(labels[:rows])


def _sample_notes(evaluator: Evaluator) -> list[str]:
    """Can so many rows certify so small a drop at all, even if no row changed?"""
    notes = []
    for metric, limit in evaluator.allowances(evaluator.validation):
        confidence, rows = limit.constraint.confidence, len(evaluator.roles.holdout)
        if confidence is None or metric.score is None or limit.allowed <= 0:
            continue
        needed = samples_needed(limit.allowed, 0.0, nth_confidence(confidence, 1))
        if needed > rows:
            notes.append(
                f"{rows} holdout rows cannot certify a drop of {limit.allowed:.4g} in {metric.name} at {confidence:.0%} confidence, "
                f"even for a model that gets every row as before: at least {needed} are needed"
            )
    return notes
