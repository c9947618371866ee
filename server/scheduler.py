"""Claims jobs, runs each in a process of its own, and looks after those processes.

Everything it knows stands in the store too. It may be killed at any moment: the leases of its jobs run out, or are ended by the
next server on the same data folder, and the jobs are claimed again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from server.settings import Settings
from server.store.database import Database
from server.store.events import EventReader
from server.store.jobs import Claim, JobStore
from tuner.errors import AccutuneError
from tuner.executor import SECRETS
from tuner.results import TrialFailure
from tuner.store import JobState

TICK_SECONDS = 0.2
CLAIM_SECONDS = 0.5
CANCEL_GRACE_SECONDS = 0.8
"""How long a job may take to stop by itself before its processes are ended; a cancel is honoured within 2 s."""
BEATS_PER_LEASE = 5
KILL_SECONDS = 2.0
"""How long a killed process is waited for: one that hangs in the kernel must not hold up the others."""
SWEEP_SECONDS = 600.0
SWEEP_BATCH = 500
LOG_LINES = 12

log = logging.getLogger("accutune.scheduler")
Observe = Callable[[float, str], None]


@dataclass
class Run:
    """One job's process on this machine."""

    claim: Claim
    process: subprocess.Popen[str]
    log: Path
    beaten: float
    cancelled: float | None = None
    """When the request to cancel was seen."""
    reader: threading.Thread | None = field(default=None, repr=False)


class Scheduler:
    """Keeps up to `settings.jobs` jobs running. `observe` is told the seconds and state of every finished trial."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        node: str,
        errand: Callable[[Claim], str],
        observe: Observe = lambda _seconds, _state: None,
        command: Sequence[str] = (sys.executable, "-m", "server.runner"),
    ) -> None:
        self._jobs, self._events = JobStore(database), EventReader(database)
        self._settings, self._node = settings, node
        self._errand, self._observe, self._command = errand, observe, tuple(command)
        self._folder = settings.data_dir / "jobs"
        self._runs: list[Run] = []
        self._over = threading.Event()
        self._claimed = self._swept = float("-inf")
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self) -> None:
        for job_id in self._jobs.release_node(self._node):
            log.info("job was cut off when this server ended; it will go on", extra={"job_id": job_id})
        self._thread.start()

    def stop(self) -> None:
        """End all runs; their jobs count as interrupted and go on when a server starts again."""
        self._over.set()
        self._thread.join()
        for run in self._runs:
            self._end(run)
        for run in self._runs:  # Only now: a database that is away answers late.
            with suppress(AccutuneError):
                self._jobs.settle(run.claim.job_id, run.claim.lease, JobState.INTERRUPTED)
        self._runs.clear()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._runs)

    def _loop(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            # A database that is away for a minute must not end the service.
            with _telling("the scheduler could not do its round; it tries again") as broke:
                broke += self.tick()
            if broke:
                self._over.wait(1.0)

    def tick(self) -> list[Exception]:
        """One round: settle what ended, look after what runs, start what may start. What went wrong with single jobs."""
        troubles: list[Exception] = []
        for run in list(self._runs):
            # Each by itself: one job that cannot be looked after must not cost the others their leases.
            with _telling("a job could not be looked after; it is tried again", troubles, run.claim.job_id):
                if _has_ended(run.process):
                    self._settle(run)
                    self._runs.remove(run)
                else:
                    self._look_after(run)
        now = time.monotonic()
        while len(self._runs) < self._settings.jobs and now - self._claimed >= CLAIM_SECONDS:
            # Not its own, also where a lease ran out while the machine slept: their next heartbeat renews it.
            claim = self._jobs.claim(self._node, self._settings.lease_seconds, besides=[run.claim.job_id for run in self._runs])
            if claim is None:
                self._claimed = now
                break
            try:
                self._start(claim)
            except (OSError, RuntimeError) as error:  # No room, processes, threads or files left: no reason to wait for the lease to end.
                self._claimed = now
                self._give_up(claim, error)
                break
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._sweep()
        return troubles

    def _start(self, claim: Claim) -> None:
        folder = self._folder / claim.job_id
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "runner.log"
        with path.open("w") as errors:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in SECRETS},
            )
        run = Run(claim, process, path, beaten=time.monotonic())
        try:
            run.reader = threading.Thread(target=self._listen, args=(process,), daemon=True)
            run.reader.start()
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(self._errand(claim))
        except BaseException:  # It would wait for its errand for ever.
            self._end(run)
            raise
        self._runs.append(run)
        log.info("job started", extra={"job_id": claim.job_id, "pid": process.pid})

    def _give_up(self, claim: Claim, error: Exception) -> None:
        """Say why a job's process could not be started; after some times in a row the job has failed of it."""
        log.error("job could not be started: %s", error, extra={"job_id": claim.job_id})
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"the job's process could not be started: {cause}. Free what the server is short of, then resume the job."
        failure = TrialFailure(type=type(error).__name__, message=message, step="start")
        self._jobs.settle(claim.job_id, claim.lease, JobState.INTERRUPTED, failure, crashed=True)

    def _sweep(self) -> None:
        """Remove the folders of jobs that were deleted, or that succeeded elsewhere: what they left is in the artefact store."""
        if not self._folder.is_dir():
            return
        names = sorted({entry.name for entry in self._folder.iterdir()} - {run.claim.job_id for run in self._runs})
        for first in range(0, len(names), SWEEP_BATCH):
            batch = names[first : first + SWEEP_BATCH]
            states = {job_id: state for job_id, (_, state) in self._events.latest(batch).items()}
            for name in batch:
                if states.get(name, JobState.SUCCEEDED) == JobState.SUCCEEDED:
                    shutil.rmtree(self._folder / name, ignore_errors=True)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    trial = json.loads(line)["trial"]
                    self._observe(float(trial["seconds"]), str(trial["state"]))

    def _look_after(self, run: Run) -> None:
        now = time.monotonic()
        if run.cancelled is None and now - run.beaten < self._settings.lease_seconds / BEATS_PER_LEASE:
            asked, held = self._jobs.cancel_requested(run.claim.job_id), True
        else:
            beat = self._jobs.heartbeat(run.claim.job_id, run.claim.lease, self._settings.lease_seconds)
            asked, held, run.beaten = beat.cancel_requested, beat.held, now
        if not held:
            # The job was settled, by its own process as a rule; resumed or deleted since; or another server has it.
            self._end(run)
            return
        if asked and run.cancelled is None:
            run.cancelled = now
        if run.cancelled is not None and now - run.cancelled > CANCEL_GRACE_SECONDS:
            self._end(run)

    def _settle(self, run: Run) -> None:
        """Write down how a job ended whose process is gone, where the process did not. Without the lease nothing is changed."""
        self._end(run)
        job_id, lease = run.claim.job_id, run.claim.lease
        if run.cancelled is not None or self._jobs.cancel_requested(job_id):
            state = self._jobs.settle(job_id, lease, JobState.CANCELLED)
        else:
            state = self._jobs.settle(job_id, lease, JobState.INTERRUPTED, self._epitaph(run), crashed=True)
        if state == JobState.RUNNING:
            log.warning("job was taken over by another server and has ended here", extra={"job_id": job_id})
        else:
            log.info("job ended", extra={"job_id": job_id, "state": state.value})
        if state == JobState.SUCCEEDED:  # Everything that is left is an artefact by now.
            shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def _epitaph(self, run: Run) -> TrialFailure:
        code = run.process.returncode
        cause = f"by signal {_signal(-code)}" if code < 0 else f"with exit status {code}"
        last = ""
        with suppress(OSError), run.log.open(errors="replace") as lines:
            said = [line.strip() for line in deque(lines, maxlen=LOG_LINES) if line.strip()]
            # Callers read this; where the server keeps its files is nothing to them.
            words = said[-1].replace(f"{self._folder.resolve().parent}{os.sep}", "") if said else ""
            last = f"; its last words: {words[:300]}" if words else ""
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return TrialFailure(type="StudyDied", message=f"the job's process ended {cause}{hint}{last}", step="study")

    @staticmethod
    def _end(run: Run) -> None:
        """Kill the job's process and all that it started, unless it is gone already."""
        process = run.process
        if process.returncode is not None:  # Its number may be that of a stranger by now.
            return
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in family:
            with suppress(psutil.Error):
                child.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)


@contextmanager
def _telling(what: str, broke: list[Exception] | None = None, job_id: str | None = None) -> Iterator[list[Exception]]:
    """Logs what breaks inside, adds it to `broke` and goes on."""
    broke = [] if broke is None else broke
    try:
        yield broke
    except AccutuneError as error:
        broke.append(error)
        log.error("%s: %s", what, error, extra={"job_id": job_id})
    except Exception as error:
        broke.append(error)
        log.exception(what, extra={"job_id": job_id})


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether it has, without taking its exit status: until then its number, and that of its group, belong to nobody else."""
    if process.returncode is None and hasattr(os, "waitid"):
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _signal(number: int) -> str:
    with suppress(ValueError):  # The real-time signals have no names.
        return f"{number} ({signal.Signals(number).name})"
    return str(number)
