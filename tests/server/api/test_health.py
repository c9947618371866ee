"""Whether the server lives, whether it can work, and the page of metrics."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

import tuner
from server.api import health
from server.api.health import Readiness, standard_checks
from server.api.services import Services
from tests.small_service import job_at_work, small_app, small_service
from tests.store_samples import add_job, watched_selects
from tuner.errors import StorageError
from tuner.wire import KeyRequest


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with small_service(tmp_path) as parts:
        yield parts


def app_of(services: Services, alive: bool = True) -> FastAPI:
    app = small_app(services, health.router)
    app.state.readiness = Readiness(standard_checks(services, lambda: alive))
    return app


def get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def figures(page: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(page)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_a_living_server_asks_nobody(services: Services) -> None:
    app = app_of(services)
    with watched_selects() as selects:
        response = get(app, "/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "version": tuner.__version__})
    assert selects == []


def test_a_server_that_can_work_is_ready(services: Services) -> None:
    response = get(app_of(services), "/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")
    assert len(list(services.artifacts.listing())) == 1  # It was really written to.


def test_what_is_not_ready_is_named_and_no_more(services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    services.database.close()
    (tmp_path / "small.db").rename(tmp_path / "elsewhere.db")
    app = app_of(services, alive=False)
    with caplog.at_level(logging.WARNING, "accutune.health"):
        response = get(app, "/readyz")
    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
    body = response.json()
    assert body["detail"].startswith("not ready: database, scheduler. Look into the server's log for the reason")
    assert [item["field"] for item in body["errors"]] == ["database", "scheduler"]
    assert str(tmp_path) not in response.text
    reasons = [record.message for record in caplog.records if record.name == "accutune.health"]
    assert reasons[0].startswith("not ready: database: ")
    assert reasons[1] == "not ready: scheduler: the scheduler's thread has ended. Restart the server."


def test_an_artefact_store_that_gives_back_something_else_is_not_ready(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.artifacts, "open", lambda _sha256: iter([b"something else"]))
    response = get(app_of(services), "/readyz")
    assert response.json()["detail"].startswith("not ready: artifacts.")


def counted(clock: Callable[[], float], fails: list[bool]) -> tuple[Readiness, list[float]]:
    """A readiness whose one check fails as long as `fails` holds something, and the moments of its checks."""
    moments: list[float] = []

    def check() -> None:
        moments.append(clock())
        if fails:
            raise StorageError("away")

    return Readiness({"database": check}, clock), moments


def test_an_answer_holds_for_two_seconds() -> None:
    now, fails = [0.0], [True]
    readiness, moments = counted(lambda: now[0], fails)
    found = []
    for now[0] in (0.0, 1.9, 2.0, 3.9):
        found.append(readiness.missing())
        fails.clear()
    assert found == [("database",), ("database",), (), ()]
    assert moments == [0.0, 2.0]


def test_checks_that_hang_cost_one_thread_and_are_told() -> None:
    now, entered, go_on, hang = [0.0], threading.Event(), threading.Event(), [False]

    def check() -> None:
        if hang[0]:
            entered.set()
            assert go_on.wait(20)

    readiness = Readiness({"artifacts": check}, lambda: now[0])
    assert readiness.missing() == ()
    now[0], hang[0] = 5.0, True
    stuck = threading.Thread(target=readiness.missing)
    stuck.start()
    assert entered.wait(20)
    assert readiness.missing() == ()  # The answer of five seconds ago.
    now[0] = 10.0
    assert readiness.missing() == ("artifacts",)
    go_on.set()
    stuck.join()
    assert readiness.missing() == ()


def test_the_page_of_metrics(services: Services) -> None:
    job_at_work(services, "job-1")
    add_job(services.jobs, "job-2")
    app = app_of(services)
    app.state.metrics.observe_trial(2.0, "complete")
    response = get(app, "/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = figures(response.text)
    assert [found["accutune_jobs", state] for state in ("queued", "running", "failed")] == [1, 1, 0]
    assert found["accutune_queue_age_seconds",] >= 0
    assert found["accutune_trials_total", "complete"] == 1
    assert found["accutune_event_streams",] == 0


def test_metrics_without_a_database(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StorageError("the database is away")

    monkeypatch.setattr(services.jobs, "counts", away)
    found = figures(get(app_of(services), "/metrics").text)
    assert found["accutune_build_info", tuner.__version__] == 1
    assert ("accutune_jobs", "queued") not in found


def test_metrics_need_a_key_and_health_does_not(tmp_path: Path) -> None:
    with small_service(tmp_path, anonymous=False) as services:
        app, key = app_of(services), services.keys.make(KeyRequest(name="prometheus", role="viewer")).key
        assert [get(app, path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]
        assert get(app, "/metrics", authorization=f"Bearer {key}").status_code == 200
