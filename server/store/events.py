"""The events of jobs: numbered from 1 within a job, without gaps, in the order in which they were committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from server.store.database import Database, LeaseLost, NotFound
from server.store.lookups import SHOWN, plain, storable_number
from server.store.models import EventRow, JobRow
from tuner.store import JobState
from tuner.wire import JobEvent

NOTHING: Mapping[str, Any] = {}


def append_event(
    connection: Connection,
    job_id: str,
    event: JobEvent,
    now: datetime,
    *,
    lease: str | None = None,
    also: Mapping[str, Any] = NOTHING,
) -> int:
    """Add an event, at the moment `now`, in the caller's transaction; its number.

    The job's row stays locked until that transaction ends, so a higher number is never seen before a lower one.
    lease: do so only while the job is held under it; LeaseLost otherwise. also: columns of the job to set in the same statement.
    NotFound for an unknown job."""
    held = [JobRow.job_id == job_id] if lease is None else [JobRow.job_id == job_id, JobRow.lease == lease]
    counted = update(JobRow).where(*held).values(events=JobRow.events + 1, **also).returning(JobRow.events)
    seq = connection.scalar(counted)
    if seq is None:
        raise unknown_job(job_id) if lease is None else lease_lost(job_id)
    insert_event(connection, job_id, event, seq, now)
    return seq


def insert_event(connection: Connection, job_id: str, event: JobEvent, seq: int, now: datetime) -> None:
    """Write an event whose number the caller has taken from `jobs.events` in this transaction."""
    text = event.model_copy(update={"seq": seq, "at": now, "message": plain(event.message)}).model_dump_json()
    connection.execute(insert(EventRow).values(job_id=job_id, seq=seq, event=text))


def state_event(state: JobState, now: datetime, message: str = "") -> JobEvent:
    return JobEvent(seq=0, at=now, kind="state", state=state, message=message)


def unknown_job(job_id: str) -> NotFound:
    return NotFound(f"job '{job_id[:SHOWN]}' is not known to this server; GET /api/v1/jobs lists those that are")


def lease_lost(job_id: str) -> LeaseLost:
    return LeaseLost(f"job '{job_id}' is no longer held under this lease: it has ended, or another process has taken it over")


class EventReader:
    """Reads events for streams that may begin anywhere."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def after(self, job_id: str, seq: int, limit: int = 500) -> list[tuple[int, str]]:
        """(number, JobEvent as JSON) of the events numbered higher than `seq`, at most `limit` of them; none for an unknown job."""
        if not storable_number(max(seq, 0)):
            return []
        wanted = (
            select(EventRow.seq, EventRow.event)
            .where(EventRow.job_id == plain(job_id), EventRow.seq > max(seq, 0))
            .order_by(EventRow.seq)
            .limit(limit)
        )
        with self._database.read(f"reading the events of job '{job_id}'") as connection:
            return [(number, text) for number, text in connection.execute(wanted)]

    def latest(self, job_ids: Sequence[str]) -> dict[str, tuple[int, JobState]]:
        """{job: (number of its last event, its state)} of those that are known, in one look."""
        if not job_ids:
            return {}
        wanted = select(JobRow.job_id, JobRow.events, JobRow.state).where(JobRow.job_id.in_([plain(job_id) for job_id in job_ids]))
        with self._database.read("looking for new events") as connection:
            return {job_id: (events, state) for job_id, events, state in connection.execute(wanted)}
