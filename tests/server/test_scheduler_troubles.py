"""The scheduler where the system refuses: no room, no processes, a database that is away, numbers of processes that are used again."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from store_samples import Ticking, add_job

from server import scheduler as module
from server.scheduler import Run, Scheduler
from server.settings import Settings
from server.store.database import Database, StorageBusy, sqlite_url
from server.store.events import EventReader
from server.store.jobs import Claim, JobStore
from tuner.store import JobState

SLEEPS = "import sys, time; sys.stdin.readline(); time.sleep(60)"
ENDS = "import sys; sys.stdin.readline()"
BABBLES = """
import sys
sys.stdin.readline()
sys.stdout.buffer.write(b'\\xff\\xfe\\n{"trial": {"seconds": 2.5, "state": "complete"}}\\n')
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLAIM_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) - before == set()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(sqlite_url(tmp_path / "s.db"), Ticking())
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


def scheduler(database: Database, folder: Path, script: str, *, command: tuple[str, ...] = (), **settings: object) -> Scheduler:
    def errand(claim: Claim) -> str:
        return json.dumps({"job_id": claim.job_id}) + "\n"

    given = Settings.model_validate({"data_dir": folder, "lease_seconds": 3600, **settings})
    return Scheduler(database, given, "here", errand, command=command or (sys.executable, "-c", script))


def stop(made: Scheduler) -> None:
    made.start()
    made.stop()


def until_ended(run: Run) -> None:
    """Wait for its process without taking its exit status."""
    os.waitid(os.P_PID, run.process.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("what", ["folder", "program"])
def test_a_job_that_cannot_be_started_fails_and_lets_the_next_one_through(
    database: Database, jobs: JobStore, tmp_path: Path, what: str
) -> None:
    add_job(jobs, "j1")
    add_job(jobs, "j2")
    (tmp_path / "jobs").mkdir()
    if what == "folder":
        (tmp_path / "jobs" / "j1").write_text("a file where the folder should be")
    command = (str(tmp_path / "no-such-program"),) if what == "program" else ()
    made = scheduler(database, tmp_path, SLEEPS, command=command)
    for _ in range(5):
        assert jobs.row_state("j1") != JobState.FAILED
        made.tick()
    error = jobs.view("j1").error
    assert error is not None
    reason = "No such file or directory" if what == "program" else "File exists"
    assert error.step == "start"
    assert error.message == (
        f"the job's process could not be started: {reason}. Free what the server is short of, then resume the job. "
        "(for the 5th time without a trial finished in between)"
    )
    made.tick()
    assert jobs.row_state("j2") == (JobState.INTERRUPTED if what == "program" else JobState.RUNNING)
    stop(made)


def test_a_job_without_a_thread_to_listen_to_it_leaves_no_process(
    database: Database, jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, SLEEPS)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        made.tick()
    assert (made.running, jobs.row_state("j1")) == (0, JobState.INTERRUPTED)


def test_a_job_that_cannot_be_looked_after_does_not_cost_the_others(
    database: Database, jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in ("j1", "j2"):
        add_job(jobs, job_id)
    made = scheduler(database, tmp_path, SLEEPS, jobs=2)
    assert made.tick() == []
    real = JobStore.cancel_requested

    def broken(self: JobStore, job_id: str) -> bool:
        if job_id == "j1":
            raise ValueError("a row that nobody understands")
        return real(self, job_id)

    monkeypatch.setattr(JobStore, "cancel_requested", broken)
    jobs.cancel("j2")
    deadline = time.monotonic() + 30
    while jobs.row_state("j2") == JobState.RUNNING and time.monotonic() < deadline:
        assert [str(error) for error in made.tick()] == ["a row that nobody understands"]
        time.sleep(0.02)
    assert (jobs.row_state("j2"), jobs.row_state("j1"), made.running) == (JobState.CANCELLED, JobState.RUNNING, 1)
    stop(made)


def test_a_database_that_is_away_leaves_the_job_running(
    database: Database, jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, SLEEPS, lease_seconds=1)
    made.tick()

    def away(*_: object, **__: object) -> Any:
        raise StorageBusy("renewing the lease failed: connection refused. Check that the server runs.")

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "heartbeat", away)
        patch.setattr(JobStore, "cancel_requested", away)
        assert len(made.tick()) == 1
    assert "a job could not be looked after; it is tried again: renewing the lease failed: connection refused." in caplog.text
    assert "Traceback" not in caplog.text
    assert (made.tick(), made.running, jobs.row_state("j1")) == ([], 1, JobState.RUNNING)
    stop(made)


def test_all_processes_end_before_the_database_is_asked(
    database: Database, jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in ("j1", "j2"):
        add_job(jobs, job_id)
    made = scheduler(database, tmp_path, SLEEPS, jobs=2)
    made.tick()
    processes = [run.process for run in made._runs]
    seen: list[list[int | None]] = []

    def away(*_: object, **__: object) -> JobState:
        seen.append([process.returncode for process in processes])
        raise StorageBusy("the database is away")

    monkeypatch.setattr(JobStore, "settle", away)
    made._thread.start()
    made.stop()
    assert seen == [[-9, -9], [-9, -9]]


def test_a_group_is_killed_only_while_its_number_is_its_own(
    database: Database, jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, ENDS)
    made.tick()
    (run,) = made._runs
    until_ended(run)
    killed: list[str] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _signal: killed.append(psutil.Process(pid).status()))
    made.tick()
    assert (killed, run.process.returncode) == ([psutil.STATUS_ZOMBIE], 0)
    made._end(run)
    assert len(killed) == 1
    stop(made)


def test_a_job_of_its_own_is_not_taken_over_after_the_machine_slept(database: Database, jobs: JobStore, tmp_path: Path) -> None:
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, SLEEPS, jobs=2)
    made.tick()
    assert isinstance(database.now, Ticking)
    database.now.moment += timedelta(hours=2)
    (run,) = made._runs
    made.tick()
    assert made._runs == [run]
    assert jobs.heartbeat("j1", run.claim.lease, 3600).held
    stop(made)


def test_folders_that_nobody_needs_are_removed(database: Database, jobs: JobStore, tmp_path: Path) -> None:
    for job_id in ("cancelled", "deleted", "done", "queued"):
        add_job(jobs, job_id)
        (tmp_path / "jobs" / job_id / "cache").mkdir(parents=True)
    for job_id in ("cancelled", "deleted", "done"):
        jobs.cancel(job_id)
    jobs.delete("deleted")
    with database.write("testing") as connection:
        connection.exec_driver_sql("UPDATE jobs SET state = 'succeeded' WHERE job_id = 'done'")
    made = scheduler(database, tmp_path, SLEEPS)
    made.tick()
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["cancelled", "queued"]
    jobs.delete("cancelled")
    made.tick()
    assert (tmp_path / "jobs" / "cancelled").is_dir()
    made._swept = float("-inf")
    made.tick()
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["queued"]
    stop(made)


def test_many_jobs_leave_no_file_open_and_no_thread(database: Database, jobs: JobStore, tmp_path: Path) -> None:
    made = scheduler(database, tmp_path, ENDS)
    made.tick()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(4):
        add_job(jobs, f"j{number}")
    deadline = time.monotonic() + 60
    while jobs.counts()[JobState.FAILED] < 4 and time.monotonic() < deadline:
        made.tick()
        time.sleep(0.01)
    assert jobs.counts()[JobState.FAILED] == 4
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_last_words_do_not_tell_where_the_server_keeps_its_files(database: Database, jobs: JobStore, tmp_path: Path) -> None:
    add_job(jobs, "j1")
    script = f"import sys; sys.stdin.readline(); sys.exit('database is locked ({tmp_path}/s.db)')"
    made = scheduler(database, tmp_path, script)
    made.tick()
    until_ended(made._runs[0])
    made.tick()
    told = [json.loads(text)["message"] for _, text in EventReader(database).after("j1", 0)]
    assert "the job's process ended with exit status 1; its last words: database is locked (s.db)" in told
    stop(made)


def test_output_that_is_no_text_does_not_stop_the_listening(database: Database, jobs: JobStore, tmp_path: Path) -> None:
    add_job(jobs, "j1")
    observed: list[tuple[float, str]] = []
    made = scheduler(database, tmp_path, BABBLES)
    made._observe = lambda seconds, state: observed.append((seconds, state))
    made.tick()
    (run,) = made._runs
    assert run.reader is not None
    run.reader.join(30)
    assert observed == [(2.5, "complete")]
    stop(made)
