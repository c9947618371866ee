"""Where jobs and trials are kept: the states of a job, the TrialStore protocol, and a store in memory.

A store is the one source of truth. Strategies keep no state of their own, so whatever a store has returned from
`save_trial` must still be there after the process was killed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, AwareDatetime, ValidationError

from search_spaces.schemes import Frozen
from tuner.errors import JobError, StorageError, TrialError
from tuner.job import JobSpec
from tuner.results import TrialResult, TrialState

Value = TypeVar("Value", bound=Frozen)
Clock = Callable[[], datetime]
UtcDatetime = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


class JobState(StrEnum):
    """Interrupted means that the process ended without a verdict of its own; the job can go on."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


RESUMABLE = (JobState.INTERRUPTED, JobState.CANCELLED, JobState.FAILED)

ALLOWED: dict[JobState, tuple[JobState, ...]] = {
    JobState.QUEUED: (JobState.RUNNING, JobState.CANCELLED, JobState.FAILED),
    # Running again is how a job at work, or one taken up after a kill, records the seconds spent.
    JobState.RUNNING: (JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED),
    JobState.SUCCEEDED: (),
    # A service queues what is to be resumed; the command line runs it at once.
    JobState.FAILED: (JobState.QUEUED, JobState.RUNNING),
    JobState.CANCELLED: (JobState.QUEUED, JobState.RUNNING),
    JobState.INTERRUPTED: (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED, JobState.FAILED),
}


class JobRecord(Frozen):
    """A job as it is stored. `updated` is when its state, seconds or cancel flag last changed."""

    job_id: str
    spec: JobSpec
    state: JobState = JobState.QUEUED
    seconds: float = 0.0
    """Wall clock spent so far, over all runs of the job."""
    cancel_requested: bool = False
    created: UtcDatetime
    updated: UtcDatetime


class TrialStore(Protocol):
    """Jobs and their trials. Every method may be called from any thread and raises JobError for an unknown job."""

    def create_job(self, job_id: str, spec: JobSpec) -> None:
        """Store a queued job. Does nothing if it is there with the same spec; JobError if with another."""

    def job(self, job_id: str) -> JobRecord: ...

    def job_ids(self) -> list[str]:
        """Every job, the newest last."""

    def set_job_state(self, job_id: str, state: JobState, *, seconds: float | None = None) -> None:
        """Move a job along `ALLOWED`; JobError for any other move. Resuming drops a request to cancel: it was answered.
        Trials still running when the job stops running become queued: they wait to be run again."""

    def request_cancel(self, job_id: str) -> None:
        """Ask the job to stop; whoever runs it looks at `cancel_requested`."""

    def cancel_requested(self, job_id: str) -> bool: ...

    def save_trial(self, job_id: str, trial: TrialResult) -> None:
        """Insert the trial, or replace the one with its number, wholly or not at all. TrialError if it is no JSON."""

    def trials(self, job_id: str) -> Iterator[TrialResult]:
        """All trials by number, read bit by bit: trials may be saved in between."""

    def trial(self, job_id: str, number: int) -> TrialResult:
        """One trial; JobError if there is none of that number."""

    def close(self) -> None: ...


def utc_now() -> datetime:
    return datetime.now(UTC)


class InMemoryTrialStore:
    """For tests and for runs that nobody will resume. Trials are kept as JSON, so that what comes back is a value of its own."""

    def __init__(self, now: Clock = utc_now) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._jobs: dict[str, JobRecord] = {}
        self._trials: dict[str, dict[int, str]] = {}

    def create_job(self, job_id: str, spec: JobSpec) -> None:
        spec_json(job_id, spec)
        with self._lock:
            if job_id in self._jobs:
                check_same_spec(job_id, self._jobs[job_id].spec, spec)
                return
            moment = self._now()
            self._jobs[job_id] = JobRecord(job_id=job_id, spec=spec, created=moment, updated=moment)
            self._trials[job_id] = {}

    def job(self, job_id: str) -> JobRecord:
        if job_id not in self._jobs:
            raise unknown_job(job_id)
        return self._jobs[job_id]

    def job_ids(self) -> list[str]:
        return list(self._jobs)

    def set_job_state(self, job_id: str, state: JobState, *, seconds: float | None = None) -> None:
        with self._lock:
            record = self.job(job_id)
            if state not in ALLOWED[record.state]:
                raise forbidden_move(job_id, record.state, state)
            spent = record.seconds if seconds is None else seconds
            self._change(record, state=state, seconds=spent, cancel_requested=record.cancel_requested and record.state not in RESUMABLE)
            if state != JobState.RUNNING:
                self._queue_running(job_id)

    def request_cancel(self, job_id: str) -> None:
        with self._lock:
            self._change(self.job(job_id), cancel_requested=True)

    def cancel_requested(self, job_id: str) -> bool:
        return self.job(job_id).cancel_requested

    def save_trial(self, job_id: str, trial: TrialResult) -> None:
        text = trial_json(job_id, trial)
        with self._lock:
            self.job(job_id)
            self._trials[job_id][trial.number] = text

    def trials(self, job_id: str) -> Iterator[TrialResult]:
        with self._lock:
            self.job(job_id)
            rows = sorted(self._trials[job_id].items())
        return (TrialResult.model_validate_json(text) for _, text in rows)

    def trial(self, job_id: str, number: int) -> TrialResult:
        self.job(job_id)
        if number not in self._trials[job_id]:
            raise unknown_trial(job_id, number)
        return TrialResult.model_validate_json(self._trials[job_id][number])

    def close(self) -> None:
        """Nothing to let go of."""

    def _queue_running(self, job_id: str) -> None:
        for number, text in self._trials[job_id].items():
            trial = TrialResult.model_validate_json(text)
            if trial.state == TrialState.RUNNING:
                self._trials[job_id][number] = trial.model_copy(update={"state": TrialState.QUEUED}).model_dump_json()

    def _change(self, record: JobRecord, **changes: Any) -> None:
        self._jobs[record.job_id] = JobRecord.model_validate(dict(record) | changes | {"updated": self._now()})


def unknown_job(job_id: str) -> JobError:
    return JobError(f"job '{job_id}' is not in this store; check the id and that --out is the folder the job was started with")


def unknown_trial(job_id: str, number: int) -> JobError:
    return JobError(f"job '{job_id}' has no trial {number}; the numbers there are stand in the first column of trials.csv")


def forbidden_move(job_id: str, state: JobState, wanted: JobState) -> JobError:
    after = ", ".join(ALLOWED[state]) or "nothing: start a new job"
    return JobError(f"job '{job_id}' is {state} and cannot become {wanted}. What may follow {state}: {after}.")


def check_same_spec(job_id: str, stored: JobSpec, given: JobSpec) -> None:
    """JobError that names the fields in which the two specs differ, if they do."""
    differing = [name for name in JobSpec.model_fields if getattr(stored, name) != getattr(given, name)]
    if differing:
        raise JobError(
            f"job '{job_id}' is already stored with another {', '.join(differing)}. A stored job never changes: "
            "take another --out to start a new one, or put the job file back as it was and go on with --resume."
        )


def trial_json(job_id: str, trial: TrialResult) -> str:
    """The trial as JSON that reads back. TrialError otherwise: one bad row must not make the whole history unreadable."""
    try:
        return _json_that_reads_back(trial)
    except ValueError as error:
        raise TrialError(f"trial {trial.number} of job '{job_id}' cannot be stored: {_reason(error)}", step="record") from error


def spec_json(job_id: str, spec: JobSpec) -> str:
    """The spec as JSON that reads back; JobError otherwise."""
    try:
        return _json_that_reads_back(spec)
    except ValueError as error:
        raise JobError(f"job '{job_id}' cannot be stored: {_reason(error)}") from error


def from_json(kind: type[Value], text: str, what: str) -> Value:
    """The stored value; StorageError if it does not fit today's type."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(
            f"{what} cannot be read back: {_reason(error)}. "
            "It was written by another version of Accutune: go on with that one, or start a new job."
        ) from error


def _json_that_reads_back(value: Frozen) -> str:
    text = value.model_dump_json()
    type(value).model_validate_json(text)
    return text


def _reason(error: ValueError) -> str:
    """What is wrong with a value on its way to JSON or back, in one line."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
