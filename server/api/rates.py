"""How often a caller may ask: a token bucket for each, in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Buckets:
    """A bucket holds a minute's requests and refills evenly, so that a burst is served and the average kept.

    Only callers that are known have one, so there are no more of them than keys. For the event loop's thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full: dict[str | None, tuple[float, float]] = {}
        """By caller: how many requests are left, and as of when."""

    def take(self, caller: str | None, per_minute: int) -> int:
        """0 where the request may pass, else the whole seconds until one may. per_minute: 0 is no limit."""
        if not per_minute:
            return 0
        now = self._clock()
        left, since = self._full.get(caller, (float(per_minute), now))
        left = min(float(per_minute), left + (now - since) * per_minute / 60)
        passes = left >= 1
        self._full[caller] = (left - 1 if passes else left, now)
        return 0 if passes else max(1, math.ceil((1 - left) * 60 / per_minute))
