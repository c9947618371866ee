"""A worker whose calls do what a test asks for: the real protocol around things that go wrong."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuner import errors, worker
from tuner.errors import TrialError, UnknownName
from tuner.job import JobSpec


class FakeCalls:
    def __init__(self, job: JobSpec, cache: Path, progress: Callable[[int, int], None]) -> None:
        self.job, self.cache, self.progress = job, cache, progress
        self.calls = 0

    def count(self) -> dict[str, int]:
        self.calls += 1
        return {"pid": os.getpid(), "calls": self.calls, "seed": self.job.seed}

    def steps(self, total: int) -> str:
        for done in range(1, total + 1):
            self.progress(done, total)
        return "done"

    def chatter(self) -> str:
        sys.stdout.write("a library on standard output\n")
        sys.stdout.flush()
        os.write(1, b"and native code\n")
        subprocess.run(["echo", "and a child"], check=True)
        return "heard"

    def leave(self, code: int, words: str = "") -> None:
        sys.stderr.write(words)
        sys.stderr.flush()
        os._exit(code)

    def die(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    def sleep(self, seconds: float) -> str:
        (self.cache / "asleep").write_text(str(os.getpid()))
        time.sleep(seconds)
        return "awake"

    def with_child(self) -> None:
        child = subprocess.Popen(["sleep", "60"])
        (self.cache / "grandchild").write_text(str(child.pid))
        time.sleep(60)

    def allocate(self, gigabytes: float) -> int:
        return len(bytearray(int(gigabytes * 2**30)))

    def limits(self) -> dict[str, int]:
        return {"file": resource.getrlimit(resource.RLIMIT_FSIZE)[0], "core": resource.getrlimit(resource.RLIMIT_CORE)[0]}

    def enlarge(self, size: int) -> None:
        with (self.cache / "large").open("wb") as file:
            file.truncate(size)

    def fail(self, message: str) -> None:
        raise ZeroDivisionError(message)

    def fail_at(self, step: str) -> None:
        raise TrialError("it broke", step=step, kind="ValueError")

    def refuse(self, kind: str, field: str | None) -> None:
        raise getattr(errors, kind)("it cannot be used", field=field)

    def misname(self) -> None:
        raise UnknownName("metric", "top-1", ["top1", "mse"], field="metrics")

    def unsayable(self) -> Any:
        return object()


if __name__ == "__main__":
    worker.Calls = FakeCalls  # type: ignore[assignment, misc]
    worker.main()
