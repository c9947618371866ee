"""Ranges from statistics: which [low, high] of a tensor the integers are spread over.

Every estimator is a pure function of `TensorStatistics`. Between its edges a histogram bin is taken as uniformly filled, and
exact zeros as a point mass at 0; no estimator looks at data again.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tuner.compress.quantization.affine import choose_scale, integer_limits
from tuner.compress.quantization.statistics import BINS, TensorStatistics
from tuner.errors import DataError, UnknownName
from tuner.registry import Registry

Floats = NDArray[np.float64]
Estimator = Callable[[TensorStatistics, str, bool], tuple[float, float]]
"""(statistics, dtype, symmetric) -> (low, high)."""

RANGES: Registry[Estimator] = Registry("calibration method")
"""The methods without a parameter. Percentiles are written p99.9 and need no entry."""

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")


def estimate_range(stats: TensorStatistics, calibration: str, dtype: str, symmetric: bool) -> tuple[float, float]:
    """The range (low, high) that `calibration` gives, with low <= 0 <= high, and low = -high where symmetric.

    calibration: a name in RANGES or a percentile such as p99.9. DataError where nothing was collected."""
    if stats.count == 0:
        raise DataError(f"tensor '{stats.name}' has no calibration values, so it has no range. Give at least one calibration row.")
    percent = _PERCENTILE.fullmatch(calibration)
    if percent is not None:
        low, high = percentile_range(stats, float(percent[1]), symmetric)
    elif calibration in RANGES:
        low, high = RANGES[calibration](stats, dtype, symmetric)
    else:
        raise UnknownName("calibration method", calibration, [*RANGES, "p99.9"])
    low, high = min(low, 0.0), max(high, 0.0)
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


@RANGES.register("minmax")
def minmax_range(stats: TensorStatistics, _dtype: str, _symmetric: bool) -> tuple[float, float]:
    """The exact extremes."""
    return stats.low, stats.high


def percentile_range(stats: TensorStatistics, percent: float, symmetric: bool) -> tuple[float, float]:
    """The range that holds `percent` % of the elements, to within one histogram bin.

    Symmetric: that percentile of |x|. Otherwise half of the rest is cut from either end."""
    if symmetric:
        high = _quantile(*_magnitudes(stats), percent / 100)
        return -high, high
    tail = (100 - percent) / 200
    table = _signed(stats)
    return _quantile(*table, tail), _quantile(*table, 1 - tail)


@RANGES.register("kl")
def kl_range(stats: TensorStatistics, dtype: str, symmetric: bool) -> tuple[float, float]:
    """Entropy calibration (Migacz, "8-bit Inference with TensorRT", GTC 2017), on the histogram of |x|.

    |x| is spread over as many levels as the extremes would give it: half of them for a symmetric range, all of them where x has
    one sign and the zero point is free. Zeros take no part: they lose nothing, and a ReLU's would drown the rest. With no more
    filled bins than levels (16-bit types) the method has nothing to say and the extremes are kept."""
    if stats.largest == 0.0:
        return 0.0, 0.0
    qmin, qmax = integer_limits(dtype)
    span = 2 * stats.largest if symmetric else max(stats.high, 0.0) - min(stats.low, 0.0)
    levels = round((qmax - qmin + 1) * stats.largest / span)
    clip = entropy_threshold(_folded(stats), levels) * stats.limit / BINS
    return max(-clip, stats.low), min(clip, stats.high)


_SMOOTHING = 1e-4
"""Elements that Q is given where it has none and P has outliers; their divergence would be infinite."""


def entropy_threshold(counts: NDArray[np.int64], levels: int) -> int:
    """The number i of leading bins whose `levels`-level version diverges least from the whole distribution.

    counts: [bins], a histogram of magnitudes. P is counts[:i] with everything beyond i added to its last bin. Q is counts[:i]
    merged into `levels` groups, each spread evenly over its bins with P > 0. All i from `levels` to the last filled bin are
    compared by KL(P || Q); the smallest i wins a tie. The source leaves open how to group where `levels` does not divide i:
    group j starts at bin floor(j i / levels), so that the threshold hardly depends on the width of the bins. (Where the
    remainder goes to the last group or is dropped, only multiples of `levels` stand a chance.)"""
    filled = np.flatnonzero(counts)
    last = int(filled[-1]) + 1 if filled.size else 0
    if last <= levels:
        return last
    ends = np.arange(levels, last + 1)
    mass = np.concatenate(([0.0], np.cumsum(counts, dtype=np.float64)))
    borders = np.arange(levels + 1) * ends[:, None] // levels
    group = np.diff(mass[borders], axis=1)
    occupied = np.concatenate(([0], np.cumsum(counts > 0)))
    bins = np.diff(occupied[borders], axis=1)
    outliers = mass[-1] - mass[ends]
    # P's last bin counts as filled once the outliers are in it.
    bins[:, -1] += (counts[ends - 1] == 0) & (outliers > 0)
    return int(ends[np.argmin(_divergences(counts, ends, group, bins, outliers))])


def _divergences(
    counts: NDArray[np.int64], ends: NDArray[np.int64], group: Floats, bins: NDArray[np.int64], outliers: Floats
) -> Floats:
    """KL(P || Q) for every candidate, infinite where Q is empty. ends, outliers: [c]; group, bins: [c, levels]. Returns [c].

    P log P is summed through a running total and P log Q group by group, since Q is constant over a group's filled bins."""
    total = float(counts.sum())
    last_bin = counts[ends - 1].astype(np.float64)
    running = np.cumsum(_x_log_x(counts.astype(np.float64)))[ends - 1]
    p_log_p = (running - _x_log_x(last_bin) + _x_log_x(last_bin + outliers)) / total - np.log(total)
    p = group.copy()
    p[:, -1] += outliers
    inside = total - outliers
    log_q = np.log(np.maximum(group / np.maximum(bins, 1), _SMOOTHING) / np.maximum(inside, 1.0)[:, None])
    return np.where(inside > 0, p_log_p - (p * log_q).sum(axis=1) / total, np.inf)


def _x_log_x(x: Floats) -> Floats:
    return x * np.log(np.maximum(x, 1.0))


_COARSE: Floats = 2.0 ** (-np.arange(80) / 8)
"""Fractions of an extreme that the search for the MSE range tries first: 1 down to 1/940, 9 % apart."""
_FINE: Floats = 2.0 ** (np.arange(-12, 13) / 96)
"""Factors around the best of those, 0.7 % apart."""


@RANGES.register("mse")
def mse_range(stats: TensorStatistics, dtype: str, symmetric: bool) -> tuple[float, float]:
    """The range whose quantization has the least mean squared error on the histogram.

    Both ends are first shrunk by one common ratio. Where the range need not be symmetric and has two ends, each end is then
    searched alone from there, high and then low: within 0.5 % of a search over all pairs."""
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)

    def search(lowest: float | None, highest: float | None) -> tuple[float, float]:
        """The best range; an end that is given stays, one that is None is searched."""

        def of(ratio: Floats) -> tuple[Floats, Floats]:
            kept = np.ones_like(ratio)
            return (low * ratio if lowest is None else lowest * kept), (high * ratio if highest is None else highest * kept)

        coarse = _COARSE[np.argmin(_errors(stats, *of(_COARSE), dtype, symmetric))]
        fine = np.minimum(coarse * _FINE, 1.0)
        lows, highs = of(fine)
        best = np.argmin(_errors(stats, lows, highs, dtype, symmetric))
        return float(lows[best]), float(highs[best])

    found = search(None, None)
    if symmetric or low == 0.0 or high == 0.0:
        return found
    found = search(found[0], None)
    return search(None, found[1])


def expected_error(stats: TensorStatistics, low: float, high: float, dtype: str, symmetric: bool) -> float:
    """Mean squared error of quantizing and dequantizing the tensor over [low, high], from the histogram (unit: the tensor's squared)."""
    return float(_errors(stats, np.array([low]), np.array([high]), dtype, symmetric)[0])


def _errors(stats: TensorStatistics, low: Floats, high: Floats, dtype: str, symmetric: bool) -> Floats:
    """Expected squared error of each range, rounding and clipping together; zeros add nothing. low, high: [n]. Returns [n]."""
    filled = np.flatnonzero(stats.histogram)
    if filled.size == 0:
        return np.zeros(low.shape)
    span = slice(int(filled[0]), int(filled[-1]) + 1)
    edges, weights = stats.edges()[span.start : span.stop + 1], stats.histogram[span] / stats.count
    scale, zero_point = choose_scale(low, high, dtype, symmetric)
    limits = integer_limits(dtype)
    # One range at a time: the scratch arrays then stay in the processor's cache.
    pairs = zip(scale.tolist(), zero_point.tolist(), strict=True)
    return np.array([float(_bin_errors(edges / s + z, *limits) @ weights) * s * s for s, z in pairs])


def _bin_errors(u: Floats, qmin: int, qmax: int) -> Floats:
    """Mean squared error, in steps, of values spread evenly between neighbouring u. u: [bins + 1], rising. Returns [bins].

    With k the integer that u is stored as, f = u - k is the error. Between u_a and u_b the mean of f^2 is
    (f_a^2 + f_a f_b + f_b^2) / 3 inside one step, and otherwise 1/12 for each step crossed plus (f_b^3 - f_a^3) / 3, over the
    width. Clipping needs no case of its own: there k stays at its limit and f grows."""
    k = np.clip(np.rint(u), qmin, qmax)
    f = u - k
    f_a, f_b, crossed = f[:-1], f[1:], np.diff(k)
    inside: Floats = (f_a * f_a + f_a * f_b + f_b * f_b) / 3
    across: Floats = np.divide(crossed / 12 + np.diff(f * f * f) / 3, np.diff(u), where=crossed > 0, out=inside)
    return across


def _signed(stats: TensorStatistics) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Left edges, right edges and counts of x in rising order, the zeros as a bin without width."""
    edges = stats.edges()
    left = np.concatenate((edges[:BINS], [0.0], edges[BINS:-1]))
    right = np.concatenate((edges[1 : BINS + 1], [0.0], edges[BINS + 1 :]))
    return left, right, np.concatenate((stats.histogram[:BINS], [stats.zeros], stats.histogram[BINS:]))


def _magnitudes(stats: TensorStatistics) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """The same of |x|."""
    edges = np.clip(np.arange(BINS + 1) * (stats.limit / BINS), max(stats.low, -stats.high, 0.0), stats.largest)
    counts = np.concatenate(([stats.zeros], _folded(stats)))
    return np.concatenate(([0.0], edges[:-1])), np.concatenate(([0.0], edges[1:])), counts


def _folded(stats: TensorStatistics) -> NDArray[np.int64]:
    """[BINS] counts of |x|, without the zeros."""
    return stats.histogram[BINS:] + stats.histogram[:BINS][::-1]


def _quantile(left: Floats, right: Floats, counts: NDArray[np.int64], fraction: float) -> float:
    """The quantile as NumPy defines it, between the two order statistics around rank fraction * (n - 1).

    Each of the two is placed within its own bin, so the result is off by a bin width at most, also across empty bins."""
    total = np.cumsum(counts)
    rank = fraction * (int(total[-1]) - 1)
    below = int(rank)
    ranks = np.array([below, min(below + 1, int(total[-1]) - 1)])
    bins = np.searchsorted(total, ranks, side="right")
    place = (ranks - (total - counts)[bins] + 0.5) / counts[bins]
    values = left[bins] + place * (right - left)[bins]
    return float(values[0] + (rank - below) * (values[1] - values[0]))
