from __future__ import annotations

import numpy as np
import pytest

from tuner.measure.divergence import divergence


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((5000, 4)).astype(np.float32)


def test_divergence_is_the_mean_square_of_the_change_over_the_variance() -> None:
    reference = np.array([[0.0, 2.0], [0.0, 2.0]], np.float32)
    assert divergence(reference, reference) == 0.0
    assert divergence(reference + np.float32(0.5), reference) == pytest.approx(0.25)
    assert divergence(normal(0), normal(1)) == pytest.approx(2.0, rel=0.05)
    assert divergence(normal(0) * 10, normal(1) * 10) == pytest.approx(divergence(normal(0), normal(1)), rel=1e-5)


def test_divergence_grows_with_the_energy_of_the_noise() -> None:
    small, large = (divergence(normal(0) + np.float32(scale) * normal(1), normal(0)) for scale in (0.01, 0.02))
    assert large == pytest.approx(4 * small, rel=1e-3)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_infinitely_far(broken: float) -> None:
    outputs = normal(0)
    outputs[3, 2] = broken
    assert divergence(outputs, normal(0)) == float("inf")


def test_a_constant_original_has_no_scale() -> None:
    constant = np.ones((10, 3), np.float32)
    assert divergence(constant, constant) == 0.0
    assert divergence(constant + 1, constant) == 1.0
