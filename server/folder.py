"""The folder of a job on the command line: opened for one process, run, resumed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.console import ProgressView, tell
from server.store import SqlTrialStore, sqlite_url
from tuner.conclude import run_job
from tuner.errors import JobCancelled, JobError, writing
from tuner.executor import LocalExecutor
from tuner.job import JobSpec, job_id
from tuner.preflight import check_names
from tuner.results import JobResult
from tuner.store import JobRecord, JobState, TrialStore
from tuner.study import Study

DATABASE = "trials.db"


def run_folder(spec: JobSpec | None, folder: Path, *, resume: bool, finish: bool) -> JobResult:
    """Run or resume the job of a folder."""
    if spec is not None:
        check_names(spec)
    with _only_one(folder, resume):
        if not resume:
            _make_way(folder)
        store = SqlTrialStore(sqlite_url(folder.resolve() / DATABASE))
        name = job_id()
        if resume:
            record = _newest_job(store, folder)
            name, spec = record.job_id, record.spec
            if record.state == JobState.SUCCEEDED and (folder / "result.json").is_file():
                tell(f"The job in {folder} is finished already.")
                return JobResult.model_validate_json((folder / "result.json").read_bytes())
        assert spec is not None
        try:
            with ProgressView(spec) as view:
                executor = LocalExecutor(spec, folder / "cache")
                return run_job(Study(spec, name, folder, store, executor, view, finish_now=finish))
        except JobCancelled as stop:
            hint = f"go on with: tuner run --resume {folder}   (add --finish to certify the best so far)"
            raise JobCancelled(f"{stop}; {hint}") from None
        finally:
            store.close()


def _newest_job(store: TrialStore, folder: Path) -> JobRecord:
    ids = store.job_ids()
    if not ids:
        raise JobError(f"the job in {folder} broke off before it was stored; start it again with its job file and --out {folder}")
    return store.job(ids[-1])


@contextmanager
def _only_one(folder: Path, resume: bool) -> Iterator[None]:
    """Opens the job's folder for one process at a time: for a new job it is created, for a resumed one it must hold a job."""
    with writing(folder):
        if resume and not (folder / DATABASE).is_file():
            raise JobError(f"there is no job in {folder} ({DATABASE} is missing); give an interrupted job's folder, or a job file")
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
        lock = (folder / "lock").open("a")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has no flock; there, nothing guards the folder.
            pass
        except OSError:
            raise JobError(f"another process is working on the job in {folder}; wait for it or stop it") from None
        yield


def _make_way(folder: Path) -> None:
    """A job that ended before its first trial (bad input, say) makes way for the corrected one; any other is protected."""
    if not (folder / DATABASE).is_file():
        return
    store = SqlTrialStore(sqlite_url(folder.resolve() / DATABASE))
    try:
        if any(True for job in store.job_ids() for _ in store.trials(job)):
            raise JobError(f"{folder} holds a job with trials; go on with it by --resume {folder}, or choose another folder with --out")
    finally:
        store.close()
    with writing(folder):
        for path in folder.glob(f"{DATABASE}*"):
            path.unlink()
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "cache").mkdir(exist_ok=True)
