"""Uploads and submissions are looked at in a child process with limits: whatever they do there, the server goes on."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner.errors import AccutuneError, DataError, InputError, JobError, ModelError, PlanError, StorageError, TrialError, writing
from tuner.executor import FILE_GB, Child, harmless
from tuner.job import JobSpec
from tuner.preview import JobPreview
from tuner.wire import DataFacts, ModelFacts

Refuse = Callable[[str], InputError]
LONGEST_REASON = 1000
_THRIFTY = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Threads and memory pools reserve address space, which counts against the limit."""

log = logging.getLogger(__name__)


class Gate:
    """Asks one warm child process, one call at a time; a child that breaks is replaced. May be called from several threads.

    cache: a folder of its own. memory_gb: the address space that a call may add; seconds: how long a call may take, and how long it
    may wait for its turn. file_gb: the largest file that a call may write, and what one upload may unpack to.

    Every call raises the InputError that says what is wrong with what was sent, and StorageError where the server is at fault."""

    def __init__(
        self,
        cache: Path,
        memory_gb: float,
        seconds: float,
        *,
        file_gb: float = FILE_GB,
        command: Sequence[str] = (sys.executable, "-m", "tuner.gate"),
    ) -> None:
        self._memory_gb, self._seconds = memory_gb, seconds
        self._scratch = cache.resolve() / "scratch"
        self._turn, self._closed = threading.Lock(), False
        with writing(f"the folder {cache.name}"):
            cache.mkdir(parents=True, exist_ok=True)
            (cache / "gate.log").unlink(missing_ok=True)
        self._sweep()
        settings = {"scratch": str(self._scratch), "memory_gb": memory_gb, "file_gb": file_gb}
        self._child = Child(tuple(command), settings, cache / "gate.log", harmless(os.environ) | _THRIFTY)

    def warm(self) -> None:
        """Start the child, so that the first who sends something need not wait for it."""
        with suppress(AccutuneError):  # Whoever sends something will be told.
            self._call("ready", {}, JobError)

    def inspect_model(self, path: Path, name: str) -> ModelFacts:
        """What the model file at `path`, which its sender calls `name`, holds. Raises ModelError, WrongKind."""
        arguments = {"path": str(path.resolve()), "name": name}
        return ModelFacts.model_validate(self._call("inspect_model", arguments, lambda why: ModelError(f"model {name} {why}")))

    def inspect_data(self, path: Path, name: str) -> DataFacts:
        """What the data file at `path`, which its sender calls `name`, holds. Raises DataError, WrongKind."""
        arguments = {"path": str(path.resolve()), "name": name}
        return DataFacts.model_validate(self._call("inspect_data", arguments, lambda why: DataError(f"data file {name} {why}")))

    def check_job(self, job: JobSpec, folder: Path | None = None) -> JobPreview:
        """What a job would do, once it is known that it could start. Its relative file names count from `folder`."""
        arguments = {"job": job.model_dump(mode="json"), "folder": None if folder is None else str(folder.resolve())}
        return JobPreview.model_validate(self._call("check_job", arguments, lambda why: JobError(f"the job {why}")))

    def rebuild(self, plan: Path, model: Path, out: Path, tensors: Path | None = None) -> dict[str, str]:
        """Write the model that an applied plan makes of the original to `out`: {"sha256": of the file}. Raises PlanError.

        tensors: the file with the weights that the plan changed, if it did."""
        arguments = {"plan": str(plan.resolve()), "model": str(model.resolve()), "out": str(out.resolve())}
        arguments |= {} if tensors is None else {"tensors": str(tensors.resolve())}
        found: dict[str, str] = self._call("rebuild", arguments, lambda why: PlanError(f"the plan {why}"))
        return found

    def close(self) -> None:
        """End the child, also in the middle of a call, and take no more calls."""
        self._closed = True
        self._child.end()

    def _call(self, name: str, arguments: dict[str, Any], refuse: Refuse) -> Any:
        if not self._turn.acquire(timeout=self._seconds):
            raise StorageError(f"the server is busy looking at other files and jobs, for more than {self._seconds:g} s; try again later")
        try:
            return self._child.call(name, arguments, self._seconds, lambda _done, _total: None)
        except TrialError as error:
            self._child.kill()  # What it did last may have left it short of memory.
            self._sweep()
            if self._closed:
                raise StorageError("the server is shutting down; try again later") from error
            log.warning("the gate broke at %s: %s: %s", name, error.kind, error)
            raise refuse(self._reason(error)) from error
        except OSError as error:
            raise StorageError(f"the server could not start a process ({error.strerror or error}); try again later") from error
        finally:
            self._turn.release()

    def _reason(self, error: TrialError) -> str:
        """What follows the name of what was sent: what happened, the limit, the way out."""
        if error.kind.endswith("MemoryError"):
            return (
                f"needs more than the {self._memory_gb:g} GB of memory that may be spent on looking at it; "
                "send a smaller one, or have the server's inspect_memory_gb raised"
            )
        if error.kind == "Timeout":
            return (
                f"takes longer to look at than the {self._seconds:g} s allowed; "
                "send a smaller one, or have the server's inspect_seconds raised"
            )
        if error.kind == "WorkerDied":
            cause = str(error).partition("; its last words")[0]
            return (
                f"could not be looked at: {cause} while reading it. Write it again with a current exporter, and try it with `tuner` first"
            )
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        return f"could not be read ({error.kind}: {reason}). Write it again with a current exporter, and try it with `tuner` first"

    def _sweep(self) -> None:
        """What a call unpacked goes when it ends; this is for calls that were ended."""
        shutil.rmtree(self._scratch, ignore_errors=True)
