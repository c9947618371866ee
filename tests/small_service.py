"""The service's parts on a SQLite file, with an application of chosen routers, and a real web server for it in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import APIRouter, FastAPI

from server.api import problems
from server.api.hub import EventHub
from server.api.services import Services
from server.artifacts import Artifacts
from server.auth import Keys
from server.metrics import Metrics
from server.sessions import Sessions
from server.settings import Settings
from server.store.database import Database, sqlite_url
from server.store.events import EventReader
from server.store.files import FileStore
from server.store.jobs import JobStore
from server.store.keys import KeyStore
from server.store.sessions import SessionStore
from server.store.trial_lists import TrialReader
from tests.store_samples import add_job
from tuner.store import JobState
from tuner.wire import JobEvent


@contextmanager
def small_service(folder: Path, *, anonymous: bool = True, poll_seconds: float = 0.01) -> Iterator[Services]:
    """Everything but a gate; with an empty database."""
    database = Database(sqlite_url(folder / "small.db"))
    database.upgrade()
    events = EventReader(database)
    services = Services(
        settings=Settings(data_dir=folder),
        database=database,
        jobs=JobStore(database),
        trials=TrialReader(database),
        events=events,
        files=FileStore(database),
        keys=Keys(KeyStore(database)),
        sessions=Sessions(SessionStore(database)),
        artifacts=Artifacts(str(folder / "artifacts"), folder / "scratch"),
        gate=cast("Any", None),
        hub=EventHub(events, poll_seconds=poll_seconds),
        anonymous=anonymous,
    )
    try:
        yield services
    finally:
        services.hub.close()
        database.close()


def small_app(services: Services, *routers: APIRouter) -> FastAPI:
    app = FastAPI()
    app.state.services, app.state.metrics = services, Metrics()
    problems.install(app)
    for router in routers:
        app.include_router(router)
    return app


class Server(uvicorn.Server):
    """A web server whose streams end when it is asked to, as `tuner serve` has it."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
        self._hub = app.state.services.hub
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()  # Who connects now is answered as soon as it runs.
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, seconds: float = 20.0) -> bool:
        """Whether it has ended within that time."""
        self._hub.close()
        self.should_exit = True
        self._thread.join(seconds)
        return not self._thread.is_alive()


def job_at_work(services: Services, job_id: str = "job-1") -> str:
    """The lease of a new job that runs; it has two events."""
    add_job(services.jobs, job_id)
    claim = services.jobs.claim("node", 60)
    assert claim is not None
    return claim.lease


def tell(services: Services, lease: str, message: str, job_id: str = "job-1") -> None:
    """Add an event."""
    services.jobs.note(job_id, lease, event=JobEvent(seq=0, at=services.database.now(), kind="message", message=message))


def end_job(services: Services, lease: str, job_id: str = "job-1") -> None:
    services.jobs.settle(job_id, lease, JobState.FAILED)
