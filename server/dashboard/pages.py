"""The pages: a template each, filled by the page's module from the REST interface."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

import tuner
from server.api.answers import PREFIX
from server.api.compare import MOST_TRIALS
from server.api.guards import Viewer, identify
from server.api.paths import JobId, TrialNumber
from server.api.problems import KINDS
from server.api.services import Services, ServicesDep, services_of
from server.api.uploads import ARRAYS, EXPORT, GB, UNTAKEN
from server.auth import Caller, Forbidden, TooMany, Unauthorized
from server.dashboard.assets import Assets
from server.store.database import NotFound
from tuner.errors import AccutuneError, StorageError

ASSETS = Assets()
# The second source is the hash of nothing: Plotly fills an empty style sheet by script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
LEFT = {"plan": "json", "rows": "json", "tensors": "safetensors"}
"""What a trial may leave, and the ending of its name."""
STATIC_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
STATUSES: dict[type[AccutuneError], int] = {Forbidden: 403, NotFound: 404, TooMany: 429, StorageError: 503}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Page(APIRoute):
    """A route whose errors are pages too. Who is not known is sent to sign in, and comes back."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Unauthorized:
                return await _to_sign_in(request)
            except RequestValidationError:
                return await _failed(request, 404, "there is no page at this address")
            except AccutuneError as error:
                status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 422)
                return await _failed(request, status, str(error) if status != 503 else KINDS[503][2])

        return answer


router = APIRouter(route_class=Page, include_in_schema=False, default_response_class=Response)


@router.get("/")
async def jobs_page(request: Request, caller: Viewer) -> Response:
    return page(request, "jobs.html", caller)


@router.get("/new")
async def new_page(request: Request, services: ServicesDep, caller: Viewer) -> Response:
    most = {"most_parallel": services.settings.parallel, "most_bytes": int(services.settings.max_upload_gb * GB)}
    return page(request, "new.html", caller, untaken=UNTAKEN, export=EXPORT, arrays=ARRAYS, **most)


@router.get("/jobs/{job_id:id}")
def job_page(request: Request, job_id: JobId, services: ServicesDep, caller: Viewer) -> Response:
    return page(request, "job.html", caller, job=services.jobs.view(job_id))


@router.get("/jobs/{job_id:id}/layers")
def layers_page(request: Request, job_id: JobId, services: ServicesDep, caller: Viewer) -> Response:
    return page(request, "layers.html", caller, job=services.jobs.view(job_id))


@router.get("/jobs/{job_id:id}/compare")
def compare_page(
    request: Request, job_id: JobId, services: ServicesDep, caller: Viewer, trial: Annotated[list[TrialNumber] | None, Query()] = None
) -> Response:
    asked = list(dict.fromkeys(trial or []))[:MOST_TRIALS]
    for number in asked:
        services.trials.text(job_id, number)
    scored = [number for number in asked if _left(services, job_id, number, "rows.json")]
    return page(request, "compare.html", caller, job=services.jobs.view(job_id), trials=asked, scored=scored)


@router.get("/jobs/{job_id:id}/trials/{number:number}")
def trial_page(request: Request, job_id: JobId, number: TrialNumber, services: ServicesDep, caller: Viewer) -> Response:
    services.trials.text(job_id, number)
    left = {what: _left(services, job_id, number, f"{what}.{kind}") for what, kind in LEFT.items()}
    following = _found(services.trials.text, job_id, number + 1)
    return page(request, "trial.html", caller, job=services.jobs.view(job_id), number=number, left=left, following=following)


@router.get("/system")
async def system_page(request: Request, caller: Viewer) -> Response:
    return page(request, "system.html", caller)


@router.get("/signin")
async def sign_in_page(request: Request) -> Response:
    return page(request, "signin.html", None)


@router.get("/static/{digest}/{name}")
def static_file(request: Request, digest: str, name: str) -> Response:
    """A file of the pages. Its address changes with its content."""
    found = ASSETS.get(digest, name)
    if found is None:
        raise NotFound("there is no such file in this version; reload the page")
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, headers=STATIC_HEADERS | {"Content-Encoding": "gzip"}, media_type=found.media_type)
    return Response(found.body, headers=STATIC_HEADERS, media_type=found.media_type)


def page(request: Request, template: str, caller: Caller | None, status: int = 200, **content: Any) -> Response:
    """A page for this caller; None where nobody is known."""
    root = request.scope.get("root_path", "")
    known = {
        "root": root,
        "api": f"{root}{PREFIX}",
        "static": f"{root}/static/{ASSETS.digest}",
        "style_marks": ASSETS.style_marks,
        "version": tuner.__version__,
        "caller": caller,
        "path": request.scope["path"].removeprefix(root),
    }
    html = _templates().get_template(template).render(known | content)
    return Response(html, status, HEADERS, "text/html; charset=utf-8")


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(FilePath(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _left(services: Services, job_id: str, number: int, file: str) -> bool:
    """Has a trial left this? The pages do not ask the REST interface for what is not there."""
    return _found(services.jobs.artifact, job_id, f"trials/{number}.{file}")


def _found(look: Callable[..., object], *place: object) -> bool:
    try:
        look(*place)
    except NotFound:
        return False
    return True


async def _to_sign_in(request: Request) -> Response:
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    root = request.scope.get("root_path", "")
    return Response(status_code=303, headers=HEADERS | {"Location": f"{root}/signin?next={quote(asked, safe='')}"})


async def _failed(request: Request, status: int, detail: str) -> Response:
    """An error as a page, with the navigation of whoever asks."""
    try:
        caller = await identify(request, await services_of(request))
    except AccutuneError:
        caller = None
    return await run_in_threadpool(page, request, "error.html", caller, status, title=KINDS[status][1], detail=detail)
