"""The process in which one job of the service runs: `python -m server.runner`, its errand on standard input.

It writes only while it holds the job's lease, and it ends with the server that started it; whatever was finished is in the store
by then, so that the job can be taken up by any server."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from search_spaces.schemes import Frozen
from server.artifacts import Artifacts
from server.inputs import resolve
from server.store.database import Database, LeaseLost, StorageBusy
from server.store.files import FileStore
from server.store.jobs import JobStore
from server.store.trials import SqlTrialStore
from tuner.conclude import run_job
from tuner.errors import InputError, JobCancelled, StorageError, TrialError, writing
from tuner.executor import LocalExecutor, harmless
from tuner.files import beside, layers_file, plan_file, rows_file, tensors_file, write_text
from tuner.job import JobSpec
from tuner.limits import end_with_parent
from tuner.plan import AppliedPlan
from tuner.progress import Event, Phase
from tuner.results import JobResult, TrialFailure, TrialResult
from tuner.store import JobState, utc_now
from tuner.study import Study
from tuner.wire import ArtifactView, EventKind, JobEvent, JobProgress, summarize

LOCK_SECONDS = 20.0
PROGRESS_SECONDS = 0.5
MEDIA_TYPES = {
    ".onnx": "application/octet-stream",
    ".safetensors": "application/octet-stream",
    ".json": "application/json",
    ".csv": "text/csv",
    ".html": "text/html",
}
LOST, LATER = 75, 76
"""Exit statuses of a runner whose job another one has taken over, and of one that the database kept from going on: its job is to be
run again."""


class Errand(Frozen):
    """What a runner has to know. It travels through a pipe: the database's URL may hold a password."""

    database_url: SecretStr
    artifacts_url: str
    scratch: str
    """Local folder of the artefact store's parts and downloads."""
    jobs_folder: str
    job_id: str
    lease: str
    parent: int | None = None
    """The number of the server's process, with which the runner ends."""
    parallel: int
    memory_gb: float

    def as_line(self) -> str:
        plain = self.model_dump(mode="json") | {"database_url": self.database_url.get_secret_value()}
        return json.dumps(plain) + "\n"


class ServedStore(SqlTrialStore):
    """The trial store of a running job: it publishes each trial's plan and the scores of its rows before the trial, and leaves the
    word on failure to the runner, which knows why."""

    def __init__(self, database: Database, lease: str, jobs: JobStore, artifacts: Artifacts, cache: Path) -> None:
        super().__init__(database, lease=lease)
        self._jobs, self._artifacts, self._cache = jobs, artifacts, cache
        self._baseline_is_out = False

    def create_job(self, job_id: str, spec: JobSpec) -> None:
        """It is stored since it was submitted, with ids in place of files."""

    def set_job_state(self, job_id: str, state: JobState, *, seconds: float | None = None) -> None:
        super().set_job_state(job_id, JobState.RUNNING if state == JobState.FAILED else state, seconds=seconds)

    def save_trial(self, job_id: str, trial: TrialResult) -> None:
        plan = plan_file(self._cache, trial.number)
        if trial.finished and trial.error is None and plan.is_file():
            name = f"trials/{trial.number}.plan.json"
            self._publish(job_id, plan, name)
            self._publish_tensors(job_id, trial.number, plan)
            self._publish_rows(job_id, trial.number)
            trial = trial.model_copy(update={"artefact": name})
        super().save_trial(job_id, trial)
        if trial.finished:
            report({"seconds": sum(trial.timings.values()), "state": trial.state.value})

    def publish_layers(self, job_id: str) -> bool:
        """Publish the profiles of the layers; whether there are any."""
        path = layers_file(self._cache)
        if not path.is_file():
            return False
        self._publish(job_id, path, path.name)
        return True

    def _publish_tensors(self, job_id: str, number: int, plan: Path) -> None:
        """The weights that the trial's plan changed; trials with the same structure share one file."""
        applied = AppliedPlan.model_validate_json(plan.read_bytes())
        if applied.structure is not None:
            self._publish(job_id, tensors_file(self._cache, applied.plan.structure.digest()), f"trials/{number}.tensors.safetensors")

    def _publish_rows(self, job_id: str, number: int) -> None:
        """The original's scores go first, with the first trial that has any."""
        baseline, rows = rows_file(self._cache, None), rows_file(self._cache, number)
        if not (baseline.is_file() and rows.is_file()):
            return
        if not self._baseline_is_out:
            self._publish(job_id, baseline, "rows.json")
            self._baseline_is_out = True
        self._publish(job_id, rows, f"trials/{number}.rows.json")

    def _publish(self, job_id: str, path: Path, name: str) -> None:
        self._jobs.add_artifact(job_id, stored(self._artifacts, path, name), self._lease)


class Narrator:
    """Turns the study's events into the job's, less those that follow each other too fast to be read.

    profile: called when the search begins; whether it has published the profiles of the layers."""

    def __init__(
        self,
        jobs: JobStore,
        job_id: str,
        lease: str,
        clock: Callable[[], float] = time.monotonic,
        profile: Callable[[], bool] = lambda: False,
    ) -> None:
        self._jobs, self._job_id, self._lease, self._clock, self._profile = jobs, job_id, lease, clock, profile
        self._progress = JobProgress()
        self._last = float("-inf")

    def __call__(self, event: Event) -> None:
        told = self._told(event)
        counting = told.kind == "progress" and event.done < event.total
        if counting and self._clock() - self._last < PROGRESS_SECONDS:
            return
        self._last = self._clock()
        changes: dict[str, Any] = {"phase": event.phase, "done": event.done, "total": event.total, "seconds_left": event.seconds_left}
        if event.preflight is not None:
            changes["metrics"] = event.preflight.metrics
        if event.phase == "search" and self.phase != "search":
            changes["profiled"] = self._profile()
        if told.kind == "trial":
            changes |= {"trials": event.done, "best": told.best}
        self._progress = self._progress.model_copy(update=changes)
        self._jobs.note(self._job_id, self._lease, progress=self._progress, event=told)

    @property
    def phase(self) -> Phase:
        return self._progress.phase or "prepare"

    def _told(self, event: Event) -> JobEvent:
        message = event.message
        if event.preflight is not None:
            message = " ".join(f"{note}." for note in ("every check has passed", *event.preflight.notes))
        tried = event.trial if event.phase == "search" else None
        kind: EventKind = "trial" if tried else "message" if message else "progress" if event.total else "phase"
        return JobEvent(
            seq=0,
            at=utc_now(),
            kind=kind,
            phase=event.phase,
            message=message,
            done=event.done,
            total=event.total,
            seconds=event.seconds,
            seconds_left=event.seconds_left,
            trial=summarize(tried) if tried else None,
            best=summarize(event.best) if event.best else None,
        )


def main() -> None:
    """Entry point. Exit status 0: the job's state says how it ended; anything else: the process broke."""
    errand = Errand.model_validate_json(sys.stdin.readline())
    end_with_parent(errand.parent)
    database = Database(errand.database_url.get_secret_value())
    try:
        with only_one(Path(errand.jobs_folder) / errand.job_id) as folder:
            serve(errand, database, folder)
    except LeaseLost:
        sys.exit(LOST)
    except StorageBusy as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(LATER)
    except StorageError as error:  # The folder cannot be worked in, or no word on how the job failed could be stored.
        JobStore(database).settle(errand.job_id, errand.lease, JobState.FAILED, failure(error, "prepare", errand))
    finally:
        database.close()


def serve(errand: Errand, database: Database, folder: Path) -> None:
    """Run the job, and record why where it fails."""
    jobs, artifacts = JobStore(database), Artifacts(errand.artifacts_url, Path(errand.scratch))
    store = ServedStore(database, errand.lease, jobs, artifacts, folder / "cache")
    narrator = Narrator(jobs, errand.job_id, errand.lease, profile=lambda: store.publish_layers(errand.job_id))
    try:
        asked = store.job(errand.job_id).spec
        inputs = folder / "inputs"
        job = capped(resolve(asked, FileStore(database), artifacts, inputs), errand)
        os.chdir(inputs)
        executor = LocalExecutor(job, folder / "cache", environment=harmless(os.environ))
        study = Study(job, errand.job_id, folder, store, executor, narrator)
        run_job(study, lambda result: deliver(errand, jobs, artifacts, folder, asked, result))
    except JobCancelled:
        return  # Its state says so already.
    except (LeaseLost, StorageBusy):
        raise
    except Exception as error:
        if not isinstance(error, InputError | TrialError):
            sys.excepthook(*sys.exc_info())
        jobs.settle(errand.job_id, errand.lease, JobState.FAILED, failure(error, narrator.phase, errand))


def capped(job: JobSpec, errand: Errand) -> JobSpec:
    """The job within what this server grants one job."""
    asked = job.budget
    memory = errand.memory_gb if asked.memory_gb is None else min(asked.memory_gb, errand.memory_gb)
    granted = asked.model_copy(update={"memory_gb": memory, "parallel": min(asked.parallel, errand.parallel)})
    return job.model_copy(update={"budget": granted})


def deliver(errand: Errand, jobs: JobStore, artifacts: Artifacts, folder: Path, asked: JobSpec, result: JobResult) -> None:
    """Hand over the job's files. Bytes first, rows in one transaction after: nobody sees half of them."""
    write_text(folder / "job.json", asked.model_dump_json(indent=2))
    names = ["best.onnx", "best.plan.json", "report.html", "result.json", "job.json", "sensitivity.csv", "trials.csv"]
    names += [beside(Path("best.onnx")).name] if beside(folder / "best.onnx").is_file() else []
    names += [f"pareto/{outcome.file}" for outcome in result.pareto if outcome.file not in names]
    jobs.finish(errand.job_id, errand.lease, result, [stored(artifacts, folder / name, name) for name in names])


def stored(artifacts: Artifacts, path: Path, name: str) -> ArtifactView:
    """Put a file into the artefact store; the view of it."""
    blob = artifacts.put(path)
    media_type = MEDIA_TYPES[path.suffix]
    return ArtifactView(name=name, size_bytes=blob.size_bytes, sha256=blob.sha256, media_type=media_type, created=utc_now())


def failure(error: Exception, step: str, errand: Errand) -> TrialFailure:
    """Why the job failed, for the one who submitted it: without the server's folders, and with the remedy that a caller has."""
    folder = f"{Path(errand.jobs_folder).parent}{os.sep}"
    message = str(error).replace(folder, "").replace("go on with --resume", "resume the job")
    if isinstance(error, TrialError):
        return TrialFailure(type=error.kind, message=message, step=error.step)
    if isinstance(error, InputError):
        return TrialFailure(type=type(error).__name__, message=message, step=error.field or step)
    return TrialFailure(type=type(error).__name__, message=" ".join(message.split()) or type(error).__name__, step=step)


def report(trial: dict[str, object]) -> None:
    """Tell the server of a finished trial, for its statistics. Where it is gone, this process is about to end, and nothing is lost."""
    with suppress(OSError):
        sys.stdout.write(json.dumps({"trial": trial}) + "\n")
        sys.stdout.flush()


@contextmanager
def only_one(folder: Path) -> Iterator[Path]:
    """The job's folder, once no other process works in it: a runner that has just lost its server needs a moment to end."""
    with writing(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    with lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise StorageBusy(f"another process still works in {folder} after {LOCK_SECONDS:.0f} s; end it") from None
                time.sleep(0.1)
        yield folder


if __name__ == "__main__":
    main()
