"""The scheduler on a real store, with small scripts in place of the runner."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from store_samples import Ticking, add_job

from server.scheduler import Scheduler
from server.settings import Settings
from server.store.database import Database, sqlite_url
from server.store.events import EventReader
from server.store.jobs import Claim, JobStore
from tuner.store import JobState

SLEEPS = "import sys, time; sys.stdin.readline(); time.sleep(60)"
DIES = "import os, sys; sys.stdin.readline(); sys.stderr.write('out of luck\\n'); sys.stderr.flush(); os.kill(os.getpid(), 9)"
FORKS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
TELLS = 'import sys; sys.stdin.readline(); print(\'{"trial": {"seconds": 1.5, "state": "complete"}}\\nnonsense\')'
ECHOES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.readline())"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(sqlite_url(tmp_path / "s.db"), Ticking())
    made.upgrade()
    yield made
    made.close()


def scheduler(database: Database, folder: Path, script: str, *arguments: str, node: str = "here", **settings: object) -> Scheduler:
    def errand(claim: Claim) -> str:
        return json.dumps({"job_id": claim.job_id, "lease": claim.lease}) + "\n"

    given = Settings.model_validate({"data_dir": folder, "lease_seconds": 3600, **settings})
    return Scheduler(database, given, node, errand, observed.append_pair, (sys.executable, "-c", script, *arguments))


class Observed(list[tuple[float, str]]):
    def append_pair(self, seconds: float, state: str) -> None:
        self.append((seconds, state))


observed = Observed()


def rounds(made: Scheduler, jobs: JobStore, job_id: str, *until: JobState) -> JobState:
    """Tick until the job is in one of the states."""
    deadline = time.monotonic() + 30
    while jobs.row_state(job_id) not in until:
        assert time.monotonic() < deadline, jobs.row_state(job_id)
        made.tick()
        time.sleep(0.02)
    return jobs.row_state(job_id)


def test_the_runner_is_told_what_to_do(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, ECHOES, str(tmp_path / "told"))
    rounds(made, jobs, "j1", JobState.FAILED)
    told = json.loads((tmp_path / "told").read_text())
    assert (told["job_id"], len(told["lease"])) == ("j1", 32)


def test_no_more_jobs_run_at_once_than_are_set(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    for name in ("j1", "j2", "j3"):
        add_job(jobs, name)
    made = scheduler(database, tmp_path, SLEEPS, jobs=2)
    for _ in range(3):
        made.tick()
    assert (made.running, jobs.counts()[JobState.RUNNING], jobs.row_state("j3")) == (2, 2, JobState.QUEUED)
    stop(made)
    assert jobs.counts().get(JobState.RUNNING, 0) == 0


def stop(made: Scheduler) -> None:
    made.start()
    made.stop()


def test_a_job_whose_process_dies_is_run_again_and_fails_in_the_end(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, DIES)
    rounds(made, jobs, "j1", JobState.FAILED)
    error = jobs.view("j1").error
    assert error is not None
    assert (error.type, error.step) == ("StudyDied", "study")
    assert "by signal 9 (SIGKILL); the system may have run out of memory; its last words: out of luck (for the 5th time" in error.message
    states = [json.loads(text)["state"] for _, text in EventReader(database).after("j1", 0)]
    assert states == ["queued", *["running", "interrupted"] * 4, "running", "failed"]


def test_a_cancel_ends_a_deaf_job_and_all_its_processes(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, FORKS)
    made.tick()
    (run,) = made._runs
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(run.process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert jobs.cancel("j1") == JobState.RUNNING
    assert rounds(made, jobs, "j1", JobState.CANCELLED) == JobState.CANCELLED
    assert run.process.returncode == -9
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert made.running == 0


def test_stopping_interrupts_and_the_next_start_goes_on(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    add_job(jobs, "j1")
    first = scheduler(database, tmp_path, SLEEPS)
    first.tick()
    process = first._runs[0].process
    stop(first)
    assert (jobs.row_state("j1"), process.returncode) == (JobState.INTERRUPTED, -9)
    second = scheduler(database, tmp_path, SLEEPS)
    second.tick()
    assert (jobs.row_state("j1"), second.running) == (JobState.RUNNING, 1)
    stop(second)


def test_a_killed_servers_jobs_are_free_when_it_starts_again(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    add_job(jobs, "j1")
    claim = jobs.claim("here", 3600)
    assert claim is not None
    made = scheduler(database, tmp_path, SLEEPS)
    made.start()
    deadline = time.monotonic() + 30
    while made.running == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (made.running, made.alive) == (1, True)
    made.stop()
    assert not made.alive
    assert not jobs.heartbeat("j1", claim.lease, 1).held


def test_a_job_that_another_server_took_over_is_ended_here(database: Database, tmp_path: Path) -> None:
    jobs, clock = JobStore(database), database.now
    assert isinstance(clock, Ticking)
    add_job(jobs, "j1")
    made = scheduler(database, tmp_path, SLEEPS, lease_seconds=1)
    made.tick()
    process = made._runs[0].process
    clock.moment += timedelta(seconds=60)
    taken = jobs.claim("there", 3600)
    assert taken is not None
    deadline = time.monotonic() + 30
    while made.running and time.monotonic() < deadline:
        made.tick()
        time.sleep(0.05)
    assert (made.running, process.returncode, jobs.row_state("j1")) == (0, -9, JobState.RUNNING)
    assert jobs.heartbeat("j1", taken.lease, 3600).held


def test_finished_trials_are_observed_and_other_output_is_not(database: Database, tmp_path: Path) -> None:
    jobs = JobStore(database)
    add_job(jobs, "j1")
    observed.clear()
    made = scheduler(database, tmp_path, TELLS)
    made.tick()
    run = made._runs[0]
    assert run.reader is not None
    run.reader.join(30)
    assert observed == [(1.5, "complete")]


def test_a_round_that_breaks_does_not_end_the_scheduler(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scheduler(database, tmp_path, SLEEPS)
    done: list[int] = []

    def tick() -> list[Exception]:
        done.append(1)
        if len(done) == 1:
            raise RuntimeError("the database is away")
        return []

    monkeypatch.setattr(made, "tick", tick)
    made.start()
    deadline = time.monotonic() + 30
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert made.alive
    made.stop()
    assert len(done) >= 2
