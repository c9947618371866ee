"""What Prometheus reads, parsed with its own parser."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from prometheus_client.parser import text_string_to_metric_families

import tuner
from server.metrics import HttpMetrics, Metrics, Queue
from tuner.store import JobState

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EMPTY = Queue()


def samples(metrics: Metrics, queue: Queue | None = EMPTY, streams: int = 0) -> dict[tuple[str, ...], float]:
    """{(name, label values in the order of their names …): value}."""
    families = text_string_to_metric_families(metrics.page(queue, streams).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_state_of_a_job_has_a_line() -> None:
    found = samples(Metrics(), Queue.at(NOW, {JobState.QUEUED: 3, JobState.FAILED: 1}, NOW - timedelta(seconds=90)))
    jobs = {key[1]: value for key, value in found.items() if key[0] == "accutune_jobs"}
    assert jobs == {"queued": 3, "running": 0, "succeeded": 0, "failed": 1, "cancelled": 0, "interrupted": 0}
    assert found["accutune_queue_age_seconds",] == 90


@pytest.mark.parametrize("oldest", [None, NOW + timedelta(seconds=5)])
def test_an_empty_queue_and_a_clock_that_was_set_back_have_no_age(oldest: datetime | None) -> None:
    assert samples(Metrics(), Queue.at(NOW, {}, oldest))["accutune_queue_age_seconds",] == 0


def test_without_a_store_the_other_figures_are_still_there() -> None:
    found = samples(Metrics(), None, streams=7)
    assert found["accutune_event_streams",] == 7
    assert not [key for key in found if key[0] in ("accutune_jobs", "accutune_queue_age_seconds")]


def test_trials_are_counted_and_timed() -> None:
    metrics = Metrics()
    for seconds, state in ((0.2, "complete"), (40.0, "complete"), (3.0, "failed"), (1.0, "a state of tomorrow")):
        metrics.observe_trial(seconds, state)
    found = samples(metrics)
    assert [found["accutune_trials_total", state] for state in ("complete", "failed", "other")] == [2, 1, 1]
    assert found["accutune_trial_seconds_count",] == 4
    assert found["accutune_trial_seconds_sum",] == pytest.approx(44.2)
    assert [found["accutune_trial_seconds_bucket", le] for le in ("0.25", "5.0", "60.0")] == [1, 3, 4]


def test_store_work_is_timed_also_where_it_fails() -> None:
    metrics = Metrics()
    with metrics.timed("read"):
        pass
    with pytest.raises(ZeroDivisionError), metrics.timed("read"):
        _ = 1 / 0
    metrics.observe_store("write", 0.02)
    found = samples(metrics)
    assert (found["accutune_store_seconds_count", "read"], found["accutune_store_seconds_count", "write"]) == (2, 1)
    assert found["accutune_store_seconds_sum", "write"] == pytest.approx(0.02)


def test_the_version_and_no_line_that_nobody_reads() -> None:
    found = samples(Metrics())
    assert found["accutune_build_info", tuner.__version__] == 1
    assert not [key for key in found if key[0].endswith("_created")]


def test_two_registries_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.observe_trial(1.0, "complete")
    assert ("accutune_trials_total", "complete") not in samples(second)


def app_with(metrics: Metrics, clock: Any) -> FastAPI:
    app, router, inner = FastAPI(), APIRouter(), APIRouter()

    @inner.get("/jobs/{job_id}/trials/{number}")
    def trial(job_id: str, number: int) -> str:
        return f"{job_id} {number}"

    @router.get("/broken")
    def broken() -> None:
        raise RuntimeError("as planned")

    @app.get("/healthz")
    def healthz() -> Response:
        return Response(status_code=204)

    router.include_router(inner)
    app.include_router(router, prefix="/api/v1")
    app.add_middleware(HttpMetrics, metrics=metrics, clock=clock)
    return app


def test_requests_are_counted_by_template() -> None:
    metrics, ticks = Metrics(), iter(range(1000))
    jobs = "/api/v1/jobs"
    paths = (f"{jobs}/a/trials/1", f"{jobs}/b/trials/2", f"{jobs}/b/trials/x", "/healthz", "/api/v1/broken", "/etc/passwd")

    async def ask() -> None:
        transport = httpx.ASGITransport(app_with(metrics, lambda: next(ticks)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in paths:
                await client.get(path)
            for method in ("POST", "BREW"):
                await client.request(method, "/healthz")

    asyncio.run(ask())
    found = samples(metrics)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "accutune_http_requests_total"}
    trial = "/api/v1/jobs/{job_id}/trials/{number}"
    assert requests == {
        ("GET", trial, "200"): 2,
        ("GET", trial, "422"): 1,
        ("GET", "/healthz", "204"): 1,
        ("GET", "/api/v1/broken", "500"): 1,
        ("GET", "unmatched", "404"): 1,
        ("POST", "/healthz", "405"): 1,
        ("other", "/healthz", "405"): 1,
    }
    assert found["accutune_http_seconds_count", trial] == 3
    assert found["accutune_http_seconds_sum", trial] == 3


def test_a_request_is_counted_when_its_answer_begins() -> None:
    metrics, seen = Metrics(), []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append(samples(metrics).get(("accutune_http_requests_total", "GET", "unmatched", "200")))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def nothing(*_message: Any) -> Any:
        return {}

    asyncio.run(HttpMetrics(app, metrics)({"type": "http", "method": "GET"}, nothing, nothing))
    asyncio.run(HttpMetrics(app, metrics)({"type": "lifespan"}, nothing, nothing))
    assert seen == [1, 1]
