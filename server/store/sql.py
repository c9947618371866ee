"""The TrialStore on SQLAlchemy, today on SQLite.

Every write is one statement in a transaction of its own: it is there wholly or not at all, and no lock is held while
anything is computed.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Engine, case, create_engine, event, insert, make_url, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from server.store.models import Base, JobRow, TrialRow
from tuner.errors import StorageError
from tuner.job import JobSpec
from tuner.results import TrialResult
from tuner.store import (
    ALLOWED,
    RESUMABLE,
    Clock,
    JobRecord,
    JobState,
    check_same_spec,
    forbidden_move,
    from_json,
    spec_json,
    trial_json,
    unknown_job,
    unknown_trial,
    utc_now,
)

PAGE = 200
"""Trials read at once: no reading transaction stays open while the caller works, so the write-ahead log can be emptied."""

# FULL flushes the log on every commit. Against kill -9 NORMAL would do, since the kernel keeps what a dead process wrote; FULL also
# survives a power cut or a machine that is taken away, and one flush is nothing beside the seconds a trial takes.
PRAGMAS = ("synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000")

WAL_ATTEMPTS = 100

REMEDIES = {
    sqlite3.SQLITE_FULL: "Free some space, then go on with --resume.",
    sqlite3.SQLITE_IOERR: "Check that the disk works and has space left, then go on with --resume.",
    sqlite3.SQLITE_READONLY: "Choose another folder with --out or change its permissions, then go on with --resume.",
    sqlite3.SQLITE_CANTOPEN: "Choose a folder that exists and can be written with --out.",
    sqlite3.SQLITE_BUSY: "Another process is writing to it: wait for that one or end it, then go on with --resume.",
    sqlite3.SQLITE_NOTADB: "Choose another folder with --out, or move that file away.",
    sqlite3.SQLITE_CORRUPT: "Put a backup in its place, or start again with another --out.",
}


class SqlTrialStore:
    """Jobs and trials in a SQLite file, opened or created by `sqlite:///path`. Several processes may have it open."""

    def __init__(self, url: str, now: Clock = utc_now) -> None:
        self._now = now
        self._path = _database_path(url)
        self._engine = _engine(self._path)
        with self._guard("opening the job store"), self._engine.connect() as connection:
            # Taken before looking, so that of two processes that find no tables one waits for the other's.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            Base.metadata.create_all(connection)
            connection.commit()

    def create_job(self, job_id: str, spec: JobSpec) -> None:
        moment = self._now()
        values = {"spec": spec_json(job_id, spec), "created_at": moment, "updated_at": moment}
        new = insert(JobRow).values(job_id=job_id, state=JobState.QUEUED, seconds=0.0, cancel_requested=False, **values)
        try:
            with self._guard(f"storing job '{job_id}'"), self._engine.begin() as connection:
                connection.execute(new)
        except IntegrityError:
            check_same_spec(job_id, self.job(job_id).spec, spec)

    def job(self, job_id: str) -> JobRecord:
        with self._guard(f"reading job '{job_id}'"), self._engine.connect() as connection:
            row = connection.execute(select(JobRow.__table__).where(JobRow.job_id == job_id)).mappings().one_or_none()
        if row is None:
            raise unknown_job(job_id)
        return JobRecord(
            job_id=job_id,
            spec=from_json(JobSpec, row["spec"], f"job '{job_id}'"),
            state=row["state"],
            seconds=row["seconds"],
            cancel_requested=row["cancel_requested"],
            created=row["created_at"],
            updated=row["updated_at"],
        )

    def job_ids(self) -> list[str]:
        with self._guard("listing jobs"), self._engine.connect() as connection:
            return list(connection.scalars(select(JobRow.job_id).order_by(JobRow.created_at, JobRow.job_id)))

    def set_job_state(self, job_id: str, state: JobState, *, seconds: float | None = None) -> None:
        before = [old for old, after in ALLOWED.items() if state in after]
        # Stated as a condition of the update, so that of two processes that race for a job one alone wins.
        changed = self._update_job(
            job_id,
            JobRow.state.in_(before),
            state=state,
            seconds=JobRow.seconds if seconds is None else seconds,
            cancel_requested=case((JobRow.state.in_(RESUMABLE), False), else_=JobRow.cancel_requested),
        )
        if not changed:
            raise forbidden_move(job_id, self.job(job_id).state, state)

    def request_cancel(self, job_id: str) -> None:
        if not self._update_job(job_id, cancel_requested=True):
            raise unknown_job(job_id)

    def cancel_requested(self, job_id: str) -> bool:
        with self._guard(f"reading job '{job_id}'"), self._engine.connect() as connection:
            flag = connection.scalar(select(JobRow.cancel_requested).where(JobRow.job_id == job_id))
        if flag is None:
            raise unknown_job(job_id)
        return flag

    def save_trial(self, job_id: str, trial: TrialResult) -> None:
        moment = self._now()
        columns = _columns(trial) | {"result": trial_json(job_id, trial), "finished_at": moment if trial.finished else None}
        new = upsert(TrialRow).values(job_id=job_id, number=trial.number, created_at=moment, **columns)
        try:
            with self._guard(f"storing trial {trial.number} of job '{job_id}'"), self._engine.begin() as connection:
                connection.execute(new.on_conflict_do_update(index_elements=["job_id", "number"], set_=columns))
        except IntegrityError as error:
            raise unknown_job(job_id) from error

    def trials(self, job_id: str) -> Iterator[TrialResult]:
        self._require(job_id)
        return self._pages(job_id)

    def trial(self, job_id: str, number: int) -> TrialResult:
        with self._guard(f"reading trial {number} of job '{job_id}'"), self._engine.connect() as connection:
            text = connection.scalar(select(TrialRow.result).where(TrialRow.job_id == job_id, TrialRow.number == number))
        if text is None:
            self._require(job_id)
            raise unknown_trial(job_id, number)
        return from_json(TrialResult, text, f"trial {number} of job '{job_id}'")

    def close(self) -> None:
        self._engine.dispose()

    def _pages(self, job_id: str) -> Iterator[TrialResult]:
        page = select(TrialRow.number, TrialRow.result).where(TrialRow.job_id == job_id).order_by(TrialRow.number).limit(PAGE)
        more = page
        while True:
            with self._guard(f"reading the trials of job '{job_id}'"), self._engine.connect() as connection:
                rows = connection.execute(more).all()
            for number, text in rows:
                yield from_json(TrialResult, text, f"trial {number} of job '{job_id}'")
            if len(rows) < PAGE:
                return
            more = page.where(TrialRow.number > rows[-1].number)

    def _update_job(self, job_id: str, *conditions: ColumnElement[bool], **values: Any) -> bool:
        """True where the job is there and every condition held."""
        change = update(JobRow).where(JobRow.job_id == job_id, *conditions).values(updated_at=self._now(), **values)
        with self._guard(f"changing job '{job_id}'"), self._engine.begin() as connection:
            return connection.execute(change).rowcount == 1

    def _require(self, job_id: str) -> None:
        self.cancel_requested(job_id)

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Turn the database's complaints about disk, folder or file into a StorageError that says what to do."""
        try:
            yield
        except DBAPIError as error:
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
            if code not in REMEDIES:
                raise
            raise StorageError(f"{doing} failed: {error.orig} ({self._path}). {REMEDIES[code]}") from error


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file. Signs that mean something in a URL are escaped; an f-string would open another file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def _database_path(url: str) -> str:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StorageError(f"the job store '{url}' is not a URL; write sqlite:///path/to/file.db") from error
    if parsed.drivername != "sqlite":
        raise StorageError(f"the job store must be a SQLite file, got '{parsed.render_as_string()}'; write sqlite:///path/to/file.db")
    if parsed.database in (None, "", ":memory:") or "?" in url:
        raise StorageError(f"the job store must be the path of a file and nothing else, got '{url}'; write sqlite:///path/to/file.db")
    return str(parsed.database)


def _engine(path: str) -> Engine:
    engine = create_engine(URL.create("sqlite", database=path))

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        _use_write_ahead_log(connection)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL, ten seconds at most. Two processes that switch it at once are both told "locked", whatever their
    busy_timeout: so ask again."""
    connection.execute("PRAGMA busy_timeout = 50")
    for left in reversed(range(WAL_ATTEMPTS)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not left or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)


def _columns(trial: TrialResult) -> dict[str, Any]:
    """What a trial can be listed, sorted and filtered by."""
    return {
        "state": trial.state,
        "plan_digest": trial.plan_digest,
        "feasible": trial.feasible,
        "violation": trial.violation,
        "speedup": trial.speedup.value if trial.speedup else None,
        "size_bytes": trial.value("size_bytes"),
    }
