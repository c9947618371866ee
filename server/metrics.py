"""What the service tells Prometheus, in a registry of its own. Every label has a bounded set of values."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import tuner
from tuner.results import TrialState
from tuner.store import JobState

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
TRIAL_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
TRIAL_STATES = frozenset(state.value for state in TrialState)
OTHER = "other"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Queue:
    """The jobs as of one moment: their number by state, and how long the oldest queued one has waited."""

    jobs: Mapping[JobState, int] = field(default_factory=dict)
    age_seconds: float = 0.0

    @classmethod
    def at(cls, now: datetime, jobs: Mapping[JobState, int], oldest: datetime | None) -> Queue:
        """oldest: when the longest waiting job came; None where none waits."""
        return cls(jobs, max(0.0, (now - oldest).total_seconds()) if oldest else 0.0)


class Metrics:
    """One for the process; any thread may observe."""

    def __init__(self, version: str = tuner.__version__) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # Half as many lines, and nobody asks when a counter began.
        self.registry = registry = CollectorRegistry()
        self._trial_seconds = Histogram(
            "accutune_trial_seconds", "Seconds that finished trials took.", buckets=TRIAL_SECONDS, registry=registry
        )
        self._trials = Counter("accutune_trials", "Trials finished since the start, by state.", ["state"], registry=registry)
        self._store = Histogram(
            "accutune_store_seconds", "Seconds of work on the stores.", ["operation"], buckets=STORE_SECONDS, registry=registry
        )
        self._requests = Counter("accutune_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry)
        self._http = Histogram(
            "accutune_http_seconds", "Seconds until the answer began.", ["route"], buckets=HTTP_SECONDS, registry=registry
        )
        self._streams = Gauge("accutune_event_streams", "Open event streams.", registry=registry)
        Info("accutune_build", "The version that runs.", registry=registry).info({"version": version})

    def observe_trial(self, seconds: float, state: str) -> None:
        self._trial_seconds.observe(seconds)
        self._trials.labels(state if state in TRIAL_STATES else OTHER).inc()

    def observe_store(self, operation: str, seconds: float) -> None:
        """operation: a word of the program's own, like read, write; never anything a caller has sent."""
        self._store.labels(operation).observe(seconds)

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Observes how long the block takes, also where it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe_store(operation, time.perf_counter() - began)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method if method in METHODS else OTHER, route, str(status)).inc()
        self._http.labels(route).observe(seconds)

    def page(self, queue: Queue | None, streams: int) -> bytes:
        """Everything in Prometheus' text format. queue: None where the store cannot be read; its lines are missing then."""
        self._streams.set(streams)
        return generate_latest(_Together(self.registry, [] if queue is None else list(queue_metrics(queue))))


class _Together(Collector):
    """The registry with what was read for this page."""

    def __init__(self, registry: CollectorRegistry, extra: list[Metric]) -> None:
        self._registry, self._extra = registry, extra

    def collect(self) -> Iterable[Metric]:
        yield from self._extra
        yield from self._registry.collect()


def queue_metrics(queue: Queue) -> Iterator[Metric]:
    """Every state has a line, also with no job in it."""
    jobs = GaugeMetricFamily("accutune_jobs", "Jobs by state.", labels=["state"])
    for state in JobState:
        jobs.add_metric([state.value], queue.jobs.get(state, 0))
    yield jobs
    yield GaugeMetricFamily("accutune_queue_age_seconds", "How long the oldest queued job has waited; 0: none waits.", queue.age_seconds)


class HttpMetrics:
    """ASGI middleware that counts and times requests by the template of their route, never by what callers write in it."""

    def __init__(self, app: App, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app, self._metrics, self._clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, told = self._clock(), False

        async def watched(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start" and not told:
                told = True
                self._tell(scope, message["status"], began)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if not told:
                self._tell(scope, 500, began)
            raise

    def _tell(self, scope: Scope, status: int, began: float) -> None:
        self._metrics.observe_request(scope["method"], route_template(scope), status, self._clock() - began)


def route_template(scope: Scope) -> str:
    """Like /api/v1/jobs/{job_id}; `unmatched` where no route took the request."""
    # FastAPI keeps the route as it was included, with its prefix, here; `route` alone lacks the prefix.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    return getattr(route, "path_format", None) or "unmatched"
