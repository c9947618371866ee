"""Trials of one job beside each other, row by row."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Response
from pydantic import Field

from search_spaces.schemes import Frozen
from server.api.answers import json_of, problems, ready
from server.api.guards import Viewer
from server.api.paths import JobId
from server.api.services import Services, ServicesDep
from server.store.database import Conflict, NotFound
from tuner.data.metrics import METRICS
from tuner.errors import JobError
from tuner.job import JobSpec
from tuner.plan import AppliedPlan
from tuner.results import BaselineRows, RowScores, TrialResult, TrialState
from tuner.rows import TrialComparison, compare_trials
from tuner.store import from_json

MOST_TRIALS = 4
COMING = (TrialState.QUEUED, TrialState.RUNNING)

Value = TypeVar("Value", bound=Frozen)
Numbers = Annotated[
    list[Annotated[int, Field(ge=0, le=999_999_999)]],
    Query(
        alias="trial",
        min_length=1,
        max_length=MOST_TRIALS,
        description=f"One to {MOST_TRIALS} different trials, by number.",
        json_schema_extra={"uniqueItems": True},
    ),
]

router = APIRouter(tags=["trials"], prefix="/jobs/{job_id:id}")


@router.get("/compare", responses={**json_of(TrialComparison, "The comparison."), **problems(404, 409)})
def compare_rows(job_id: JobId, numbers: Numbers, services: ServicesDep, _: Viewer) -> Response:
    """Which rows trials lost and gained against the original, by the metric of the first constraint, and how their plans differ.

    Compared are the rows that all of them were scored on: a trial that ended early has the first of one common order."""
    if len(set(numbers)) < len(numbers):
        asked = ", ".join(map(str, numbers))
        raise JobError(f"the trials to compare must be different ones, got {asked}. Name each only once.", field="trial")
    spec = services.jobs.view(job_id).spec
    trials = [TrialResult.model_validate_json(services.trials.text(job_id, number)) for number in numbers]
    _refuse_whole_splits(job_id, spec)
    scores = {trial.number: _left_by(services, job_id, trial, RowScores, "rows") for trial in trials}
    plans = [_left_by(services, job_id, trial, AppliedPlan, "plan") for trial in trials]
    baseline = _read(services, job_id, BaselineRows, "rows.json")
    return ready(compare_trials(baseline, scores, plans))


def _refuse_whole_splits(job_id: str, spec: JobSpec) -> None:
    name = spec.accuracy_constraint.metric
    if name in METRICS and METRICS[name].score is None:
        raise Conflict(
            f"job '{job_id}' is judged by {name}, a metric of whole splits: its rows have no scores of their own. "
            "Compare trials of a job whose first constraint is on a metric like top1 or mse."
        )


def _left_by(services: Services, job_id: str, trial: TrialResult, kind: type[Value], what: str) -> Value:
    """What a trial has left. Conflict where it has left none (yet)."""
    try:
        return _read(services, job_id, kind, f"trials/{trial.number}.{what}.json")
    except NotFound:
        why = f": {trial.error.message}" if trial.error else ""
        hint = "Ask again once it is finished." if trial.state in COMING else "Take a trial that is complete or stopped."
        if trial.finished and trial.error is None:
            hint = "It ran before they were kept; take a later one, or a new job."
        named = "no plan" if what == "plan" else "no scores of its rows"
        raise Conflict(f"trial {trial.number} of job '{job_id}' is {trial.state} and has left {named}{why}. {hint}") from None


def _read(services: Services, job_id: str, kind: type[Value], name: str) -> Value:
    """An artefact as what it is. NotFound."""
    file = services.jobs.artifact(job_id, name)
    return from_json(kind, b"".join(services.artifacts.open(file.sha256)).decode(), f"'{name}' of job '{job_id}'")
