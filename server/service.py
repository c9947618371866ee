"""Opens everything that a running server needs, from its settings, and closes it again."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from server.api.hub import EventHub
from server.api.services import Services
from server.artifacts import Artifacts
from server.auth import Keys
from server.gate import Gate
from server.metrics import Metrics
from server.runner import Errand
from server.scheduler import Scheduler
from server.sessions import Sessions
from server.settings import Settings
from server.store.database import Database, Observe, sqlite_url
from server.store.events import EventReader
from server.store.files import FileStore
from server.store.jobs import Claim, JobStore
from server.store.keys import KeyStore
from server.store.sessions import SessionStore
from server.store.trial_lists import TrialReader
from tuner.errors import JobError, writing
from tuner.files import write_text

KEYS_NEEDED = (
    "host {host} can be reached from other machines, so callers must show API keys, and there is none yet. "
    "Make one with: tuner keys create NAME --role admin --data-dir {data_dir}   (or stay on --host 127.0.0.1)"
)


@dataclass(frozen=True)
class Service:
    """A server's parts, opened."""

    services: Services
    scheduler: Scheduler
    metrics: Metrics


def open_database(settings: Settings, observe: Observe = lambda _operation, _seconds: None) -> Database:
    """The database of the settings; without a URL, a SQLite file in the data folder."""
    with writing(f"the data folder {settings.data_dir}"):
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = settings.database_url
    return Database(url.get_secret_value() if url else sqlite_url(settings.data_dir.resolve() / "accutune.db"), observe=observe)


def open_artifacts(settings: Settings) -> Artifacts:
    return Artifacts(_artifacts_url(settings), _scratch(settings))


@contextmanager
def open_service(settings: Settings) -> Iterator[Service]:
    """Everything for one server, its database upgraded. JobError where it may not start as it is set up."""
    with ExitStack() as stack:
        metrics = Metrics()
        database = open_database(settings, metrics.observe_store)
        stack.callback(database.close)
        stack.enter_context(_only_server(settings.data_dir))
        database.upgrade()
        keys = KeyStore(database)
        if not is_loopback(settings.host) and not keys.any_active():
            raise JobError(KEYS_NEEDED.format(host=settings.host, data_dir=settings.data_dir))
        unpacked = settings.max_unpacked_gb
        gate = Gate(settings.data_dir / "gate", settings.inspect_memory_gb, settings.inspect_seconds, file_gb=unpacked)
        stack.callback(gate.close)
        threading.Thread(target=gate.warm, daemon=True).start()
        events = EventReader(database)
        hub = EventHub(events)
        services = Services(
            settings=settings,
            database=database,
            jobs=JobStore(database),
            trials=TrialReader(database),
            events=events,
            files=FileStore(database),
            keys=Keys(keys),
            sessions=Sessions(SessionStore(database)),
            artifacts=open_artifacts(settings),
            gate=gate,
            hub=hub,
            # Not where all keys are revoked or expired: whoever wanted keys once does not want strangers now.
            anonymous=not keys.any(),
        )
        scheduler = Scheduler(database, settings, _node(settings.data_dir), _errands(settings, database), metrics.observe_trial)
        yield Service(services, scheduler, metrics)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _errands(settings: Settings, database: Database) -> _Errands:
    return _Errands(settings, SecretStr(database.url))


@dataclass(frozen=True)
class _Errands:
    """What each runner is told."""

    settings: Settings
    database_url: SecretStr

    def __call__(self, claim: Claim) -> str:
        settings = self.settings
        return Errand(
            database_url=self.database_url,
            artifacts_url=_artifacts_url(settings),
            scratch=str(_scratch(settings)),
            jobs_folder=str(settings.data_dir.resolve() / "jobs"),
            job_id=claim.job_id,
            lease=claim.lease,
            parent=os.getpid(),
            parallel=settings.parallel,
            memory_gb=settings.trial_memory_gb,
        ).as_line()


def _artifacts_url(settings: Settings) -> str:
    return settings.artifacts_url or str(settings.data_dir.resolve() / "artifacts")


def _scratch(settings: Settings) -> Path:
    return settings.data_dir.resolve() / "scratch"


@contextmanager
def _only_server(folder: Path) -> Iterator[None]:
    """One server to a data folder: what a former one left running can only be ended by somebody who knows that it is gone."""
    with writing(f"the data folder {folder}"), (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another server is running on the data folder {folder}; end it, or give this one another --data-dir") from None
        yield


def _node(folder: Path) -> str:
    """The name by which this data folder's server claims jobs, over restarts."""
    path = folder / "node"
    known = path.read_text().strip() if path.is_file() else ""
    if not known:
        known = secrets.token_hex(8)
        write_text(path, known)
    return known
