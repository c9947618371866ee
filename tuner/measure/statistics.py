"""Bounds from a fixed number of samples.

Convention of the whole project: `lower` and `upper` of an Interval are each a ONE-SIDED bound at `confidence`, so that a 0.95
upper bound uses z = 1.645 and the two together cover with 0.90. The one exception is `ratio_interval`, which says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

from tuner.errors import DataError, JobError
from tuner.results import Interval

MEAN_RESAMPLES = 2000
CHUNK_CELLS = 1_000_000
"""Resampled values held at once: 8 MB of indices and 8 MB of values."""
FEW_BLOCKS = 6


def paired_proportions_bound(lost: int, gained: int, samples: int, confidence: float) -> Interval:
    """Tango's score bounds on the drop (lost - gained) / samples (Tango, 1998, Statistics in Medicine 17:891).

    lost: rows that the original had right and the candidate wrong; gained: the reverse; samples: all rows. `lower` and `upper`
    are each one-sided at `confidence`. No discordant row still leaves doubt: the upper bound is then z² / (samples + z²).
    DataError where the counts are impossible, JobError where the confidence is."""
    if samples < 1:
        raise DataError(f"samples must be at least 1 to bound a drop, got samples={samples}. Score at least one row.")
    if lost < 0 or gained < 0 or lost + gained > samples:
        raise DataError(
            f"lost and gained rows must be counts that sum to at most samples, got lost={lost}, gained={gained} and "
            f"samples={samples}. Count each row once."
        )
    z = _quantile(confidence)
    return Interval(
        value=(lost - gained) / samples,
        lower=-_tango_upper(gained / samples, lost / samples, samples, z),
        upper=_tango_upper(lost / samples, gained / samples, samples, z),
        confidence=confidence,
    )


def samples_needed(threshold: float, discordance: float, confidence: float, drop: float = 0.0) -> int:
    """Rows for which the bound of `paired_proportions_bound`, at the expected counts, is at most `threshold`.

    discordance: P(lost) + P(gained); drop: the true P(lost) - P(gained). Tango's statistic is √n times a function of the two
    proportions, so the score equation at `threshold` is solved for n directly. With that many rows about every second such
    candidate passes. JobError where no number of rows is enough."""
    if drop >= threshold:
        raise JobError(
            f"the expected drop must be below the threshold to be certified, got drop={drop} and threshold={threshold}. "
            "Allow a larger drop or choose a better candidate."
        )
    if not abs(drop) <= discordance <= 1:
        raise JobError(
            f"discordance must lie between |drop| and 1, got discordance={discordance} and drop={drop}. "
            "It is the share of rows on which the two models differ in being right."
        )
    z = _quantile(confidence)
    variance = _score_variance((discordance + drop) / 2, (discordance - drop) / 2, min(threshold, 1.0))
    return max(1, math.ceil(z**2 * variance / (threshold - drop) ** 2))


def mean_bound(differences: NDArray[np.float64], confidence: float, seed: int) -> Interval:
    """BCa bootstrap bounds on the mean of paired differences (Efron, 1987, JASA 82:171), each one-sided at `confidence`.

    differences: shape [rows], finite. The acceleration a is the jackknife's, which for a mean is the sum of cubes over six times
    the 3/2 power of the sum of squares. The bias correction z0 of a mean equals a to the order to which BCa is accurate; taking
    it so, and not from the resamples, halves how much the bounds vary with the seed. Differences that are all equal give an
    interval of width zero. Memory: 20 MB, or one resample. DataError for no rows or a value that is not finite."""
    values = _finite(differences, "differences")
    z = _quantile(confidence)
    mean = float(values.mean())
    if np.all(values == values[0]):
        return Interval(value=float(values[0]), lower=float(values[0]), upper=float(values[0]), confidence=confidence)
    deviations = (values - mean) / np.abs(values - mean).max()
    a = float((deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5))
    lower, upper = np.quantile(_resampled_means(values, seed), [_bca_level(a, -z), _bca_level(a, z)])
    return Interval(value=mean, lower=float(lower), upper=float(upper), confidence=confidence)


def bootstrap_bound(
    statistic: Callable[[NDArray[np.int64]], float], samples: int, confidence: float, seed: int, resamples: int = 500
) -> Interval:
    """Percentile bootstrap over rows for metrics that are no means, each bound one-sided at `confidence`.

    statistic: takes row indices, shape [samples], and returns the drop on those rows. Resamples on which it is nan (a class is
    missing, say) are skipped. DataError where it is nan on all rows or on every resample."""
    if samples < 1:
        raise DataError(f"samples must be at least 1 to bound a drop, got samples={samples}. Score at least one row.")
    _quantile(confidence)
    value = float(statistic(np.arange(samples, dtype=np.int64)))
    rng = np.random.default_rng(seed)
    drops = np.array([statistic(rng.integers(0, samples, samples)) for _ in range(resamples)], dtype=np.float64)
    drops = drops[~np.isnan(drops)]
    if math.isnan(value) or drops.size == 0:
        raise DataError(
            f"the metric must be defined on the rows and on resamples of them, got nan on {samples} rows. "
            "Use more rows, or rows in which every class occurs."
        )
    lower, upper = np.quantile(drops, [1 - confidence, confidence])
    return Interval(value=value, lower=float(lower), upper=float(upper), confidence=confidence)


def ratio_interval(ratios: NDArray[np.float64], confidence: float) -> Interval:
    """Median of per-block ratios with the sign test's interval between order statistics, TWO-SIDED at `confidence`.

    ratios: shape [blocks], finite. The coverage is at least `confidence` for any continuous distribution, as far as order
    statistics reach; with fewer than 6 blocks, or where they do not reach, the interval is (min, max)."""
    ordered = np.sort(_finite(ratios, "ratios"))
    _quantile(confidence)
    n = ordered.size
    k = 1 if n < FEW_BLOCKS else max(1, int(binom.ppf((1 - confidence) / 2, n, 0.5)))
    return Interval(value=float(np.median(ordered)), lower=float(ordered[k - 1]), upper=float(ordered[n - k]), confidence=confidence)


def _tango_upper(p12: float, p21: float, n: int, z: float) -> float:
    """The δ above p12 - p21 at which Tango's statistic is -z."""
    d = p12 - p21
    if p12 + p21 == 0 or p12 == 1 or p21 == 1:
        return d + (1 - d) * z**2 / (n + z**2)  # the variance is 0 at d: a second root that a bracket would fall into

    def excess(delta: float) -> float:
        return delta - d - z * math.sqrt(_score_variance(p12, p21, delta) / n)

    return float(brentq(excess, d, 1.0, xtol=1e-14))


def _score_variance(p12: float, p21: float, delta: float) -> float:
    """Variance of one pair's difference under p12 - p21 = delta: 2 q21 + δ (1 - δ), where q21 is the constrained maximum
    likelihood estimate of p21 (Tango, 1998), here with the counts divided by n."""
    b = (2 - p12 + p21) * delta - p12 - p21
    c = -p21 * delta * (1 - delta)
    root = math.sqrt(max(0.0, b * b - 8 * c))
    # For b > 0 the textbook form subtracts two nearly equal numbers.
    q21 = (root - b) / 4 if b <= 0 else -2 * c / (b + root)
    return max(0.0, 2 * q21 + delta * (1 - delta))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of MEAN_RESAMPLES resamples of `values`, a chunk of resamples at a time."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK_CELLS // values.size)
    starts = range(0, MEAN_RESAMPLES, rows)
    return np.concatenate([values[rng.integers(0, values.size, (min(rows, MEAN_RESAMPLES - i), values.size))].mean(axis=1) for i in starts])


def _bca_level(a: float, z: float) -> float:
    """Which quantile of the resamples is the bound, with z0 = a; |a| <= 1/6, so the divisor only fails beyond z = 6."""
    shifted = a + z
    return float(norm.cdf(a + shifted / max(1 - a * shifted, 1e-3)))


def _quantile(confidence: float) -> float:
    if not 0.5 < confidence < 1:
        raise JobError(f"confidence must lie above 0.5 and below 1, got confidence={confidence}. Use 0.95, for example.")
    return float(norm.ppf(confidence))


def _finite(numbers: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    values = np.asarray(numbers, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(
            f"{name} must be a non-empty row of finite numbers, got shape {values.shape} with {bad} not finite. "
            "Score at least one row and look for nan in the model's outputs."
        )
    return values
