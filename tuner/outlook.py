"""From a job that passed its checks to what it would do."""

from __future__ import annotations

import os
import sys
import time

from search_spaces.structure import RECOVER
from tuner.cost_table import timed_models
from tuner.data.dataset import label_range
from tuner.estimate import Work, job_seconds, preparation_seconds
from tuner.evaluator import Evaluator, scoring_threads
from tuner.job import Budget
from tuner.preflight import check_fit
from tuner.preview import JobPreview, LabelRange, Overlap
from tuner.structure_table import structure_models
from tuner.structures import training_seconds
from tuner.survey import sensitivity_rows, surveyed_models


def preview(evaluator: Evaluator, budget: Budget) -> JobPreview:
    """Check a job and tell what it would do. Raises the InputError that says what is wrong.

    The evaluator has one thread, which the estimate counts from; `budget` is the job's own."""
    started = time.process_time()  # Other work on the machine does not count.
    fit = check_fit(evaluator)
    work = _work(evaluator, budget, fit.row_seconds, time.process_time() - started)
    space, roles = evaluator.space, evaluator.roles
    return JobPreview(
        goal=evaluator.constraints[0].sentence(),
        metrics=tuple(metric.name for metric in evaluator.metrics),
        rows=roles.rows,
        labels=_labels(evaluator),
        overlap=Overlap(**roles.overlap, validation_in_training=roles.repeated),
        layers=len(space.layers),
        options=max(len(layer.options) for layer in space.layers),
        plans=float(min(space.size, int(sys.float_info.max))),
        notes=(*fit.notes, *_budget_notes(work, budget)),
        seconds=round(job_seconds(work), 1),
        seconds_most=budget.seconds,
    )


def _work(evaluator: Evaluator, budget: Budget, row_seconds: float, check_seconds: float) -> Work:
    job, roles, space = evaluator.job, evaluator.roles, evaluator.space
    judged = [metric for metric in evaluator.metrics if metric.name in {constraint.metric for constraint in evaluator.constraints}]
    return Work(
        row_seconds=row_seconds,
        check_seconds=check_seconds,
        call_rows=evaluator.fixed_batch or job.target.batch,
        megabytes=len(evaluator.model.data) / 1e6,
        calibration=len(roles.calibration),
        validation=len(roles.validation),
        holdout=len(roles.holdout),
        sensitivity=sensitivity_rows(evaluator),
        layers=surveyed_models(space) - 1,
        tables=timed_models(space) + structure_models(space.layers),
        trials=min(budget.trials, space.size - 1),
        training=training_seconds(space.steps.get(RECOVER, {}).get("rows", 0), evaluator.macs),
        threads=scoring_threads(budget),
        parallel=budget.parallel,
        cores=os.cpu_count() or 1,
        objectives=len(job.objectives),
        early=job.early_stopping and all(metric.ends_early for metric in judged),
        timed="latency" in job.objectives or any(constraint.metric == "latency_ms" for constraint in job.constraints),
        first=job.stop == "first",
        search_until=budget.search_seconds,
    )


def _labels(evaluator: Evaluator) -> LabelRange | None:
    if not any(metric.needs_labels for metric in evaluator.metrics):
        return None
    found = label_range(evaluator.roles.validation)
    return None if found is None else LabelRange(low=found[0], high=found[1], classes=found[2])


def _budget_notes(work: Work, budget: Budget) -> list[str]:
    """A budget ends the search, not what comes before."""
    ready = preparation_seconds(work)
    if ready < budget.search_seconds:
        return []
    return [
        f"budget: about {ready:.0f} s go by before the search, more than a budget of {budget.seconds:g} s leaves, so one trial is made; "
        "give more seconds, fewer rows or a smaller space"
    ]
