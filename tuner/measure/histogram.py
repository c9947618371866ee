"""Histograms for people to look at: few equal bins over what the values span, made in memory that does not grow with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.results import Histogram

BINS = 64
_BLOCK = 1 << 18
"""Values binned at a time."""


def histogram_of(values: NDArray[np.floating[Any]]) -> Histogram | None:
    """Of all values; None where there is none or one is not finite."""
    flat = values.reshape(-1)
    if not flat.size:
        return None
    low, high = float(flat.min()), float(flat.max())
    if not np.isfinite([low, high]).all():
        return None
    if low == high:
        return Histogram(low=low, high=high, counts=(flat.size,))
    counts = np.zeros(BINS, np.int64)
    for first in range(0, flat.size, _BLOCK):
        counts += np.bincount(_bins(flat[first : first + _BLOCK].astype(np.float64), low, high), minlength=BINS)
    return Histogram(low=low, high=high, counts=tuple(counts.tolist()))


def folded(edges: NDArray[np.float64], counts: NDArray[np.int64], zeros: int) -> Histogram | None:
    """Of values that were counted in finer bins, the zeros among them apart; None where nothing was counted.

    edges: [bins + 1], ascending, from the lowest value to the highest. A fine bin across a border is divided in proportion."""
    low, high, total = float(edges[0]), float(edges[-1]), int(counts.sum())
    if not total + zeros:
        return None
    if low == high:
        return Histogram(low=low, high=high, counts=(total + zeros,))
    below = np.interp(np.linspace(low, high, BINS + 1), edges, np.concatenate([[0], np.cumsum(counts)]))
    below[0], below[-1] = 0, total
    coarse = np.diff(np.rint(below).astype(np.int64))
    if zeros:
        coarse[_bins(np.zeros(1), low, high)] += zeros
    return Histogram(low=low, high=high, counts=tuple(coarse.tolist()))


def _bins(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    return np.clip((values - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)
