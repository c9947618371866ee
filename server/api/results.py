"""What a job found: the best model, its plan, the report, the front, the sensitivity of layers, every file."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from server.api.answers import JSON, json_of, problems, ready
from server.api.downloads import download, send
from server.api.guards import Viewer
from server.api.paths import ArtifactName, JobId
from server.api.services import Services, ServicesDep
from server.store.database import Conflict, NotFound
from tuner.export import unguarded
from tuner.results import LayerProfile, Outcome, SensitivityRow
from tuner.store import RESUMABLE, JobState
from tuner.wire import ArtifactView

ONNX, CSV, HTML = "application/octet-stream", "text/csv", "text/html"
SUCCEEDED = "once it has succeeded"
FRONT, ROWS, ARTIFACTS = TypeAdapter(tuple[Outcome, ...]), TypeAdapter(list[SensitivityRow]), TypeAdapter(list[ArtifactView])

router = APIRouter(tags=["results"], prefix="/jobs/{job_id:id}")


@router.head("/best", include_in_schema=False)
@router.get("/best", response_class=Response, responses=download("The model, as ONNX.", ONNX))
def best_model(request: Request, job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """The best model; where the target was missed, the nearest to it (`feasible` of the job says so)."""
    return send(request, services.artifacts, _finished_file(services, job_id, "best.onnx"), f"{job_id}-best.onnx")


@router.head("/best/plan", include_in_schema=False)
@router.get("/best/plan", response_class=Response, responses=download("An AppliedPlan.", JSON))
def best_plan(request: Request, job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """The plan of the best model: with the original model, `tuner apply` makes the same file from it, byte for byte."""
    return send(request, services.artifacts, _finished_file(services, job_id, "best.plan.json"), f"{job_id}-best.plan.json")


@router.head("/report", include_in_schema=False)
@router.get("/report", response_class=Response, responses=download("One HTML page without scripts.", HTML))
def report(request: Request, job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """What was found, explained for people."""
    file = _finished_file(services, job_id, "report.html")
    return send(request, services.artifacts, file, f"{job_id}-report.html", inline=True)


@router.get("/pareto", responses={**json_of(tuple[Outcome, ...], "Certified models, none of which beats another."), **problems(404, 409)})
def pareto(job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """The front of a job with several objectives; `pareto/N.onnx` among the artefacts are its models."""
    result = services.jobs.view(job_id).result
    if result is None:
        raise _not_there(services, job_id, "front")
    return ready(FRONT.dump_json(result.pareto))


SENSITIVITY: dict[int | str, dict[str, Any]] = json_of(list[SensitivityRow], "One row per layer; as CSV with `Accept: text/csv`.")
SENSITIVITY[200]["content"] = {CSV: {"schema": {"type": "string"}}}


@router.get("/sensitivity", responses={**SENSITIVITY, **problems(404, 409)})
def sensitivity(request: Request, job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """What quantizing each layer alone does to the model's output, and what it costs or saves."""
    file = _finished_file(services, job_id, "sensitivity.csv")
    text = b"".join(services.artifacts.open(file.sha256)).decode()
    vary = {"Vary": "Accept"}
    if _prefers_csv(request.headers.get("accept", "")):
        return Response(text, headers=vary | {"X-Content-Type-Options": "nosniff"}, media_type=CSV)
    return ready(ROWS.dump_json([_row(row) for row in csv.DictReader(StringIO(text))]), headers=vary)


@router.get("/layers", responses={**json_of(list[LayerProfile], "Layers, then operator types."), **problems(404, 409)})
def layer_profiles(job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """What each option of a layer does and costs, and how the values of its input and its weight are spread. It is there once the search
    has begun, as `progress.profiled` of the job says."""
    file = _finished_file(services, job_id, "layers.json", "once its search has begun")
    return ready(b"".join(services.artifacts.open(file.sha256)))


@router.get("/artifacts", responses={**json_of(list[ArtifactView], "By name."), **problems(404)})
def list_artifacts(job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """Every file that the job has left so far."""
    return ready(ARTIFACTS.dump_json(services.jobs.artifacts(job_id)))


@router.head("/artifacts/{name:artifact}", include_in_schema=False)
@router.get("/artifacts/{name:artifact}", response_class=Response, responses=download("The file.", ONNX, JSON, CSV, HTML, lists=True))
def artifact(request: Request, job_id: JobId, name: ArtifactName, services: ServicesDep, _: Viewer) -> Response:
    """One file, whole or in part."""
    return send(request, services.artifacts, services.jobs.artifact(job_id, name), f"{job_id}-{name}")


def _finished_file(services: Services, job_id: str, name: str, when: str = SUCCEEDED) -> ArtifactView:
    """A file that is there once the job has succeeded, or earlier. Conflict before that, with what to do."""
    try:
        return services.jobs.artifact(job_id, name)
    except NotFound:
        raise _not_there(services, job_id, name, when) from None


def _not_there(services: Services, job_id: str, what: str, when: str = SUCCEEDED) -> Conflict | NotFound:
    state = services.jobs.row_state(job_id)
    if state == JobState.SUCCEEDED:
        return NotFound(f"job '{job_id}' has left no {what}; GET /api/v1/jobs/{job_id}/artifacts lists what there is")
    way_out = f"Go on with it: POST /api/v1/jobs/{job_id}/resume" if state in RESUMABLE else f"Follow it: GET /api/v1/jobs/{job_id}/events"
    return Conflict(f"job '{job_id}' is {state} and not finished; its {what} is there {when}. {way_out}")


def _prefers_csv(accept: str) -> bool:
    """Is CSV named before JSON?"""
    named = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return CSV in named and (JSON not in named or named.index(CSV) < named.index(JSON))


def _row(cells: dict[str, str]) -> SensitivityRow:
    return SensitivityRow.model_validate({name: unguarded(cell) for name, cell in cells.items() if cell != ""})
