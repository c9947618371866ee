"""The TrialStore on the database: in a job's folder for the command line, in the service's database for a job it runs.

Every write is one transaction: it is there wholly or not at all, and no lock is held while anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from server.store.database import Database
from server.store.events import append_event, lease_lost, state_event
from server.store.lookups import plain
from server.store.models import JobRow, MeasurementRow, TrialRow
from server.store.queue import requeue_trials
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
)
from tuner.wire import summarize

PAGE = 200
"""Trials read at once: no reading transaction stays open while the caller works, so the write-ahead log can be emptied."""

RECORD = (
    JobRow.job_id,
    JobRow.spec,
    JobRow.state,
    JobRow.seconds,
    JobRow.cancel_requested,
    JobRow.created_at,
    JobRow.updated_at,
)


class SqlTrialStore:
    """Jobs and trials in a database. Several processes may have it open."""

    def __init__(self, database: Database | str, now: Clock | None = None, lease: str | None = None) -> None:
        """database: one that is open and up to date, or the URL of one that is made or brought up to date here.

        lease: with it, every change is made only while the job has this lease, and raises LeaseLost afterwards: a process that was
        taken for dead and works on cannot spoil the work of the one that took over."""
        self._own = isinstance(database, str)
        self.database = Database(database, folder=True) if isinstance(database, str) else database
        self._now = now or self.database.now
        self._lease = lease
        if self._own:
            self.database.upgrade()

    def create_job(self, job_id: str, spec: JobSpec) -> None:
        moment = self._now()
        values = {"name": spec.name, "spec": spec_json(job_id, spec), "created_at": moment, "updated_at": moment}
        new = insert(JobRow).values(job_id=job_id, state=JobState.QUEUED, seconds=0.0, cancel_requested=False, **values)
        try:
            with self.database.write(f"storing job '{job_id}'") as connection:
                connection.execute(new)
        except IntegrityError:
            check_same_spec(job_id, self.job(job_id).spec, spec)

    def job(self, job_id: str) -> JobRecord:
        with self.database.read(f"reading job '{job_id}'") as connection:
            row = connection.execute(select(*RECORD).where(JobRow.job_id == job_id)).mappings().one_or_none()
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
        with self.database.read("listing jobs") as connection:
            return list(connection.scalars(select(JobRow.job_id).order_by(JobRow.created_at, JobRow.job_id)))

    def set_job_state(self, job_id: str, state: JobState, *, seconds: float | None = None) -> None:
        moment = self._now()
        with self.database.write(f"changing job '{job_id}'") as connection:
            job = self._held(connection, job_id)
            if state not in ALLOWED[job.state]:
                raise forbidden_move(job_id, job.state, state)
            changes: dict[str, Any] = {"state": state, "updated_at": moment}
            if seconds is not None:
                changes["seconds"] = seconds
            if job.state in RESUMABLE:
                changes["cancel_requested"] = False
            connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(**changes))
            if state != JobState.RUNNING:
                requeue_trials(connection, job_id)
            if state != job.state:
                append_event(connection, job_id, state_event(state, moment), moment)

    def request_cancel(self, job_id: str) -> None:
        with self.database.write(f"changing job '{job_id}'") as connection:
            self._held(connection, job_id)
            connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(cancel_requested=True, updated_at=self._now()))

    def cancel_requested(self, job_id: str) -> bool:
        with self.database.read(f"reading job '{job_id}'") as connection:
            flag = connection.scalar(select(JobRow.cancel_requested).where(JobRow.job_id == job_id))
        if flag is None:
            raise unknown_job(job_id)
        return flag

    def save_trial(self, job_id: str, trial: TrialResult) -> None:
        moment = self._now()
        columns = _columns(job_id, trial) | {"finished_at": moment if trial.finished else None}
        new = self.database.upsert(TrialRow).values(job_id=job_id, number=trial.number, created_at=moment, **columns)
        with self.database.write(f"storing trial {trial.number} of job '{job_id}'") as connection:
            job = self._held(connection, job_id)
            connection.execute(new.on_conflict_do_update(index_elements=["job_id", "number"], set_=columns))
            _replace_measurements(connection, job_id, trial)
            if trial.finished and job.crashes:
                # It gets on, so the next crash is the first again.
                connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(crashes=0))

    def trials(self, job_id: str) -> Iterator[TrialResult]:
        self._require(job_id)
        return self._pages(job_id)

    def trial(self, job_id: str, number: int) -> TrialResult:
        with self.database.read(f"reading trial {number} of job '{job_id}'") as connection:
            text = connection.scalar(select(TrialRow.result).where(TrialRow.job_id == job_id, TrialRow.number == number))
        if text is None:
            self._require(job_id)
            raise unknown_trial(job_id, number)
        return from_json(TrialResult, text, f"trial {number} of job '{job_id}'")

    def close(self) -> None:
        """Let go of a database that was opened here; one that was given stays open."""
        if self._own:
            self.database.close()

    def _pages(self, job_id: str) -> Iterator[TrialResult]:
        page = select(TrialRow.number, TrialRow.result).where(TrialRow.job_id == job_id).order_by(TrialRow.number).limit(PAGE)
        more = page
        while True:
            with self.database.read(f"reading the trials of job '{job_id}'") as connection:
                rows = connection.execute(more).all()
            for number, text in rows:
                yield from_json(TrialResult, text, f"trial {number} of job '{job_id}'")
            if len(rows) < PAGE:
                return
            more = page.where(TrialRow.number > rows[-1].number)

    def _held(self, connection: Connection, job_id: str) -> Row[JobState, str | None, int]:
        """The job's state, lease and crashes, locked until the transaction ends. LeaseLost if another has the lease."""
        wanted = select(JobRow.state, JobRow.lease, JobRow.crashes).where(JobRow.job_id == job_id)
        # Of two processes that race for a job one alone goes on; on SQLite the whole transaction is locked anyway.
        row = connection.execute(wanted.with_for_update()).one_or_none()
        if row is None:
            raise unknown_job(job_id)
        if self._lease is not None and row.lease != self._lease:
            raise lease_lost(job_id)
        return row

    def _require(self, job_id: str) -> None:
        self.cancel_requested(job_id)


def _columns(job_id: str, trial: TrialResult) -> dict[str, Any]:
    """What a trial can be listed, sorted and filtered by, and its two texts. TrialError if it is no JSON."""
    return {
        "result": trial_json(job_id, trial),
        "summary": summarize(trial).model_dump_json(),
        "state": trial.state,
        "plan_digest": plain(trial.plan_digest),
        "feasible": trial.feasible,
        "violation": trial.violation,
        "speedup": trial.speedup.value if trial.speedup else None,
        "size_bytes": trial.value("size_bytes"),
    }


def _replace_measurements(connection: Connection, job_id: str, trial: TrialResult) -> None:
    connection.execute(delete(MeasurementRow).where(MeasurementRow.job_id == job_id, MeasurementRow.number == trial.number))
    if not trial.finished or not trial.measurements:
        return
    rows = {
        plain(name): {
            "value": found.value,
            "unit": plain(found.unit),
            "direction": found.direction,
            "stderr": found.stderr,
            "samples": found.samples,
        }
        for name, found in trial.measurements.items()
    }
    key = {"job_id": job_id, "number": trial.number}
    connection.execute(insert(MeasurementRow), [{**key, "metric": name, **row} for name, row in rows.items()])
