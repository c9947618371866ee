"""Whether the server lives, whether it can work, and its metrics for Prometheus."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

import tuner
from search_spaces.schemes import Frozen
from server.api.answers import json_of, problems, ready
from server.api.guards import Viewer
from server.api.problems import problem
from server.api.services import Services, ServicesDep
from server.metrics import CONTENT_TYPE, Metrics, Queue
from tuner.errors import AccutuneError, StorageError
from tuner.wire import ProblemItem

FRESH_SECONDS = 2.0
"""How long an answer holds: the route is open to everybody, and each check costs a write to the artefact store."""
PATIENCE_SECONDS = 10.0
"""How long an old answer stands in for checks that are still going on."""
MARK = b"accutune writes and reads this to see whether the artefact store works\n"

PAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}

log = logging.getLogger("accutune.health")
Checks = Mapping[str, Callable[[], None]]
"""By what is checked; a check raises where that is not ready."""
router = APIRouter(tags=["health"])


class Health(Frozen):
    """The answer of a server that lives."""

    status: str = "ok"
    version: str = tuner.__version__


class Readiness:
    """Runs the checks, one round at a time however many ask, so that checks that hang cost one thread."""

    def __init__(self, checks: Checks, clock: Callable[[], float] = time.monotonic) -> None:
        self._checks, self._clock = checks, clock
        self._busy = threading.Lock()
        self._asked = float("-inf")
        self._missing: tuple[str, ...] = ()
        self._known = float("-inf")

    def missing(self) -> tuple[str, ...]:
        """The names of what is not ready."""
        if self._clock() - self._known < FRESH_SECONDS:
            return self._missing
        if not self._busy.acquire(blocking=False):
            return self._missing if self._clock() - self._known < PATIENCE_SECONDS else tuple(self._checks)
        try:
            self._missing = tuple(name for name, check in self._checks.items() if not passes(name, check))
            self._known = self._clock()
        finally:
            self._busy.release()
        return self._missing


def passes(name: str, check: Callable[[], None]) -> bool:
    """The reason goes to the log alone: paths and addresses are nothing for callers without a key."""
    try:
        check()
    except Exception as error:
        log.warning("not ready: %s: %s", name, error, exc_info=not isinstance(error, AccutuneError))
        return False
    return True


def standard_checks(services: Services, scheduler_alive: Callable[[], bool]) -> Checks:
    """What a server needs for its work."""

    def artifacts() -> None:
        stored = services.artifacts.put_bytes(MARK)
        if b"".join(services.artifacts.open(stored.sha256)) != MARK:
            raise StorageError("the artefact store gives back other bytes than were written")

    def scheduler() -> None:
        if not scheduler_alive():
            raise AccutuneError("the scheduler's thread has ended. Restart the server.")

    return {"database": services.database.check, "artifacts": artifacts, "scheduler": scheduler}


# Coroutines, because FastAPI would hand plain functions to threads.
async def readiness_of(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


async def metrics_of(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


@router.get("/healthz", responses=json_of(Health, "The process lives."))
async def healthz() -> Response:
    """The process lives and answers. Nothing else is looked at."""
    return ready(Health())


@router.get("/readyz", responses=json_of(Health, "Everything that is needed works.") | problems(503))
def readyz(readiness: Annotated[Readiness, Depends(readiness_of)]) -> Response:
    """The database, the artefact store and the scheduler can be worked with."""
    missing = readiness.missing()
    if not missing:
        return ready(Health(status="ready"))
    remedy = "Look into the server's log for the reason; a probe will succeed as soon as it is gone."
    items = [ProblemItem(field=name, rule=f"{name} must work", remedy=remedy) for name in missing]
    return problem(503, "Not ready", f"not ready: {', '.join(missing)}. {remedy}", items)


@router.get(
    "/metrics",
    response_class=Response,
    responses=PAGE | problems(401, 403, 429),
)
def prometheus(services: ServicesDep, _caller: Viewer, metrics: Annotated[Metrics, Depends(metrics_of)]) -> Response:
    """What Prometheus scrapes."""
    return Response(metrics.page(queue_of(services), services.hub.streams), media_type=CONTENT_TYPE)


def queue_of(services: Services) -> Queue | None:
    """None where the database does not answer: the other figures are wanted then most of all."""
    try:
        jobs = services.jobs
        return Queue.at(services.database.now(), jobs.counts(), jobs.oldest_queued())
    except StorageError:
        return None
