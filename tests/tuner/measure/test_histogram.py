from __future__ import annotations

import numpy as np
import pytest

from tuner.compress.quantization.statistics import TensorStatistics
from tuner.measure.histogram import BINS, folded, histogram_of
from tuner.results import Histogram


def of_statistics(values: np.ndarray) -> Histogram | None:
    statistics = TensorStatistics("t")
    statistics.update(np.asarray(values, np.float32))
    return folded(statistics.edges(), statistics.histogram, statistics.zeros)


def test_every_value_is_in_the_bin_that_it_lies_in() -> None:
    found = histogram_of(np.array([0.0, 0.9, 1.0, 1.5, 63.5, 64.0], np.float32))
    assert found is not None
    assert (found.low, found.high, len(found.counts)) == (0.0, 64.0, BINS)
    assert {index: count for index, count in enumerate(found.counts) if count} == {0: 2, 1: 2, 63: 2}


def test_many_values_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((40, 25)).astype(np.float32)
    whole = histogram_of(values)
    monkeypatch.setattr("tuner.measure.histogram._BLOCK", 7)
    assert histogram_of(values) == whole
    assert whole is not None
    assert whole.counts == tuple(np.histogram(values.astype(np.float64), BINS)[0].tolist())


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 0.0]])
def test_what_cannot_be_drawn_has_no_histogram(values: list[float]) -> None:
    assert histogram_of(np.array(values, np.float32)) is None


def test_equal_values_are_one_bin() -> None:
    assert histogram_of(np.full((2, 3), 0.5, np.float32)) == Histogram(low=0.5, high=0.5, counts=(6,))
    assert of_statistics(np.full(6, 0.5)) == Histogram(low=0.5, high=0.5, counts=(6,))
    assert of_statistics(np.zeros(4)) == Histogram(low=0.0, high=0.0, counts=(4,))


def test_fine_bins_are_divided_in_proportion() -> None:
    """Two fine bins of 64 and 128 values over [0, 2]: the first 32 bins share the one, the last 32 the other."""
    found = folded(np.array([0.0, 1.0, 2.0]), np.array([64, 128]), 0)
    assert found is not None
    assert found.counts == (2,) * 32 + (4,) * 32


@pytest.mark.parametrize(("edges", "bin_of_zero"), [([-2.0, 0.0, 2.0], 32), ([0.0, 1.0, 2.0], 0), ([-2.0, -1.0, 0.0], 63)])
def test_zeros_join_the_bin_that_holds_zero(edges: list[float], bin_of_zero: int) -> None:
    found = folded(np.array(edges), np.array([64, 64]), 1000)
    assert found is not None
    assert found.counts == tuple(1002 if index == bin_of_zero else 2 for index in range(BINS))


def test_only_zeros_beside_nothing_is_nothing() -> None:
    assert folded(np.array([-1.0, 0.0, 1.0]), np.array([0, 0]), 0) is None


def test_folded_statistics_are_about_the_histogram_of_the_values() -> None:
    """A fine bin is at most an eighth of a coarse one, so that only values near a border may stand on its other side."""
    values = np.maximum(np.random.default_rng(1).standard_normal(100_000).astype(np.float32), 0)
    found, exact = of_statistics(values), histogram_of(values)
    assert found is not None
    assert exact is not None
    assert (found.low, found.high, sum(found.counts)) == (0.0, exact.high, 100_000)
    assert found.counts[0] > 49_000
    np.testing.assert_allclose(found.counts, exact.counts, atol=250)
