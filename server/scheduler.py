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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from server.settings import Settings
from server.store.database import Database, NotFound
from server.store.jobs import Claim, JobStore
from tuner.errors import AccutuneError
from tuner.results import TrialFailure
from tuner.store import JobState
from tuner.wire import SETTLED

TICK_SECONDS = 0.2
CLAIM_SECONDS = 0.5
CANCEL_GRACE_SECONDS = 0.8
"""How long a job may take to stop by itself before its processes are ended; a cancel is honoured within 2 s."""
BEATS_PER_LEASE = 5
LOG_LINES = 12
SECRET = ("ACCUTUNE_DATABASE_URL", "ACCUTUNE_KEY")
"""Variables that no job's process inherits: what runs there has read uploaded files."""

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
    lost: bool = False
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
        self._jobs, self._settings, self._node = JobStore(database), settings, node
        self._errand, self._observe, self._command = errand, observe, tuple(command)
        self._folder = settings.data_dir / "jobs"
        self._runs: list[Run] = []
        self._over = threading.Event()
        self._claimed = float("-inf")
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
            try:
                self.tick()
            except Exception:  # A database that is away for a minute must not end the service.
                log.exception("the scheduler could not do its round; it tries again")
                self._over.wait(1.0)

    def tick(self) -> None:
        """One round: settle what ended, look after what runs, start what may start."""
        for run in list(self._runs):
            if run.process.poll() is not None:
                self._settle(run)
                self._runs.remove(run)
            else:
                self._look_after(run)
        now = time.monotonic()
        while len(self._runs) < self._settings.jobs and now - self._claimed >= CLAIM_SECONDS:
            claim = self._jobs.claim(self._node, self._settings.lease_seconds)
            if claim is None:
                self._claimed = now
                break
            self._start(claim)

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
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in SECRET},
            )
        run = Run(claim, process, path, beaten=time.monotonic())
        self._runs.append(run)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(self._errand(claim))
        run.reader = threading.Thread(target=self._listen, args=(process,), daemon=True)
        run.reader.start()
        log.info("job started", extra={"job_id": claim.job_id, "pid": process.pid})

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
            with suppress(NotFound):  # Deleted, just after it ended.
                run.lost = self._jobs.row_state(run.claim.job_id) not in SETTLED
            if run.lost:
                log.warning("job was taken over by another server; ending it here", extra={"job_id": run.claim.job_id})
            self._end(run)
            return
        if asked and run.cancelled is None:
            run.cancelled = now
        if run.cancelled is not None and now - run.cancelled > CANCEL_GRACE_SECONDS:
            self._end(run)

    def _settle(self, run: Run) -> None:
        """Write down how a job ended whose process is gone, where the process did not."""
        self._end(run)
        job_id, lease = run.claim.job_id, run.claim.lease
        if run.lost:
            return
        if run.cancelled is not None or self._jobs.cancel_requested(job_id):
            state = self._jobs.settle(job_id, lease, JobState.CANCELLED)
        else:
            state = self._jobs.settle(job_id, lease, JobState.INTERRUPTED, self._epitaph(run), crashed=True)
        log.info("job ended", extra={"job_id": job_id, "state": state.value})
        if state == JobState.SUCCEEDED:  # Everything that is left is an artefact by now.
            shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def _epitaph(self, run: Run) -> TrialFailure:
        code = run.process.returncode
        cause = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit status {code}"
        last = ""
        with suppress(OSError), run.log.open(errors="replace") as lines:
            said = [line.strip() for line in deque(lines, maxlen=LOG_LINES) if line.strip()]
            last = f"; its last words: {said[-1][:300]}" if said else ""
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return TrialFailure(type="StudyDied", message=f"the job's process ended {cause}{hint}{last}", step="study")

    @staticmethod
    def _end(run: Run) -> None:
        """Kill the job's process and all that it started."""
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            family = psutil.Process(run.process.pid).children(recursive=True)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(run.process.pid, signal.SIGKILL)
        for child in family:
            with suppress(psutil.Error):
                child.kill()
        run.process.wait()
