"""Figures that were drawn lately, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from tuner.store import JobState

KEPT = 16
"""Drawn figures in memory, each up to half a megabyte."""
Key = tuple[str, str, JobState, int]
"""Job, figure, the job's state, how many of its trials are finished."""


class Drawn:
    """The figures that were asked for last, as long as nothing new is known. For any number of threads."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, str] = OrderedDict()

    def get(self, key: Key) -> str | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Key, text: str) -> None:
        with self._lock:
            self._kept[key] = text
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
