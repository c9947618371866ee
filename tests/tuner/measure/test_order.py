"""Rows are drawn by weight, and what was drawn says what all rows would say."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.measure.order import NARROW_SHARE, PREFERENCE, doubt_weights, draw_order


def test_a_draw_is_an_order_of_all_rows_and_repeats_with_its_seed() -> None:
    weights = np.linspace(1, 3, 50)
    draw = draw_order(weights, 7)
    assert sorted(draw.rows) == list(range(50))
    np.testing.assert_array_equal(draw.weights, weights[draw.rows])
    assert (np.diff(draw.keys) >= 0).all()
    np.testing.assert_array_equal(draw.rows, draw_order(weights, 7).rows)
    assert (draw.rows != draw_order(weights, 8).rows).any()


def test_the_first_row_is_drawn_in_proportion_to_its_weight() -> None:
    weights = np.array([6.0, 3.0, 1.0])
    first = np.bincount([draw_order(weights, seed).rows[0] for seed in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(first, weights / 10, atol=0.03)


def test_the_estimate_is_unbiased_and_knows_its_error() -> None:
    """Also where the rows drawn first are the ones that differ."""
    values, weights = np.zeros(400), np.ones(400)
    values[:20], values[20:30], weights[:40] = 1.0, -1.0, 8.0
    found = []
    for seed in range(1500):
        draw = draw_order(weights, seed)
        found.append(draw.estimate(values[draw.rows[:100]]))
    means, errors = np.array(found).T
    assert means.mean() == pytest.approx(values.mean(), abs=4 * means.std() / 1500**0.5)
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(means.std(), rel=0.1)


def test_the_estimate_from_all_rows_is_exact() -> None:
    values = np.random.default_rng(0).normal(size=30)
    draw = draw_order(np.ones(30), 0)
    assert draw.estimate(values[draw.rows]) == (pytest.approx(values.mean()), 0.0)


def test_rows_with_a_narrow_margin_are_preferred() -> None:
    margins = np.random.default_rng(1).permutation(1000) / 100
    outputs = np.stack([np.zeros(1000), margins, np.full(1000, -5.0)], axis=1).astype(np.float32)
    weights = doubt_weights(outputs)
    assert weights[margins.argmin()] == PREFERENCE
    assert (np.diff(weights[np.argsort(margins)]) <= 0).all()
    assert weights[np.argsort(margins)[int(3 * NARROW_SHARE * 1000)]] < 1.01


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3, 4)])
def test_outputs_that_are_not_class_scores_are_drawn_alike(shape: tuple[int, ...]) -> None:
    assert (doubt_weights(np.ones(shape, np.float32)) == 1).all()
