from __future__ import annotations

import math
import tracemalloc
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom, bootstrap, norm

from tuner.errors import DataError, JobError
from tuner.measure.statistics import bootstrap_bound, mean_bound, paired_proportions_bound, ratio_interval, samples_needed
from tuner.results import Interval


def score(lost: int, gained: int, n: int, delta: float) -> float:
    """Tango's statistic with the constrained maximum likelihood estimate found by search, not by formula."""

    def minus_log_likelihood(q21: float) -> float:
        q12, rest = q21 + delta, 1 - 2 * q21 - delta
        terms = ((lost, q12), (gained, q21), (n - lost - gained, rest))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    q21 = minimize_scalar(minus_log_likelihood, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-13}).x
    return float((lost - gained - n * delta) / math.sqrt(n * (2 * q21 + delta * (1 - delta))))


@pytest.mark.parametrize(
    ("lost", "gained", "n"),
    [(6, 16, 161), (1, 7, 21), (30, 20, 3000), (5, 0, 200), (0, 5, 200), (0, 0, 50), (10, 10, 20), (0, 12, 12), (1, 0, 1)],
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_each_bound_solves_the_score_equation(lost: int, gained: int, n: int, confidence: float) -> None:
    interval = paired_proportions_bound(lost, gained, n, confidence)
    z = norm.ppf(confidence)
    assert interval.value == (lost - gained) / n
    assert interval.lower <= interval.value <= interval.upper
    if interval.upper < 1:
        assert score(lost, gained, n, interval.upper) == pytest.approx(-z, rel=1e-4)
    if interval.lower > -1:
        assert score(lost, gained, n, interval.lower) == pytest.approx(z, rel=1e-4)


def test_published_example() -> None:
    """Complete response before and after consolidation therapy (Cavo et al., 2012), the example of Fagerland, Lydersen and Laake,
    "Statistical Analysis of Contingency Tables", chapter 8: 95% two-sided limits, which are one-sided at 0.975 here."""
    interval = paired_proportions_bound(6, 16, 161, 0.975)
    assert (round(interval.value, 4), round(interval.lower, 4), round(interval.upper, 4)) == (-0.0621, -0.1240, -0.0054)


def test_without_discordant_rows_the_doubt_stays() -> None:
    z = norm.ppf(0.95)
    interval = paired_proportions_bound(0, 0, 400, 0.95)
    assert interval.value == 0
    assert interval.upper == pytest.approx(z**2 / (400 + z**2))
    assert interval.lower == -interval.upper


@pytest.mark.parametrize("n", [1, 30])
def test_all_rows_lost_reaches_one(n: int) -> None:
    assert paired_proportions_bound(n, 0, n, 0.95).upper == 1
    assert paired_proportions_bound(0, n, n, 0.95).lower == -1
    assert -1 < paired_proportions_bound(0, n, n, 0.95).upper < 1


@pytest.mark.parametrize(("n", "p_lost", "p_gained"), [(3000, 0.01, 0.01), (1000, 0.03, 0.01), (300, 0.05, 0.05)])
def test_paired_bounds_cover(n: int, p_lost: float, p_gained: float) -> None:
    """One-sided coverage near 0.95: the score bound is approximate, so a percent of slack on top of 3 standard errors (0.0146)."""
    bound = lru_cache(None)(lambda lost, gained: paired_proportions_bound(lost, gained, n, 0.95))
    counts = np.random.default_rng(3).multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], 2000)
    intervals = [bound(int(lost), int(gained)) for lost, gained, _ in counts]
    drop = p_lost - p_gained
    assert np.mean([i.upper >= drop for i in intervals]) == pytest.approx(0.95, abs=0.025)
    assert np.mean([i.lower <= drop for i in intervals]) == pytest.approx(0.95, abs=0.025)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(DataError, match=r"samples must be at least 1 to bound a drop, got samples=0\. Score at least one row\."):
        paired_proportions_bound(0, 0, 0, 0.95)
    with pytest.raises(DataError, match=r"sum to at most samples, got lost=3, gained=3 and samples=5\. Count each row once\."):
        paired_proportions_bound(3, 3, 5, 0.95)
    with pytest.raises(DataError, match="got lost=-1"):
        paired_proportions_bound(-1, 3, 5, 0.95)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95, math.nan])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(JobError, match=r"confidence must lie above 0\.5 and below 1, got confidence=.*Use 0\.95"):
        paired_proportions_bound(1, 1, 10, confidence)


@pytest.mark.parametrize(("lost", "gained", "n"), [(30, 30, 3000), (40, 31, 3000), (5, 9, 400), (1, 0, 77), (0, 0, 150), (10, 10, 20)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_samples_needed_inverts_the_bound(lost: int, gained: int, n: int, confidence: float) -> None:
    """Asked for the very bound that n rows gave, at the rates they showed, it must answer n."""
    upper = paired_proportions_bound(lost, gained, n, confidence).upper
    rates = {"discordance": (lost + gained) / n, "confidence": confidence, "drop": (lost - gained) / n}
    assert samples_needed(threshold=upper + 1e-10, **rates) == n
    assert samples_needed(threshold=upper - 1e-10, **rates) == n + 1


def test_samples_needed_on_whole_rows() -> None:
    needed = samples_needed(0.0086, discordance=0.02, confidence=0.95)
    above, below = math.ceil(needed / 100), math.floor(needed / 100)
    assert paired_proportions_bound(above, above, 100 * above, 0.95).upper <= 0.0086
    assert paired_proportions_bound(below, below, 100 * below, 0.95).upper > 0.0086


def test_samples_needed_refuses_the_impossible() -> None:
    with pytest.raises(JobError, match=r"must be below the threshold to be certified, got drop=0\.01 and threshold=0\.01\. Allow a larger"):
        samples_needed(0.01, 0.02, 0.95, drop=0.01)
    with pytest.raises(JobError, match=r"discordance must lie between \|drop\| and 1, got discordance=0\.005 and drop=0\.01"):
        samples_needed(0.02, 0.005, 0.95, drop=0.01)
    assert samples_needed(2.0, 0.1, 0.95) == 1


@pytest.mark.parametrize("skewed", [False, True])
def test_mean_bound_agrees_with_scipy(skewed: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(1.0, 80) ** 1.5 if skewed else rng.normal(0.3, 2.0, 80)
    intervals = [mean_bound(values, 0.95, seed=seed) for seed in range(8)]
    # scipy's interval is two-sided: 0.90 leaves 0.05 on each side.
    expected = bootstrap((values,), np.mean, confidence_level=0.9, n_resamples=20000, method="BCa", rng=rng).confidence_interval
    width = expected.high - expected.low
    assert intervals[0].value == pytest.approx(values.mean())
    assert np.mean([i.lower for i in intervals]) == pytest.approx(expected.low, abs=0.03 * width)
    assert np.mean([i.upper for i in intervals]) == pytest.approx(expected.high, abs=0.03 * width)


def test_mean_bound_follows_the_skew_and_the_sign() -> None:
    values = np.random.default_rng(5).exponential(1.0, 60)
    interval, mirrored = mean_bound(values, 0.95, seed=2), mean_bound(-values, 0.95, seed=2)
    assert interval.upper - interval.value > 1.1 * (interval.value - interval.lower)
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-interval.upper, -interval.lower), rel=1e-3)


def test_mean_bound_covers() -> None:
    rng = np.random.default_rng(7)
    intervals = [mean_bound(rng.exponential(1.0, 100), 0.9, seed=i) for i in range(300)]
    assert np.mean([i.upper >= 1 for i in intervals]) == pytest.approx(0.9, abs=0.055)
    assert np.mean([i.lower <= 1 for i in intervals]) == pytest.approx(0.9, abs=0.055)


def test_mean_bound_is_determined_by_the_seed() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean_bound(values, 0.95, seed=4) == mean_bound(values, 0.95, seed=4)
    assert mean_bound(values, 0.95, seed=4).upper != mean_bound(values, 0.95, seed=5).upper


@pytest.mark.parametrize("values", [np.full(40, 0.1), np.zeros(3), np.array([0.7])])
def test_equal_differences_leave_no_width(values: NDArray[np.float64]) -> None:
    number = float(values[0])
    assert mean_bound(values, 0.95, seed=0) == Interval(value=number, lower=number, upper=number, confidence=0.95)


def test_mean_bound_needs_little_memory() -> None:
    """All resamples at once would be 320 MB of indices."""
    values = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    mean_bound(values, 0.95, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize(("values", "count"), [(np.array([]), 0), (np.array([1.0, np.nan, np.inf]), 2)])
def test_mean_bound_refuses_what_is_not_finite(values: NDArray[np.float64], count: int) -> None:
    with pytest.raises(DataError, match=rf"differences must be a non-empty row of finite numbers, got shape .* with {count} not finite"):
        mean_bound(values, 0.95, seed=0)


def test_bootstrap_bound_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(0.5, 1.0, 400)
    interval = bootstrap_bound(lambda rows: float(values[rows].mean()), 400, 0.95, seed=0, resamples=4000)
    error = values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.upper == pytest.approx(values.mean() + 1.645 * error, abs=0.1 * error)
    assert interval.lower == pytest.approx(values.mean() - 1.645 * error, abs=0.1 * error)


def test_bootstrap_bound_hands_out_rows_with_repeats() -> None:
    seen: list[NDArray[np.int64]] = []

    def statistic(rows: NDArray[np.int64]) -> float:
        seen.append(rows)
        return float(rows.mean())

    first = bootstrap_bound(statistic, 30, 0.9, seed=1, resamples=50)
    assert len(seen) == 51
    assert seen[0].tolist() == list(range(30))
    assert all(rows.shape == (30,) and rows.min() >= 0 and rows.max() < 30 and np.unique(rows).size < 30 for rows in seen[1:])
    assert first == bootstrap_bound(statistic, 30, 0.9, seed=1, resamples=50)


def test_bootstrap_bound_skips_undefined_resamples() -> None:
    """Rows 0 and 1 are the only ones of their class: e^-2 of the resamples miss both."""
    undefined: list[bool] = []

    def statistic(rows: NDArray[np.int64]) -> float:
        undefined.append(bool(rows.min() > 1))
        return math.nan if undefined[-1] else float(rows.min())

    interval = bootstrap_bound(statistic, 40, 0.95, seed=0)
    assert any(undefined)
    assert (interval.value, interval.lower, interval.upper) == (0, 0, 1)


def test_bootstrap_bound_refuses_an_undefined_metric() -> None:
    with pytest.raises(DataError, match=r"the metric must be defined on the rows and on resamples .*, got nan on 10 rows\. Use more rows"):
        bootstrap_bound(lambda rows: rows.mean() * math.nan, 10, 0.95, seed=0)
    with pytest.raises(DataError, match="samples must be at least 1"):
        bootstrap_bound(lambda rows: float(rows.size), 0, 0.95, seed=0)


@pytest.mark.parametrize(("blocks", "k"), [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8)])
def test_ratio_interval_is_the_sign_tests(blocks: int, k: int) -> None:
    """k - 1 is the critical value in any table of the two-sided sign test at 5%."""
    ratios = np.random.default_rng(blocks).permutation(np.arange(1.0, blocks + 1))
    interval = ratio_interval(ratios, 0.95)
    assert (interval.lower, interval.upper) == (k, blocks + 1 - k)
    assert interval.value == (blocks + 1) / 2
    assert 1 - 2 * binom.cdf(k - 1, blocks, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(k, blocks, 0.5) < 0.95


@pytest.mark.parametrize(("blocks", "confidence"), [(1, 0.95), (5, 0.6), (7, 0.999)])
def test_few_blocks_give_the_extremes(blocks: int, confidence: float) -> None:
    interval = ratio_interval(np.arange(1.0, blocks + 1), confidence)
    assert (interval.lower, interval.upper) == (1, blocks)


def test_ratio_interval_refuses_nothing_measured() -> None:
    with pytest.raises(DataError, match="ratios must be a non-empty row of finite numbers"):
        ratio_interval(np.array([]), 0.95)
