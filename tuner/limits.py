"""What a child process may take of the machine, set by itself before it touches anything that others made."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

WATCH_SECONDS = 0.5


def limit_memory(gigabytes: float) -> None:
    """Let this process add at most so much address space to what it has now; asking for more then raises MemoryError."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_files(gigabytes: float, most: int | None = None) -> None:
    """Let no file that this process writes grow beyond `gigabytes` (writing on then fails with EFBIG), open at most `most` files at
    once, and leave no core dump."""
    import resource

    _lower(resource.RLIMIT_FSIZE, int(gigabytes * 2**30))
    _lower(resource.RLIMIT_CORE, 0)
    if most is not None:
        _lower(resource.RLIMIT_NOFILE, most)


def _lower(kind: int, limit: int) -> None:
    """Nobody may raise a limit that was set before."""
    import resource

    _, hard = resource.getrlimit(kind)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def end_with_parent(parent: int | None = None) -> None:
    """Leave when the parent is gone, also in the middle of a long computation.

    parent: its number, told by itself; without it, one that went while this process was still starting is not missed."""
    expected = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
