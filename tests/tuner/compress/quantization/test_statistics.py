from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.compress.quantization.statistics import BINS, TensorStatistics, load, save
from tuner.errors import DataError, ModelError, StorageError

BATCH = st.lists(st.one_of(st.just(0.0), st.floats(-1e9, 1e9, width=32, allow_subnormal=False), st.floats(-4, 4, width=32)), max_size=30)


def collected(*batches: NDArray[np.float32], axis: int | None = None) -> TensorStatistics:
    statistics = TensorStatistics("t", axis)
    for batch in batches:
        statistics.update(batch)
    return statistics


def assert_same(a: TensorStatistics, b: TensorStatistics) -> None:
    assert (a.count, a.zeros, a.low, a.high, a.exponent) == (b.count, b.zeros, b.low, b.high, b.exponent)
    np.testing.assert_array_equal(a.histogram, b.histogram)
    assert a.mean == pytest.approx(b.mean, rel=1e-9, abs=1e-9 * b.largest)
    assert a.m2 == pytest.approx(b.m2, rel=1e-9, abs=1e-12 * b.largest**2)


def test_moments_and_extremes_are_numpys() -> None:
    x = (np.random.default_rng(0).normal(size=(3, 100_000)) * 7 + 1000).astype(np.float32)
    statistics = collected(*x)
    assert (statistics.count, statistics.low, statistics.high) == (x.size, x.min(), x.max())
    assert statistics.mean == pytest.approx(x.mean(dtype=np.float64), rel=1e-12)
    assert statistics.variance == pytest.approx(x.var(dtype=np.float64), rel=1e-9)


def test_the_histogram_is_numpys_over_a_power_of_two() -> None:
    x = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
    x[:777] = 0.0
    statistics = collected(x)
    limit = 2.0 ** np.ceil(np.log2(np.abs(x).max()))
    assert statistics.limit == limit
    expected, _ = np.histogram(x[x != 0], bins=2 * BINS, range=(-limit, limit))
    np.testing.assert_array_equal(statistics.histogram, expected)
    assert statistics.zeros == 777
    edges = statistics.edges()
    assert (edges[0], edges[-1]) == (x.min(), x.max())


@example(batches=[[-1.4e-45], [1e9]], split=1)
@given(batches=st.lists(BATCH, min_size=1, max_size=5), split=st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_neither_batches_nor_order_nor_merging_change_the_counts(batches: list[list[float]], split: int) -> None:
    arrays = [np.array(batch, np.float32) for batch in batches]
    whole = collected(np.concatenate(arrays))
    assert_same(collected(*arrays), whole)
    assert_same(collected(*arrays[::-1]), whole)
    merged = collected(*arrays[:split])
    merged.merge(collected(*arrays[split:]))
    assert_same(merged, whole)


def test_growing_by_any_factor_loses_no_count() -> None:
    statistics = collected(np.array([1e-30, -1e-30, 0.0], np.float32), np.array([3e38], np.float32))
    assert statistics.histogram[BINS - 1 : BINS + 1].tolist() == [1, 1]
    assert (statistics.zeros, int(statistics.histogram.sum()), statistics.limit) == (1, 3, 2.0**128)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channel_extremes(axis: int) -> None:
    x = np.random.default_rng(2).normal(size=(6, 5, 4, 3)).astype(np.float32)
    statistics = collected(x, axis=axis) if axis == 0 else collected(x[:2], x[2:4], axis=axis)
    if axis != 0:
        statistics.merge(collected(x[4:], axis=axis))
    others = tuple(i for i in range(4) if i != axis % 4)
    np.testing.assert_array_equal(statistics.channel_low, x.min(axis=others))
    np.testing.assert_array_equal(statistics.channel_high, x.max(axis=others))


def test_merging_into_an_empty_one_copies_the_channels() -> None:
    source = collected(np.array([[1.0, 2.0]], np.float32), axis=1)
    target = TensorStatistics("t", 1)
    target.merge(source)
    target.update(np.array([[9.0, -9.0]], np.float32))
    assert (source.channel_low is not None) and source.channel_low.tolist() == [1.0, 2.0]
    assert (target.channel_low is not None) and target.channel_low.tolist() == [1.0, -9.0]


def test_an_empty_batch_changes_nothing() -> None:
    statistics = collected(np.zeros((0, 3), np.float32), axis=1)
    assert (statistics.count, statistics.largest, statistics.variance, statistics.channel_low) == (0, 0.0, 0.0, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(bad: float) -> None:
    statistics = collected(np.array([1.0, 2.0], np.float32))
    with pytest.raises(ModelError) as error:
        statistics.update(np.array([5.0, bad], np.float32), rows=(64, 128))
    assert str(error.value) == (
        "the model's tensor 't' holds NaN or infinity for calibration rows 64 to 128; ranges need finite values. "
        "Leave those rows out (data.calibration.rows) or look for an overflow in the model before that tensor."
    )
    assert_same(statistics, collected(np.array([1.0, 2.0], np.float32)))


def test_an_axis_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"channel axis of tensor 't' must lie within its 1 dimensions, got axis=1\. Collect it without"):
        collected(np.ones(3, np.float32), axis=1)
    with pytest.raises(ModelError, match=r"'t' must keep its number of channels along axis 1, got 4 after 3\. Collect it without"):
        collected(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), axis=1)
    with pytest.raises(ValueError, match="same channel axis, got None and 1 for tensor 't'"):
        TensorStatistics("t").merge(TensorStatistics("t", 1))


def test_save_and_load_give_back_everything(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    statistics = {
        "/layer/conv:0": collected(rng.normal(size=(4, 3, 5)).astype(np.float32), axis=1),
        "plain": collected(rng.normal(size=100).astype(np.float32)),
        "empty": TensorStatistics("empty", -1),
    }
    save(tmp_path / "stats.npz", statistics)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]
    loaded = load(tmp_path / "stats.npz")
    assert list(loaded) == list(statistics)
    for name, before in statistics.items():
        after = loaded[name]
        assert (after.name, after.axis, after.mean, after.m2) == (name, before.axis, before.mean, before.m2)
        assert_same(after, before)
        assert (after.channel_low is None) == (before.channel_low is None)
    np.testing.assert_array_equal(loaded["/layer/conv:0"].channel_high, statistics["/layer/conv:0"].channel_high)
    after.update(np.ones((2, 2), np.float32))
    assert after.count == 4


def test_a_damaged_file_and_a_missing_folder_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    save(path, {"t": collected(np.ones(3, np.float32))})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"statistics in '.*stats\.npz' cannot be read: .*Delete the file; they are collected again\."):
        load(path)
    with pytest.raises(StorageError, match="writing the calibration statistics failed"):
        save(tmp_path / "nowhere" / "stats.npz", {})
