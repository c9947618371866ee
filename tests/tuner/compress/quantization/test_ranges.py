from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector
from scipy.stats import norm

from tuner.compress.quantization.affine import choose_scale, dequantize, quantize
from tuner.compress.quantization.ranges import RANGES, entropy_threshold, estimate_range, expected_error
from tuner.compress.quantization.statistics import BINS, TensorStatistics
from tuner.errors import DataError, UnknownName

ROWS = 60_000
SCHEMES = [("u8", False), ("s8", True), ("u8", True), ("s8", False), ("u16", False), ("s16", True)]


def tensors() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    values = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "relu6": np.clip(4 * x, 0, 6),
        "silu": 2 * x / (1 + np.exp(-2 * x)),
        "laplace": rng.laplace(size=ROWS),
        "heavy": rng.standard_t(3, size=ROWS),
        "negative": -rng.exponential(size=ROWS),
        "offset": x + 20,
        "outlier": np.concatenate((x[:-3], [90.0, 95.0, 100.0])),
    }
    return {name: array.astype(np.float32) for name, array in values.items()}


TENSORS = tensors()


def statistics_of(values: NDArray[np.float32]) -> TensorStatistics:
    statistics = TensorStatistics("t")
    statistics.update(values)
    return statistics


STATISTICS = {name: statistics_of(values) for name, values in TENSORS.items()}


def exact_error(values: NDArray[np.float32], low: float, high: float, dtype: str, symmetric: bool) -> float:
    scale, zero_point = choose_scale(low, high, dtype, symmetric)
    back = dequantize(quantize(values, scale, zero_point, dtype), scale, zero_point)
    return float(np.mean((values.astype(np.float64) - back) ** 2))


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("calibration", ["minmax", "kl", "mse", "p99.9", "p99.99"])
@pytest.mark.parametrize(("dtype", "symmetric"), SCHEMES)
def test_every_range_contains_zero_and_stays_within_the_extremes(name: str, calibration: str, dtype: str, symmetric: bool) -> None:
    low, high = estimate_range(STATISTICS[name], calibration, dtype, symmetric)
    x = TENSORS[name]
    largest = float(np.abs(x).max())
    assert low <= 0 <= high and low < high
    if symmetric:
        assert low == -high and high <= largest
    else:
        assert low >= min(x.min(), 0) and high <= max(x.max(), 0)
    if calibration == "minmax":
        assert (low, high) == ((-largest, largest) if symmetric else (min(x.min(), 0), max(x.max(), 0)))


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("percent", [90, 99, 99.9, 99.99])
def test_percentiles_are_within_a_bin_of_the_exact_ones(name: str, percent: float) -> None:
    x, statistics = TENSORS[name], STATISTICS[name]
    width = statistics.limit / BINS
    _, high = estimate_range(statistics, f"p{percent}", "s8", True)
    assert high == pytest.approx(np.percentile(np.abs(x), percent), abs=width)
    tail = (100 - percent) / 2
    low, high = estimate_range(statistics, f"p{percent}", "u8", False)
    assert low == pytest.approx(min(np.percentile(x, tail), 0), abs=width)
    assert high == pytest.approx(max(np.percentile(x, 100 - tail), 0), abs=width)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("calibration", ["minmax", "mse", "p99"])
@pytest.mark.parametrize(("dtype", "symmetric"), SCHEMES[:4])
def test_the_expected_error_is_the_error_on_the_data(name: str, calibration: str, dtype: str, symmetric: bool) -> None:
    low, high = estimate_range(STATISTICS[name], calibration, dtype, symmetric)
    expected = expected_error(STATISTICS[name], low, high, dtype, symmetric)
    assert expected == pytest.approx(exact_error(TENSORS[name], low, high, dtype, symmetric), rel=0.03)


@pytest.mark.parametrize("name", ["normal", "relu", "silu"])
def test_the_expected_error_of_16_bits_is_the_rounding_of_16_bits(name: str) -> None:
    low, high = estimate_range(STATISTICS[name], "minmax", "u16", False)
    expected = expected_error(STATISTICS[name], low, high, "u16", False)
    assert expected == pytest.approx(exact_error(TENSORS[name], low, high, "u16", False), rel=0.03)
    filled = 1 - STATISTICS[name].zeros / ROWS
    assert expected == pytest.approx(filled * ((high - low) / 65535) ** 2 / 12, rel=1e-3)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(("dtype", "symmetric"), [("u8", False), ("s8", True)])
def test_the_mse_range_is_as_good_as_the_best_clip_on_the_data(name: str, dtype: str, symmetric: bool) -> None:
    x = TENSORS[name]
    found = exact_error(x, *estimate_range(STATISTICS[name], "mse", dtype, symmetric), dtype, symmetric)
    low, high = estimate_range(STATISTICS[name], "minmax", dtype, symmetric)
    best = min(exact_error(x, low * ratio, high * ratio, dtype, symmetric) for ratio in np.linspace(0.02, 1, 99))
    assert found <= 1.02 * best


def test_the_mse_range_cuts_one_end_and_keeps_the_other() -> None:
    x = np.random.default_rng(5).uniform(-10, 5, 500_000).astype(np.float32)
    x[0] = 60.0
    low, high = estimate_range(statistics_of(x), "mse", "u8", False)
    found = exact_error(x, low, high, "u8", False)
    assert low == pytest.approx(-10, rel=0.01) and 20 < high < 40
    # Neither the extremes nor one ratio for both ends come near.
    assert found < 0.7 * min(exact_error(x, -10 * ratio, 60 * ratio, "u8", False) for ratio in (1.0, 0.99, 0.98, 0.95, 0.9))
    assert found <= 1.02 * min(exact_error(x, -10, end, "u8", False) for end in range(20, 41, 2))


def divergence_by_the_book(counts: NDArray[np.int64], levels: int, i: int) -> float:
    """KL(P || Q) of one candidate, bin by bin."""
    p = counts[:i].astype(np.float64)
    p[-1] += counts[i:].sum()
    q = np.zeros(i)
    borders = [j * i // levels for j in range(levels + 1)]
    for start, stop in itertools.pairwise(borders):
        filled = p[start:stop] > 0
        q[start:stop][filled] = counts[start:stop].sum() / max(filled.sum(), 1)
    q[(p > 0) & (q == 0)] = 1e-4
    inside = p > 0
    p, q = p[inside] / p.sum(), q[inside] / counts[:i].sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_entropy_threshold_is_the_one_of_the_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, _ = np.histogram(np.abs(rng.standard_t(2 + seed, size=4000)), bins=300, range=(0, 6 + 6 * seed))
    last = int(np.flatnonzero(counts)[-1]) + 1
    divergences = [divergence_by_the_book(counts, 32, i) for i in range(32, last + 1)]
    found = entropy_threshold(counts, 32)
    assert divergences[found - 32] == pytest.approx(min(divergences), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("reach", [6, 12])
def test_the_entropy_threshold_of_a_normal_is_onnxruntimes(reach: float) -> None:
    counts = np.rint(np.diff(norm.cdf(np.linspace(0, reach, 513))) * 1e9).astype(np.int64)
    both = np.concatenate((counts[::-1], counts))
    edges = np.arange(-512, 513).astype(np.float32)
    collector = HistogramCollector("entropy", False, both.size, 128, 99.9, "same")
    low, high = collector.get_entropy_threshold((both, edges, edges[0], edges[-1]), 128)
    # Its slice runs from -i to i + 1, so that i is the magnitude of the lower end.
    assert abs(entropy_threshold(counts, 64) + low) <= 2
    assert high == -low + 1


def test_the_entropy_range_hardly_depends_on_the_bin_width() -> None:
    fine, coarse = (np.rint(np.diff(norm.cdf(np.linspace(0, 8, bins + 1))) * 1e9).astype(np.int64) for bins in (2048, 1024))
    assert entropy_threshold(fine, 128) / 2048 == pytest.approx(entropy_threshold(coarse, 128) / 1024, rel=0.01)


def test_the_entropy_range_drops_lone_outliers_and_keeps_a_uniform_tensor() -> None:
    _, high = estimate_range(STATISTICS["outlier"], "kl", "s8", True)
    assert high < 15
    uniform = statistics_of(np.random.default_rng(1).uniform(-3, 3, ROWS).astype(np.float32))
    assert estimate_range(uniform, "kl", "s8", True)[1] == pytest.approx(3, rel=0.01)


def test_zeros_do_not_move_the_entropy_range() -> None:
    x = np.abs(TENSORS["laplace"])
    padded = np.concatenate((x, np.zeros(5 * ROWS, np.float32)))
    assert estimate_range(statistics_of(padded), "kl", "u8", False) == estimate_range(statistics_of(x), "kl", "u8", False)


@pytest.mark.parametrize("dtype", ["u16", "s16"])
def test_the_entropy_range_of_16_bits_keeps_the_extremes(dtype: str) -> None:
    assert estimate_range(STATISTICS["heavy"], "kl", dtype, False) == estimate_range(STATISTICS["heavy"], "minmax", dtype, False)


@pytest.mark.parametrize("value", [3.3, -0.7, 1e-35, 2.0])
@pytest.mark.parametrize("calibration", ["minmax", "kl", "mse", "p99.9"])
@pytest.mark.parametrize(("dtype", "symmetric"), SCHEMES)
def test_a_constant_tensor_keeps_its_value(value: float, calibration: str, dtype: str, symmetric: bool) -> None:
    x = np.full(100, value, np.float32)
    low, high = estimate_range(statistics_of(x), calibration, dtype, symmetric)
    expected = expected_error(statistics_of(x), low, high, dtype, symmetric)
    step = float(choose_scale(low, high, dtype, symmetric)[0])
    assert math.sqrt(expected) <= 0.51 * step
    assert expected == pytest.approx(exact_error(x, low, high, dtype, symmetric), rel=1e-3, abs=1e-3 * step**2)
    if calibration != "mse":
        assert max(-low, high) == pytest.approx(abs(value), rel=1e-6)


@pytest.mark.parametrize("calibration", ["minmax", "kl", "mse", "p99.9"])
@pytest.mark.parametrize(("dtype", "symmetric"), SCHEMES)
def test_an_all_zero_tensor_has_an_empty_range_and_no_error(calibration: str, dtype: str, symmetric: bool) -> None:
    statistics = statistics_of(np.zeros(50, np.float32))
    assert estimate_range(statistics, calibration, dtype, symmetric) == (0.0, 0.0)
    assert expected_error(statistics, 0.0, 0.0, dtype, symmetric) == 0.0


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(DataError, match=r"tensor 't' has no calibration values, so it has no range\. Give at least one calibration row\."):
        estimate_range(TensorStatistics("t"), "minmax", "u8", False)
    with pytest.raises(UnknownName, match=r"unknown calibration method 'p999'\. Did you mean 'p99\.9'\? Known: kl, minmax, mse, p99\.9\."):
        estimate_range(STATISTICS["normal"], "p999", "u8", False)
    assert list(RANGES) == ["kl", "minmax", "mse"]
