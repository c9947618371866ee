"""The parent's side of workers: calls go to child processes that stay warm, and a child that dies costs one call."""

from __future__ import annotations

import builtins
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tuner import errors
from tuner.errors import InputError, JobCancelled, TrialError, writing
from tuner.job import JobSpec

Progress = Callable[[int, int], None]
LOG_LINES = 12
KEPT = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
KEPT_PREFIXES = ("PYTHON", "LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "ACCUTUNE_")
SECRETS = ("ACCUTUNE_DATABASE_URL", "ACCUTUNE_ARTIFACTS_URL", "ACCUTUNE_KEY")
LAST_MOMENT_SECONDS = 1.0
FILE_GB = 64.0
"""The largest file that a worker may write."""
LONGEST_REPLY = 64 * 2**20
"""Characters. A worker handles what others made; it must not fill its parent's memory."""


class Executor(Protocol):
    """Runs a worker's calls (see `tuner.worker.Calls`) somewhere. Arguments and results are plain JSON values."""

    def call(self, name: str, arguments: dict[str, Any], *, timeout: float, progress: Progress = lambda _done, _total: None) -> Any:
        """The call's result. Raises TrialError where the call broke, its process died or `timeout` seconds passed; the
        InputError that the call raised; JobCancelled after `cancel`. May be called from several threads at once."""

    def cancel(self) -> None:
        """End every running call now, and refuse further ones."""

    def close(self) -> None: ...


class LocalExecutor:
    """Child processes on this machine, as many as trials may run at once. They are started when first needed."""

    def __init__(
        self,
        job: JobSpec,
        cache: Path,
        command: Sequence[str] = (sys.executable, "-m", "tuner.worker"),
        file_gb: float = FILE_GB,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """file_gb: the largest file that a worker may write, in GiB. environment: the workers' variables; left out: this process's."""
        limits = {"memory_gb": job.budget.memory_gb, "file_gb": file_gb}
        self._settings = {"job": job.model_dump(mode="json"), "cache": str(cache)} | limits
        self._command = tuple(command)
        with writing(f"the folder {cache}"):
            cache.mkdir(parents=True, exist_ok=True)
        self._cancelled = threading.Event()
        logs = (cache / f"worker-{index}.log" for index in range(job.budget.parallel))
        self._all = [Child(self._command, self._settings, log, environment) for log in logs]
        self._free: queue.LifoQueue[Child] = queue.LifoQueue()
        for child in reversed(self._all):
            self._free.put(child)

    def call(self, name: str, arguments: dict[str, Any], *, timeout: float, progress: Progress = lambda _done, _total: None) -> Any:
        child = self._free.get()
        try:
            if self._cancelled.is_set():
                raise JobCancelled("the job was cancelled")
            return child.call(name, arguments, timeout, progress)
        except TrialError:
            if self._cancelled.is_set():
                raise JobCancelled("the job was cancelled") from None
            raise
        finally:
            self._free.put(child)

    def cancel(self) -> None:
        self._cancelled.set()
        self.close()

    def close(self) -> None:
        for child in self._all:
            child.end()


class Child:
    """One worker process; started again on the next call after it died. It is handed `settings` first; what it prints goes to `log`.

    environment: its variables; left out: those of this process."""

    def __init__(self, command: tuple[str, ...], settings: dict[str, Any], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command, self._settings, self._log, self._environment = command, settings, log, environment
        self._process: subprocess.Popen[str] | None = None
        self._log_start = 0
        self._lock = threading.Lock()
        self._ended = False
        self._busy = False

    def call(self, name: str, arguments: dict[str, Any], timeout: float, progress: Progress) -> Any:
        """The call's result. Raises as `Executor.call` does."""
        process, timed_out = self._running(), threading.Event()

        def expire() -> None:
            timed_out.set()
            self.kill()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            self._send(process, {"call": name, "args": arguments})
            return self._reply(process, progress)
        except (EOFError, BrokenPipeError, json.JSONDecodeError):
            self._settle(process)
            if timed_out.is_set():
                raise TrialError(f"'{name}' took longer than {timeout:.0f} s and was ended", step=name, kind="Timeout") from None
            raise TrialError(self._epitaph(process), step=name, kind="WorkerDied") from None
        except (InputError, TrialError):
            raise
        except BaseException:
            self.kill()  # Its reply is still to come and must not be taken for that of the next call.
            raise
        finally:
            timer.cancel()
            with self._lock:
                self._busy = False
                if self._ended:
                    self._close_pipes()

    def kill(self) -> None:
        """End the process and whatever it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """End the process and start no other."""
        with self._lock:
            self._ended = True
            self.kill()
            if not self._busy:
                self._close_pipes()

    def _settle(self, process: subprocess.Popen[str]) -> None:
        """Let a process that closed its end of the pipe die of its own cause, so that the cause can be told."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(LAST_MOMENT_SECONDS)
        self.kill()

    def _running(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._ended:
                raise TrialError("the executor was closed", step="start", kind="Closed")
            process = self._started()
            self._busy = True
            return process

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._close_pipes()
        with self._log.open("a") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=self._environment,
            )
        with suppress(BrokenPipeError):
            self._send(self._process, self._settings | {"parent": os.getpid()})
        return self._process

    def _close_pipes(self) -> None:
        for stream in (self._process.stdin, self._process.stdout) if self._process is not None else ():
            with suppress(OSError):
                stream and stream.close()

    @staticmethod
    def _send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()

    @staticmethod
    def _reply(process: subprocess.Popen[str], progress: Progress) -> Any:
        assert process.stdout is not None
        while line := process.stdout.readline(LONGEST_REPLY):
            message = json.loads(line)  # A line that was cut off breaks here, and so ends the process.
            if "progress" in message:
                progress(*message["progress"])
            elif "input_error" in message:
                raise _input_error(**message["input_error"])
            elif "error" in message:
                error = message["error"]
                raise TrialError(error["message"], step=error["step"], kind=error["type"])
            else:
                return message["result"]
        raise EOFError

    def _epitaph(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        cause = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit status {code}"
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        with suppress(OSError), self._log.open(errors="replace") as log:
            log.seek(self._log_start)
            last = [line.strip() for line in deque(log, maxlen=LOG_LINES) if line.strip()]
            return f"the worker ended {cause}{hint}" + (f"; its last words: {last[-1][:300]}" if last else "")
        return f"the worker ended {cause}{hint}"


def _input_error(type: str, message: str, field: str | None) -> InputError:
    """The error as it was raised in the worker."""
    found = getattr(errors, type, InputError)
    if not (isinstance(found, builtins.type) and issubclass(found, InputError)) or found is errors.UnknownName:
        found = errors.JobError
    return found(message, field=field)


def harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process needs which reads strangers' files. Credentials, of whatever library, are not among them."""
    known = {name: value for name, value in environment.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return {name: value for name, value in known.items() if name not in SECRETS}
