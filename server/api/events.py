"""The event stream of a job, as server-sent events. What is sent is the stored text: no event is parsed on the way."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Annotated, Any, cast

import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from server.api.answers import problems
from server.api.guards import Viewer, proof
from server.api.hub import EventHub, StoredEvent
from server.api.paths import JobId
from server.api.services import ServicesDep
from server.store.events import unknown_job
from tuner.errors import AccutuneError, InputError
from tuner.wire import SETTLED

RECHECK_SECONDS = 60.0
"""How long a stream may outlive its key or session."""
RETRY = b"retry: 2000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
SEQ = "^[0-9]{1,15}$"
KIND = re.compile(r'"kind": ?"([a-z]+)"')
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
EXAMPLE = (
    'retry: 2000\n\nid: 1\nevent: state\ndata: {"seq":1,"at":"2026-11-21T10:15:30Z","kind":"state","state":"queued"}\n\n: keep-alive\n\n'
)
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One server-sent event per step: `id` counts from 1, `event` is the kind, `data` a JobEvent as JSON. "
        "The stream ends after the event that settles the job.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": EXAMPLE}},
    },
    204: {"description": "The job is settled and has no event after that one; there is no need to ask again."},
}

Check = Callable[[], object]
"""Raises an AccutuneError where the caller may no longer listen."""
SeenHeader = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="The `id` of the last event that was received; the stream goes on after it.",
        json_schema_extra={"pattern": SEQ},
    ),
]
SeenQuery = Annotated[
    str | None,
    Query(alias="after", description="The same for who cannot set headers; the header wins.", json_schema_extra={"pattern": SEQ}),
]

router = APIRouter(tags=["jobs"])


class EventStream(StreamingResponse):
    """Closes its generator in whatever way the stream ends, so that nothing stays behind."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        async with aclosing(cast("AsyncGenerator[bytes, None]", self.body_iterator)):
            await super().stream_response(send)


@router.get("/jobs/{job_id:id}/events", response_class=Response, responses=STREAM | problems(401, 403, 404, 422, 429, 503))
def job_events(
    job_id: JobId, request: Request, services: ServicesDep, _caller: Viewer, header: SeenHeader = None, query: SeenQuery = None
) -> Response:
    """Follow a job as it runs."""
    seen = last_seen(header, query)
    found = services.events.latest([job_id]).get(job_id)
    if found is None:
        raise unknown_job(job_id)
    last, state = found
    if state in SETTLED and seen >= last:
        return Response(status_code=204)
    check = proof(request, services)
    # An id from before the database was put back to a backup must not hold events up until it is reached again.
    return EventStream(stream(services.hub, job_id, min(seen, last), check), headers=HEADERS)


async def stream(
    hub: EventHub, job_id: str, after: int, check: Check | None, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[bytes]:
    """The bytes of the stream. The caller is checked again before anything is sent `RECHECK_SECONDS` after the last time."""
    yield RETRY
    checked = clock()
    async with aclosing(cast("AsyncGenerator[list[StoredEvent], None]", hub.events(job_id, after))) as batches:
        async for batch in batches:
            if check is not None and clock() - checked >= RECHECK_SECONDS:
                if not await may_go_on(check):
                    return
                checked = clock()
            yield encoded(batch) if batch else KEEP_ALIVE


async def may_go_on(check: Check) -> bool:
    try:
        await anyio.to_thread.run_sync(check, abandon_on_cancel=True)
    except AccutuneError:  # Also where it cannot be known now: the client comes back in two seconds and is told why.
        return False
    return True


def last_seen(header: str | None, query: str | None) -> int:
    """The number of the last event the caller has; 0: none. A browser that reconnects sends the header beside the URL's query."""
    given = [_event_number(name, value) for name, value in (("Last-Event-ID", header), ("after", query)) if value is not None]
    return given[0] if given else 0


def _event_number(name: str, value: str) -> int:
    if not re.fullmatch(SEQ, value, re.ASCII):
        raise InputError(
            f"{name} must be the id of an event, a whole number from 0, got '{value[:40]}'. "
            "Send the id of the last event that you received, or leave it out to get all of them.",
            field=name,
        )
    return int(value)


def encoded(batch: Iterable[StoredEvent]) -> bytes:
    """Events as they stand on the wire. The stored JSON is one line, and names its kind before any free text."""
    return "".join(f"id: {seq}\nevent: {kind_of(text)}\ndata: {text}\n\n" for seq, text in batch).encode()


def kind_of(text: str) -> str:
    found = KIND.search(text)
    return found[1] if found else "message"
