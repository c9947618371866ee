"""Which trials of a long job are drawn: a picture holds a thousand marks, a job may have a hundred thousand trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from tuner.results import FINISHED, TrialState

T = TypeVar("T")
DRAWN = (*FINISHED, TrialState.RUNNING)
LATEST = 20
"""So many of the last trials are always among those that are drawn."""


class Mark(NamedTuple):
    """What is known of a trial without reading its texts."""

    number: int
    state: TrialState
    feasible: bool
    violation: float | None
    speedup: float | None
    size_bytes: float | None


def sampled(marks: Sequence[Mark], most: int) -> list[int]:
    """The numbers of at most `most` of `marks`, which are in order of number: all of them where they fit.

    Else, as far as there is room: the extremes, those that improved on all before them, the last ones, others evenly spread."""
    if len(marks) <= most:
        return [mark.number for mark in marks]
    kept = set(list(dict.fromkeys(_extremes(marks)))[:most])
    latest = [mark.number for mark in marks[-LATEST:]]
    for group in (list(improvements(marks)), latest, [mark.number for mark in marks]):
        kept.update(spread([number for number in group if number not in kept], most - len(kept)))
    return sorted(kept)


def improvements(marks: Iterable[Mark]) -> Iterator[int]:
    """The numbers of the marks that were better than all before them: while none is feasible by the smallest violation, then the
    first feasible one and each that is faster or smaller than every feasible one before."""
    least, fastest, smallest, met = math.inf, -math.inf, math.inf, False
    for number, state, feasible, violation, speedup, size_bytes in marks:
        if feasible:
            gain = -math.inf if speedup is None else speedup
            size = math.inf if size_bytes is None else size_bytes
            better = not met or gain > fastest or size < smallest
            fastest, smallest, met = max(fastest, gain), min(smallest, size), True
        else:
            miss = math.inf if met or violation is None or state == TrialState.FAILED else violation
            better = miss < least
            least = min(least, miss)
        if better:
            yield number


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly: the first and the last among them, of one alone the last; all where there are no more."""
    if count >= len(items):
        return list(items)
    if count <= 1:
        return list(items[-1:]) * max(count, 0)
    return [items[round(step * (len(items) - 1) / (count - 1))] for step in range(count)]


def _extremes(marks: Sequence[Mark]) -> list[int]:
    """The marks at both ends of each axis, those that count first: the fastest, the smallest and the nearest to the target."""
    numbers, _, _, violations, speedups, sizes = zip(*marks, strict=True)
    ends: tuple[list[int], list[int]] = ([], [])
    for best, values in ((max, speedups), (min, sizes), (min, violations)):
        known = [(value, number) for value, number in zip(values, numbers, strict=True) if value is not None]
        if known:
            worst = min if best is max else max
            ends[0].append(best(known)[1])
            ends[1].append(worst(known)[1])
    return ends[0] + ends[1]
