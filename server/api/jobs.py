"""Jobs: check, submit, list, look at, cancel, resume, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from server.api.answers import JSON, json_of, located, problems, ready, slowly
from server.api.bodies import check_type, small
from server.api.guards import Submitter, Viewer, may_change
from server.api.paths import ID, JOB_NAME, Cursor, JobId, Limit, Order
from server.api.services import Services, ServicesDep
from server.api.submissions import foretell, submit
from tuner.preview import JobPreview
from tuner.store import JobState
from tuner.wire import JobDetail, JobView, Page

MAX_BODY_BYTES = 1 << 20
NOT_LISTED = {"spec", "result"}
REMEDY = "Send the job with -H 'Content-Type: application/json' -d @job.json"

EXAMPLE: dict[str, Any] = {
    "version": 1,
    "name": "resnet20-int8",
    "model": "mdl-0f3a9c1e77b24d58",
    "data": {
        "calibration": {"file": "dat-5b1c2f6a90d34e77", "rows": [0, 512]},
        "validation": {"file": "dat-90aa41d2c3ef5b16", "rows": [0, 5000]},
        "holdout": {"file": "dat-90aa41d2c3ef5b16", "rows": [5000, 10000]},
    },
    "metrics": ["top1"],
    "constraints": [{"metric": "top1", "max_drop": 0.01, "relative": True}],
    "objectives": ["latency"],
    "space": "int8",
    "budget": {"trials": 60, "seconds": 900},
    "target": {"runtime": "onnxruntime-cpu", "batch": 1, "threads": 1},
    "seed": 0,
}
SMALLEST = {
    "model": "mdl-0f3a9c1e77b24d58",
    "data": {"validation": {"file": "dat-90aa41d2c3ef5b16"}},
    "constraints": [{"metric": "auto", "max_drop": 0.01}],
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "examples": {
                    "usual": {"summary": "Quantize to 8 bits, at most 1 % of the accuracy lost", "value": EXAMPLE},
                    "smallest": {"summary": "Everything that has a default left out", "value": SMALLEST},
                },
            }
        },
    }
}
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,200}$",
        description="Any text of your own. The same key with the same body gives the same job, however often it is sent.",
    ),
]
JobModel = Annotated[str | None, Query(pattern=f"^{ID}$", description="Only jobs on this model.")]
JobName = Annotated[str | None, Query(pattern=f"^{JOB_NAME}$", description="Only jobs whose name begins like this.")]
Search = Annotated[
    str | None,
    Query(
        pattern=r"^[^\x00-\x1f]{0,200}$",
        description="Only jobs whose name, or whose model's name, contains this; capitals or not is all the same.",
    ),
]
Sort = Annotated[Literal["created", "name"], Query(description="By when they were submitted, or by their names.")]
OnlyState = Annotated[JobState | None, Query(description="Only jobs in this state.")]

router = APIRouter(tags=["jobs"])


@router.post(
    "/jobs",
    status_code=201,
    openapi_extra=BODY,
    responses={
        **json_of(JobDetail, "Queued. `Location` is where it can be looked at.", 201),
        **json_of(JobDetail, "This job was submitted before with the same Idempotency-Key (`Idempotent-Replay: true`)."),
        **problems(400, 408, 409, 413, 415),
    },
)
async def submit_job(request: Request, services: ServicesDep, caller: Submitter, key: IdempotencyKey = None) -> Response:
    """Submit a job: the job file as JSON, with ids of uploads where it has paths. Everything is checked before it is queued."""
    check_type(request, (JSON,), REMEDY, needed=True)
    body = await small(request, MAX_BODY_BYTES)
    job_id, created = await slowly(submit, services, caller, body, key)
    job = await slowly(services.jobs.text, job_id)
    headers = {"Location": located(request, f"/jobs/{job_id}")}
    return ready(job, 201, headers) if created else ready(job, 200, headers | {"Idempotent-Replay": "true"})


@router.post(
    "/checks",
    openapi_extra=BODY,
    responses={**json_of(JobPreview, "It would be taken, and this is what it would do."), **problems(400, 408, 413, 415)},
)
async def check_job(request: Request, services: ServicesDep, _: Submitter) -> Response:
    """What a job would do: rows per role, the size of its space, about how long it takes. All checks of a submission; nothing is queued."""
    check_type(request, (JSON,), REMEDY, needed=True)
    body = await small(request, MAX_BODY_BYTES)
    return ready(await slowly(foretell, services, body))


@router.get("/jobs", responses=json_of(Page[JobView], "A page of jobs, the newest first unless asked otherwise."))
def list_jobs(
    services: ServicesDep,
    _: Viewer,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: OnlyState = None,
    model: JobModel = None,
    name: JobName = None,
    search: Search = None,
    sort: Sort = "created",
    order: Annotated[Order, Query()] = "desc",
) -> Response:
    """The jobs of this server."""
    filters: dict[str, Any] = {"state": state, "model": model, "name": name, "search": search}
    return ready(services.jobs.page(cursor=cursor, limit=limit, sort=sort, descending=order == "desc", **filters))


@router.get("/jobs/{job_id:id}", responses={**json_of(JobDetail, "The job."), **problems(404)})
def show_job(job_id: JobId, services: ServicesDep, _: Viewer) -> Response:
    """A job: what was asked for, how far it is, and what it found."""
    return ready(services.jobs.text(job_id))


@router.delete("/jobs/{job_id:id}", status_code=204, responses=problems(404, 409))
def delete_job(job_id: JobId, services: ServicesDep, caller: Submitter) -> Response:
    """Forget a job with its trials and files. One that is running has to be cancelled first."""
    may_change(caller, services.jobs.owner(job_id))
    services.jobs.delete(job_id)
    return Response(status_code=204)


@router.post(
    "/jobs/{job_id:id}/cancel",
    responses={**json_of(JobView, "Cancelled."), **json_of(JobView, "It will have stopped within moments.", 202), **problems(404, 409)},
)
def cancel_job(job_id: JobId, services: ServicesDep, caller: Submitter) -> Response:
    """Stop a job. What it has finished is kept, and it can be resumed."""
    may_change(caller, services.jobs.owner(job_id))
    state = services.jobs.cancel(job_id)
    return _listed(services, job_id, 200 if state == JobState.CANCELLED else 202)


@router.post("/jobs/{job_id:id}/resume", status_code=202, responses={**json_of(JobView, "Queued again.", 202), **problems(404, 409)})
def resume_job(job_id: JobId, services: ServicesDep, caller: Submitter) -> Response:
    """Go on with a job that was cancelled, failed or cut off, from its finished trials."""
    may_change(caller, services.jobs.owner(job_id))
    services.jobs.resume(job_id)
    return _listed(services, job_id, 202)


def _listed(services: Services, job_id: str, status: int) -> Response:
    return ready(services.jobs.view(job_id).model_dump_json(exclude=NOT_LISTED), status)
