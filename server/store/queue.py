"""The queue: which job runs where. A job is held under a lease, a random token that whoever runs it renews in time."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, or_, select, update
from sqlalchemy.orm import aliased

from search_spaces.schemes import Frozen
from server.store.database import Database
from server.store.events import append_event, insert_event, state_event, unknown_job
from server.store.lookups import plain
from server.store.models import JobRow, TrialRow
from tuner.errors import StorageError
from tuner.job import JobSpec
from tuner.results import TrialFailure, TrialState
from tuner.store import JobState, from_json

MAX_CRASHES = 5
"""How often in a row a job's process may die without having finished a trial before the job counts as failed."""

UNHELD: dict[str, Any] = {"lease": None, "lease_until": None, "node": None}


class Claim(Frozen):
    """A job that is to be run, and the token that allows it."""

    job_id: str
    lease: str
    spec: JobSpec


class Beat(Frozen):
    """The answer to a heartbeat."""

    held: bool
    """False where the job has ended or another one has taken it over."""
    cancel_requested: bool


class JobQueue:
    """Hands out jobs and takes back the word on how they ended. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, node: str, lease_seconds: float, besides: Sequence[str] = ()) -> Claim | None:
        """The oldest job that waits, was cut off, or whose lease ran out, `besides` these: now running on `node`; None where there is
        none."""
        now, lease = self._database.now(), secrets.token_hex(16)
        until = now + timedelta(seconds=lease_seconds)
        with self._database.write("claiming a job") as connection:
            # A result of a former run, cut off between its result and its end, is not this run's.
            taken = (
                update(JobRow)
                .where(JobRow.job_id == _next_in_line(now, besides).scalar_subquery())
                .values(state=JobState.RUNNING, lease=lease, lease_until=until, node=node, updated_at=now)
                .values(events=JobRow.events + 1, result=None, feasible=None)
                .returning(JobRow.job_id, JobRow.spec, JobRow.events)
            )
            row = connection.execute(taken).one_or_none()
            if row is None:
                return None
            requeue_trials(connection, row.job_id)
            insert_event(connection, row.job_id, state_event(JobState.RUNNING, now), row.events, now)
        try:
            return Claim(job_id=row.job_id, lease=lease, spec=from_json(JobSpec, row.spec, f"job '{row.job_id}'"))
        except StorageError as error:
            # Left waiting, it would stand in the way of all others for ever.
            self.settle(row.job_id, lease, JobState.FAILED, TrialFailure(type="StorageError", message=str(error), step="claim"))
            return self.claim(node, lease_seconds, besides)

    def heartbeat(self, job_id: str, lease: str, lease_seconds: float) -> Beat:
        """Renew the lease, also one that ran out unnoticed."""
        until = self._database.now() + timedelta(seconds=lease_seconds)
        held = (JobRow.job_id == job_id, JobRow.lease == lease, JobRow.state == JobState.RUNNING)
        with self._database.write(f"renewing the lease of job '{job_id}'") as connection:
            flag = connection.scalar(update(JobRow).where(*held).values(lease_until=until).returning(JobRow.cancel_requested))
        return Beat(held=flag is not None, cancel_requested=bool(flag))

    def release_node(self, node: str) -> list[str]:
        """For a server that starts: the jobs its former self was running are cut off now, before their leases run out. Their ids."""
        now = self._database.now()
        left = select(JobRow.job_id, JobRow.cancel_requested).where(JobRow.state == JobState.RUNNING, JobRow.node == node)
        with self._database.write(f"releasing the jobs of {node}") as connection:
            rows = connection.execute(left.order_by(JobRow.job_id).with_for_update()).all()
            for job_id, cancelled in rows:
                _leave(connection, job_id, JobState.CANCELLED if cancelled else JobState.INTERRUPTED, now)
        return [row.job_id for row in rows]

    def settle(self, job_id: str, lease: str, state: JobState, error: TrialFailure | None = None, *, crashed: bool = False) -> JobState:
        """Record how a job's process ended, where the process itself has not: cancelled, failed or interrupted. The job's state then.

        A job that is not running, or not under this lease, keeps its state. crashed: counts; after MAX_CRASHES the job has failed, of
        `error`. One that was asked to stop is cancelled however it ended."""
        now = self._database.now()
        with self._database.write(f"settling job '{job_id}'") as connection:
            row = _look(connection, job_id)
            if row is None:
                return state
            before: JobState = row.state
            if row.lease != lease:
                return before
            if before != JobState.RUNNING:
                connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(**UNHELD))
                return before
            crashes = row.crashes + crashed
            state, error = _verdict(state, error, crashes if crashed else 0, row.cancel_requested)
            _leave(connection, job_id, state, now, error, crashes=crashes)
            return state


def _next_in_line(now: datetime, besides: Sequence[str] = ()) -> Any:
    waiting = aliased(JobRow)
    expired = and_(waiting.state == JobState.RUNNING, waiting.lease_until < now)
    ready = or_(waiting.state.in_((JobState.QUEUED, JobState.INTERRUPTED)), expired)
    live = waiting.state.in_((JobState.QUEUED, JobState.INTERRUPTED, JobState.RUNNING))
    # The sum of conditions is the second one; the first lets an index find the few jobs that are not settled. Of servers that claim at
    # once on PostgreSQL, each passes over the row that another one has just locked.
    others = (waiting.job_id.not_in(besides),) if besides else ()
    return select(waiting.job_id).where(live, ready, *others).order_by(waiting.job_id).limit(1).with_for_update(skip_locked=True)


def _look(connection: Connection, job_id: str) -> Row[*tuple[Any, ...]] | None:
    """State, lease, crashes and cancel_requested of a job whose row is locked until the transaction ends."""
    columns = select(JobRow.state, JobRow.lease, JobRow.crashes, JobRow.cancel_requested)
    return connection.execute(columns.where(JobRow.job_id == plain(job_id)).with_for_update()).one_or_none()


def locked_state(connection: Connection, job_id: str) -> JobState:
    """The state of a job, which no other transaction can change before this one ends. NotFound."""
    row = _look(connection, job_id)
    if row is None:
        raise unknown_job(job_id)
    state: JobState = row.state
    return state


def _verdict(state: JobState, error: TrialFailure | None, crashes: int, cancelled: bool) -> tuple[JobState, TrialFailure | None]:
    if cancelled:
        return JobState.CANCELLED, None
    if crashes < MAX_CRASHES:
        return state, error
    if error is not None:
        error = error.model_copy(update={"message": f"{error.message} (for the {crashes}th time without a trial finished in between)"})
    return JobState.FAILED, error


def _leave(connection: Connection, job_id: str, state: JobState, now: datetime, error: TrialFailure | None = None, **columns: Any) -> None:
    """Take a running job out of the hands of its process. The error is kept where it ended the job, and told in any case."""
    told = None if error is None else error.model_copy(update={"message": plain(error.message)})
    kept = told.model_dump_json() if told and state == JobState.FAILED else None
    columns |= UNHELD | {"state": state, "updated_at": now, "error": kept}
    append_event(connection, job_id, state_event(state, now, told.message if told else ""), now, also=columns)
    requeue_trials(connection, job_id)


def requeue_trials(connection: Connection, job_id: str) -> None:
    """Trials of a job that nobody runs any more wait to be run again."""
    left = select(TrialRow.number, TrialRow.summary, TrialRow.result)
    for number, summary, result in connection.execute(left.where(TrialRow.job_id == job_id, TrialRow.state == TrialState.RUNNING)).all():
        texts = {"summary": _queued(summary), "result": _queued(result)}
        row = update(TrialRow).where(TrialRow.job_id == job_id, TrialRow.number == number)
        connection.execute(row.values(state=TrialState.QUEUED, **texts))


def _queued(text: str) -> str:
    # Not through today's types: a trial that they cannot read must not keep its job from being settled.
    return json.dumps(json.loads(text) | {"state": TrialState.QUEUED.value}, ensure_ascii=False)
