"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

import tuner
from server.api import catalogue, compare, events, figures, files, health, jobs, keys, problems, results, session, system, trials
from server.api.answers import PREFIX
from server.api.health import Readiness, standard_checks
from server.api.schema import TAGS, completed
from server.api.services import Services
from server.dashboard import pages
from server.logs import RequestLog
from server.metrics import HttpMetrics, Metrics, route_template
from server.scheduler import Scheduler

ABOUT = """\
Upload a trained model and data, say how much accuracy may be lost, and get back the smallest or fastest model that still meets
that target, with proof. Errors are `application/problem+json` (RFC 9457): `errors` names each field, its rule and the way out.
Lists come in pages; `next` is the `cursor` of the following one."""

THREADS = {"sqlite": 2, "postgresql": 4}
"""How many handlers run at once. They compute in Python, one at a time: more threads only make each other wait, unless they wait for a
database elsewhere."""


class Api(FastAPI):
    """FastAPI with our request log around everything, and its document completed by ours."""

    def build_middleware_stack(self) -> ASGIApp:
        # Around the framework's own outermost layer too, which answers what broke: such an answer needs its id the most.
        return RequestLog(super().build_middleware_stack(), route_template)

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = completed(super().openapi())
        return self.openapi_schema


def create_app(services: Services, metrics: Metrics | None = None, scheduler: Scheduler | None = None) -> FastAPI:
    """The application on opened parts. It starts the scheduler, where there is one, and stops it when it shuts down."""
    app = Api(
        title="Accutune",
        version=tuner.__version__,
        summary="The smallest or fastest model that still meets an accuracy target.",
        description=ABOUT,
        openapi_tags=TAGS,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_running(services, scheduler),
        generate_unique_id_function=_operation_id,
    )
    # Set here and not above, where the framework would warn: the prefix is known to the settings alone.
    app.root_path = services.settings.root_path.rstrip("/")
    app.state.services = services
    app.state.metrics = metrics or Metrics()
    app.state.readiness = Readiness(standard_checks(services, lambda: scheduler is None or scheduler.alive))
    problems.install(app)
    app.add_middleware(HttpMetrics, metrics=app.state.metrics)
    # Those that are asked for most stand first: a request is compared with one route after the other.
    for part in (jobs, trials, results, compare, figures, events, files, catalogue, keys, session, system):
        app.include_router(part.router, prefix=PREFIX)
    app.include_router(health.router)
    app.include_router(pages.router)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _running(services: Services, scheduler: Scheduler | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS[services.database.dialect]
        if scheduler is not None:
            scheduler.start()
        yield
        services.hub.close()
        if scheduler is not None:
            await run_in_threadpool(scheduler.stop)

    return lifespan
