"""The trials of a job: pages, one of them, its plan and model, all of them as a table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from server.api.answers import file_of, json_of, problems, ready, slowly
from server.api.downloads import download, send
from server.api.guards import Viewer
from server.api.paths import Cursor, JobId, Limit, Order, TrialNumber
from server.api.services import Services, ServicesDep
from server.store.database import Conflict, NotFound
from tuner.export import csv_text, trial_columns, trial_metrics, trial_row
from tuner.results import FINISHED, TrialResult, TrialState
from tuner.wire import ArtifactView, JobDetail, Page, TrialSample, TrialSummary

CSV_ROWS = 200
ONNX = "application/octet-stream"

Sort = Annotated[
    Literal["number", "violation", "speedup", "size_bytes"],
    Query(description="Trials without such a value come last."),
]
Most = Annotated[int, Query(ge=1, le=2000, description="How many trials there are at most.")]
OnlyTrialState = Annotated[TrialState | None, Query(description="Only trials in this state.")]
Feasible = Annotated[bool | None, Query(description="Only trials that met every constraint on validation, or only those that did not.")]

router = APIRouter(tags=["trials"], prefix="/jobs/{job_id:id}")


@router.get("/trials", responses={**json_of(Page[TrialSummary], "A page of trials."), **problems(404)})
def list_trials(
    job_id: JobId,
    services: ServicesDep,
    _: Viewer,
    cursor: Cursor = None,
    limit: Limit = 100,
    sort: Sort = "number",
    order: Annotated[Order, Query()] = "asc",
    state: OnlyTrialState = None,
    feasible: Feasible = None,
) -> Response:
    """The trials of a job, also while it runs."""
    page = services.trials.page(job_id, cursor=cursor, limit=limit, sort=sort, descending=order == "desc", state=state, feasible=feasible)
    return ready(page)


@router.get("/trials.csv", response_class=Response, responses={**file_of("The table.", "text/csv"), **problems(404)})
def trials_table(job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """All finished trials as CSV, with the columns of `trials.csv` in a job's folder; also while the job runs."""
    metrics = _shown_metrics(services.jobs.view(job_id))
    finished = (trial for trial in services.trials.rows(job_id) if trial.state in FINISHED)
    headers = {"Content-Disposition": f'attachment; filename="{job_id}-trials.csv"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_table(finished, metrics), headers=headers, media_type="text/csv")


@router.get("/trials/sample", responses={**json_of(TrialSample, "By number."), **problems(404)})
def sample_trials(job_id: JobId, services: ServicesDep, _: Viewer, most: Most = 1000) -> Response:
    """Trials for drawing: all that run or are finished, where there are at most `most`. Else the extremes, those that improved on
    all before them, the last ones, and others evenly spread."""
    return ready(services.trials.sample(job_id, most))


@router.get("/trials/{number:number}", responses={**json_of(TrialResult, "The trial."), **problems(404)})
def show_trial(job_id: JobId, number: TrialNumber, services: ServicesDep, _: Viewer) -> Response:
    """Everything that was recorded of a trial."""
    return ready(services.trials.text(job_id, number))


@router.head("/trials/{number:number}/plan", include_in_schema=False)
@router.get("/trials/{number:number}/plan", response_class=Response, responses=download("An AppliedPlan.", "application/json"))
def trial_plan(request: Request, job_id: JobId, number: TrialNumber, services: ServicesDep, _: Viewer) -> Response:
    """A trial's plan with every number that was derived from data: `tuner apply` makes the trial's model from it."""
    return send(request, services.artifacts, _plan(services, job_id, number), f"{job_id}-trial-{number}.plan.json")


@router.head("/trials/{number:number}/tensors", include_in_schema=False)
@router.get("/trials/{number:number}/tensors", response_class=Response, responses=download("Arrays, as safetensors.", ONNX))
def trial_tensors(request: Request, job_id: JobId, number: TrialNumber, services: ServicesDep, _: Viewer) -> Response:
    """The weights that a trial's plan changed, which `tuner apply` reads beside the plan. A plan that only quantizes has none."""
    _plan(services, job_id, number)
    file = _tensors(services, job_id, number)
    if file is None:
        raise NotFound(f"the plan of trial {number} of job '{job_id}' changes no weights, so that `tuner apply` needs nothing beside it")
    return send(request, services.artifacts, file, f"{job_id}-trial-{number}.tensors.safetensors")


@router.get("/trials/{number:number}/model", response_class=Response, responses=download("The model, as ONNX.", ONNX))
async def trial_model(request: Request, job_id: JobId, number: TrialNumber, services: ServicesDep, _: Viewer) -> Response:
    """The model of a trial. It is made again from the trial's plan the first time that it is asked for."""
    file = await slowly(_model, services, job_id, number)
    return await slowly(send, request, services.artifacts, file, f"{job_id}-trial-{number}.onnx")


def _shown_metrics(job: JobDetail) -> tuple[str, ...]:
    """What the job measures: as the job found out, or else as it was asked for."""
    return trial_metrics(job.progress.metrics or [name for name in job.spec.metrics if name != "auto"])


def _table(trials: Iterable[TrialSummary], metrics: tuple[str, ...]) -> Iterator[str]:
    yield csv_text([trial_columns(metrics)])
    rows = (trial_row(trial, metrics) for trial in trials)
    while block := list(islice(rows, CSV_ROWS)):
        yield csv_text(block)


def _plan(services: Services, job_id: str, number: int) -> ArtifactView:
    """The plan of a trial. NotFound: there is no such trial; Conflict: it has none (yet)."""
    try:
        return services.jobs.artifact(job_id, f"trials/{number}.plan.json")
    except NotFound:
        trial = TrialResult.model_validate_json(services.trials.text(job_id, number))
        why = f": {trial.error.message}" if trial.error else ""
        hint = "Take a trial that is complete or stopped." if trial.finished else "Ask again once it is finished."
        raise Conflict(f"trial {number} of job '{job_id}' is {trial.state} and has left no plan{why}. {hint}") from None


def _tensors(services: Services, job_id: str, number: int) -> ArtifactView | None:
    """The weights that a trial's plan changed; None where it changed none."""
    try:
        return services.jobs.artifact(job_id, f"trials/{number}.tensors.safetensors")
    except NotFound:
        return None


def _model(services: Services, job_id: str, number: int) -> ArtifactView:
    """The model of a trial, made from its plan where that was not done before."""
    plan = _plan(services, job_id, number)
    name = f"trials/{number}.onnx"
    try:
        return services.jobs.artifact(job_id, name)
    except NotFound:
        pass
    model = services.files.model(services.jobs.view(job_id).spec.model)
    with tempfile.TemporaryDirectory(prefix="accutune-rebuild-") as folder:
        made = Path(folder) / "model.onnx"
        tensors = _tensors(services, job_id, number)
        plan_at, model_at = services.artifacts.local(plan.sha256), services.artifacts.local(model.sha256)
        services.gate.rebuild(plan_at, model_at, made, None if tensors is None else services.artifacts.local(tensors.sha256))
        stored = services.artifacts.put(made)
    now = services.database.now()
    view = ArtifactView(name=name, size_bytes=stored.size_bytes, sha256=stored.sha256, media_type=ONNX, created=now)
    services.jobs.add_artifact(job_id, view)
    return view
