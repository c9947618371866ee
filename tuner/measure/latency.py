"""Latency as a ratio: baseline and candidate take turns in short blocks, so that whatever slows the machine slows both."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from search_spaces.schemes import Frozen
from tuner.measure.statistics import ratio_interval
from tuner.results import Interval

try:
    import fcntl
except ImportError:  # Windows has no flock; there, latency is measured without the lock.
    fcntl = None  # type: ignore[assignment]

BLOCK_SECONDS = 0.004
WARM_UP_BLOCKS = 2


class Latency(Frozen):
    """Two models measured in turn. `ratio` is baseline over candidate: above 1 the candidate is faster."""

    baseline_ms: float
    candidate_ms: float
    ratio: Interval
    blocks: int
    seconds: float

    @property
    def differs(self) -> bool:
        """False where there is no measurable difference: the interval holds 1."""
        return not self.ratio.contains(1.0)


def compare_latency(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    *,
    seconds: float,
    least_blocks: int = 11,
    confidence: float = 0.95,
    precision: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time both callables (one call is one batch) in interleaved blocks: A B, B A, A B, …

    Ends when the interval of the median ratio is within ±`precision` of it after at least `least_blocks`, or after `seconds`
    (never before `least_blocks`). Milliseconds are medians over blocks of the time per call."""
    started = clock()
    calls = [_calls_per_block(run, clock) for run in (baseline, candidate)]
    times: list[tuple[float, float]] = []
    while True:
        order = (0, 1) if len(times) % 2 == 0 else (1, 0)
        pair = [0.0, 0.0]
        for which in order:
            pair[which] = _block((baseline, candidate)[which], calls[which], clock)
        times.append((pair[0], pair[1]))
        counted = np.array(times[WARM_UP_BLOCKS:])
        if len(counted) < least_blocks:
            continue
        ratio = ratio_interval(counted[:, 0] / counted[:, 1], confidence)
        tight = max(ratio.upper - ratio.value, ratio.value - ratio.lower) <= precision * ratio.value
        if tight or clock() - started > seconds:
            break
    baseline_ms, candidate_ms = np.median(counted, axis=0) * 1000
    return Latency(
        baseline_ms=float(baseline_ms), candidate_ms=float(candidate_ms), ratio=ratio, blocks=len(counted), seconds=clock() - started
    )


def _calls_per_block(run: Callable[[], object], clock: Callable[[], float]) -> int:
    """Warms up, then as many calls as make a block long enough for the clock."""
    run()
    once = min(_block(run, 1, clock) for _ in range(3))
    return max(1, round(BLOCK_SECONDS / max(once, 1e-6)))


def _block(run: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


_inside = threading.local()


@contextmanager
def computing() -> Iterator[None]:
    """Held around any other heavy work of ours on this machine. Several may hold it at once, none while someone is `alone`.

    Within itself it does nothing: to ask for the gate while holding the room is to wait for ever for who waits for the room."""
    if getattr(_inside, "computing", False):
        yield
        return
    with _lock("gate") as gate, _lock("room") as room:
        _take(gate, exclusive=True)
        _take(room, exclusive=False)
        _release(gate)
        _inside.computing = True
        try:
            yield
        finally:
            _inside.computing = False


@contextmanager
def computing_in_turns() -> Iterator[Callable[[], None]]:
    """The same for work that takes minutes. What it gives is to be called between its steps, and lets in who waits to be alone."""
    with ExitStack() as held:
        held.enter_context(computing())

        def turn() -> None:
            held.close()
            held.enter_context(computing())

        yield turn


@contextmanager
def alone() -> Iterator[None]:
    """Held while latency is measured. It shuts the gate first, so that it is not starved by those who only compute."""
    with _lock("gate") as gate, _lock("room") as room:
        _take(gate, exclusive=True)
        _take(room, exclusive=True)
        yield


@contextmanager
def _lock(name: str) -> Iterator[IO[str]]:
    user = os.getuid() if hasattr(os, "getuid") else 0
    with Path(tempfile.gettempdir(), f"accutune-{user}-{name}.lock").open("a") as file:
        yield file


def _take(file: IO[str], *, exclusive: bool) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def _release(file: IO[str]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
