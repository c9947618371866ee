"""Errors as answers: RFC 9457, application/problem+json. What nobody foresaw is told to the log alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.artifacts import TooLarge
from server.auth import Forbidden, TooMany, Unauthorized
from server.store.database import Conflict, NotFound, StorageFull
from tuner.errors import AccutuneError, DataError, InputError, JobError, ModelError, PlanError, StorageError, WrongKind, is_full
from tuner.job import JobSpec, complaints
from tuner.wire import Problem, ProblemItem

__all__ = ["Conflict", "Forbidden", "NotFound", "TooLarge", "TooMany", "Unauthorized", "WrongType", "install", "problem"]

MEDIA_TYPE = "application/problem+json"
URN = "urn:problem-type:accutune"
MOST_ITEMS = 50
MOST_SIGNS = 4000
VALUE_SIGNS = 100
BUSY_SECONDS = 5
"""When to ask again while the database or the artefact store is away."""

DEFAULT_REMEDY = "Correct this and send the request again."
UNREADABLE = "the body must be JSON in UTF-8, and could not be read. Check it with a JSON validator and send it again."

log = logging.getLogger("accutune.http")
Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[Request, Any], Awaitable[Response]]

# status: (last part of the type, title, what the documentation says)
KINDS: dict[int, tuple[str, str, str]] = {
    400: ("bad-request", "The request cannot be read", "The request cannot be read."),
    401: ("unauthorized", "An API key is needed", "No API key, or one that is unknown, expired or revoked."),
    403: ("forbidden", "Not allowed", "The key may not do this."),
    404: ("not-found", "Not found", "There is no such thing."),
    405: ("method-not-allowed", "Method not allowed", "The address does not take this method."),
    408: ("too-slow", "The body came too slowly", "The body did not arrive in time."),
    409: ("conflict", "Not possible as things stand", "Not possible in the state that it is in."),
    413: ("too-large", "Too large", "More was sent than is taken."),
    415: ("wrong-type", "Wrong type of content", "Not a type that is taken here."),
    416: ("range", "Range not satisfiable", "The range lies outside the file."),
    422: ("invalid", "The request cannot be used", "Something is wrong; `errors` names each field with its rule and the way out."),
    429: ("too-many", "Too many requests", "Too many requests or jobs; try again after `Retry-After` seconds."),
    431: ("head-too-large", "Header fields too large", "Address and header fields are larger than is taken."),
    500: ("internal", "Internal error", "A fault of the server; the log has it under the request's id."),
    503: ("unavailable", "Not available now", "The database or the artefact store cannot be used; try again after `Retry-After` seconds."),
    507: ("disk-full", "The server's disk is full", "There is no room left on the server."),
}
TITLES: dict[type[InputError], str] = {
    JobError: "The job cannot be used",
    ModelError: "The model cannot be used",
    DataError: "The data cannot be used",
    PlanError: "The plan cannot be used",
}
AWAY = "the server cannot read or store what this needs. Try again in a moment; if it lasts, its operator finds the reason in the log."
FULL = "the server has no room left to store this. Ask its operator to free some, then send the request again."
FAULT = "the server failed in a way that nobody foresaw. Its log tells more under the request_id; quote that when you report it."


class WrongType(AccutuneError):
    """What was sent is of a type that is not taken here: HTTP 415."""


def problem(status: int, title: str, detail: str, errors: Sequence[ProblemItem] = (), headers: Mapping[str, str] | None = None) -> Response:
    """An error as an answer. The request's id is taken from the context."""
    body = Problem(
        type=f"{URN}:{KINDS[status][0]}" if status in KINDS else "about:blank",
        title=title,
        status=status,
        detail=_clean(detail),
        errors=tuple(errors[:MOST_ITEMS]),
        request_id=logs.request_id.get(),
    )
    return Response(body.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


def ERRORS(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The part of a route's `responses` that documents these errors, with an example. The schema is that of the whole document."""
    return {status: _documented(status) for status in statuses}


def parsed(model: type[Body], body: bytes) -> Body:
    """The body of a request as what it shall be; what is wrong with it becomes a 422 that names each field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from error


def install(app: FastAPI) -> None:
    """Have `app` answer every error with a problem.

    Call it before middleware is added that shall see the answers to unforeseen errors too: that of the log and the metrics."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(LastResort)


class LastResort:
    """ASGI middleware that turns what nobody foresaw into a 500 without details, and logs the details.

    FastAPI's own place for this lies outside all middleware, where an answer gets no request id and no line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            log.info("the caller went away")
        except Exception:
            if started or scope["type"] != "http":
                raise  # The web server cuts the connection, so that half an answer is not taken for a whole one, and logs why.
            log.exception("unforeseen error")
            await problem(500, KINDS[500][1], FAULT)(scope, receive, send)


def input_items(error: InputError) -> list[ProblemItem]:
    """What is wrong, field by field."""
    cause = error.__cause__
    if isinstance(cause, ValidationError) and cause.title == JobSpec.__name__:
        return [_item(field or "job", sentence) for field, sentence in complaints(cause)]
    return [_item(error.field or "request", str(error))]


async def _input(_request: Request, error: InputError) -> Response:
    title = next((title for kind, title in TITLES.items() if isinstance(error, kind)), KINDS[422][1])
    return problem(422, title, str(error), input_items(error))


async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    items = [_invalid_item(item) for item in error.errors()[:MOST_ITEMS]]
    return problem(422, KINDS[422][1], "; ".join(f"{item.field}: {item.rule}" for item in items), items)


async def _storage(_request: Request, error: StorageError) -> Response:
    """The text is for the operator: it may name folders and hosts, which are nothing for callers."""
    log.error("storage failed: %s", error)
    if isinstance(error, StorageFull) or (isinstance(error.__cause__, OSError) and is_full(error.__cause__)):
        return problem(507, KINDS[507][1], FULL)
    return problem(503, KINDS[503][1], AWAY, headers={"Retry-After": str(BUSY_SECONDS)})


async def _unauthorized(_request: Request, error: Unauthorized) -> Response:
    return problem(401, KINDS[401][1], str(error), headers={"WWW-Authenticate": "Bearer"})


async def _too_many(_request: Request, error: TooMany) -> Response:
    return problem(429, KINDS[429][1], str(error), headers={"Retry-After": str(error.retry_after)})


async def _http(request: Request, error: HTTPException) -> Response:
    """Errors of the framework, and what handlers raise of this kind."""
    status, detail = error.status_code, str(error.detail)
    if status < 400:
        return Response(status_code=status, headers=error.headers)
    if status == 400 and error.__cause__ is not None:
        # How FastAPI tells of a body that is no text; one that is text but no JSON it counts as invalid, and so is this.
        return problem(422, KINDS[422][1], UNREADABLE, [_item("body", UNREADABLE)])
    if status == 404 and detail == "Not Found":
        detail = "there is nothing at this address. All addresses are listed in /api/v1/openapi.json"
    if status == 405:
        # The framework's own header names the methods of one route, and an address may have several.
        allowed = ", ".join(_methods(request))
        detail = f"this address does not take {request.method[:20]}, only {allowed}. See /api/v1/openapi.json"
        return problem(405, KINDS[405][1], detail, headers={"Allow": allowed})
    return problem(status, KINDS[status][1] if status in KINDS else detail, detail, headers=error.headers)


def _methods(request: Request) -> list[str]:
    """What the address of the request takes, over all routes."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    routes = [route for route in iter_route_contexts(request.app.routes) if re.match(getattr(route, "path_regex", "(?!)"), path)]
    return sorted({method for route in routes for method in route.methods or ()})


def _plainly(status: int) -> Handler:
    async def handler(_request: Request, error: AccutuneError) -> Response:
        return problem(status, KINDS[status][1], str(error))

    return handler


HANDLERS: dict[type[Exception], Any] = {
    InputError: _input,
    StorageError: _storage,
    WrongKind: _plainly(415),
    WrongType: _plainly(415),
    TooLarge: _plainly(413),
    NotFound: _plainly(404),
    Conflict: _plainly(409),
    Unauthorized: _unauthorized,
    Forbidden: _plainly(403),
    TooMany: _too_many,
    RequestValidationError: _invalid,
    HTTPException: _http,
}


def _item(field: str, sentence: str) -> ProblemItem:
    """The sentence taken apart: errors name the rule first and the way out last, after a semicolon or a full stop."""
    sentence = _clean(sentence)
    got = re.search(r"(?s)\bgot ('?)(.+?)\1(?=[;.,] |[;.]?$)", sentence)
    breaks = list(re.finditer(r"; |\. ", sentence))
    rule, remedy = (sentence[: breaks[-1].start()], sentence[breaks[-1].end() :]) if breaks else (sentence, DEFAULT_REMEDY)
    return ProblemItem(field=_clean(field), value=got[2][:VALUE_SIGNS] if got else None, rule=rule, remedy=remedy)


# What FastAPI and pydantic say in their own words, in ours: (rule, remedy).
_WORDING = {
    "missing": ("is missing", "Add it."),
    "extra_forbidden": ("is not known here", "Leave it out, or check how it is spelt."),
    "json_invalid": ("must be valid JSON", "Check the body with a JSON validator and send it again."),
}


def _invalid_item(item: Any) -> ProblemItem:
    """One complaint of FastAPI about a path, a query, a header or a body."""
    kind, (_place, *where) = item["type"], item["loc"]
    parsing = kind == "json_invalid"
    field = "body" if parsing or not where else ".".join(map(str, where))
    rule, remedy = _WORDING.get(kind, (item["msg"].removeprefix("Value error, "), DEFAULT_REMEDY))
    if parsing:
        rule += f": {item['ctx']['error']}"
    simple = isinstance(item.get("input"), str | int | float) and not parsing
    value = _clean(str(item["input"]))[:VALUE_SIGNS] if simple else None
    return ProblemItem(field=_clean(field), value=value, rule=_clean(rule), remedy=remedy)


def _clean(text: str) -> str:
    """The text as UTF-8 can write it, and no longer than anybody reads: it may quote what a caller sent."""
    safe = text.encode(errors="replace").decode()
    return safe if len(safe) <= MOST_SIGNS else f"{safe[:MOST_SIGNS]} …"


def _documented(status: int) -> dict[str, Any]:
    kind, title, description = KINDS[status]
    example = Problem(type=f"{URN}:{kind}", title=title, status=status, detail=description, request_id="3f9c1e77b24d58a0")
    if status == 422:
        item = ProblemItem(field="budget.trials", value="0", rule="must be at least 1", remedy=DEFAULT_REMEDY)
        example = example.model_copy(update={"errors": (item,)})
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example.model_dump(mode="json", exclude_none=True)}
    documented: dict[str, Any] = {"description": description, "content": {MEDIA_TYPE: content}}
    if headers := dict(_headers(status)):
        documented["headers"] = headers
    return documented


def _headers(status: int) -> Iterator[tuple[str, Any]]:
    if status == 401:
        yield "WWW-Authenticate", {"description": "Always Bearer.", "schema": {"type": "string"}}
    if status in (429, 503):
        yield "Retry-After", {"description": "Seconds until another try makes sense.", "schema": {"type": "integer"}}
