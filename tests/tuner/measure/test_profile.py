from __future__ import annotations

import numpy as np
import pytest
from tiny_jobs import FEATURES, dense

from tuner.measure.profile import LEAST_SHARE, attribute_times, kernel_times, without_overhead

OWNERS = {"conv1": ["conv1"], "conv10": ["conv10"], "conv1_out": ["other"], "features.0": ["first"], "a_dq": ["conv1", "conv10"]}


@pytest.mark.parametrize(
    ("kernel", "shares", "rest"),
    [
        ("conv1", {"conv1": 2.0}, 0.0),
        ("conv10", {"conv10": 2.0}, 0.0),
        ("conv1_quant_fused", {"conv1": 2.0}, 0.0),
        ("conv1_out_QuantizeLinear", {"other": 2.0}, 0.0),
        ("conv1_out", {"other": 2.0}, 0.0),
        ("conv11_quant", {}, 2.0),
        ("features.0/Conv_nchwc", {"first": 2.0}, 0.0),
        ("features.01", {}, 2.0),
        ("fused conv10", {"conv10": 2.0}, 0.0),
        ("a_dq", {"conv1": 1.0, "conv10": 1.0}, 0.0),
        ("unknown_node_3", {}, 2.0),
        ("", {}, 2.0),
    ],
)
def test_a_kernel_belongs_to_the_longest_name_it_begins_with(kernel: str, shares: dict[str, float], rest: float) -> None:
    assert attribute_times({kernel: 2.0}, OWNERS) == (shares, rest)


def test_times_add_up() -> None:
    times = {"conv1": 3.0, "conv1_q": 0.5, "a_dq": 1.0, "loss": 0.25}
    shares, rest = attribute_times(times, OWNERS)
    assert shares == {"conv1": 4.0, "conv10": 0.5}
    assert rest == 0.25
    assert sum(shares.values()) + rest == sum(times.values())


def test_the_profilers_overhead_is_taken_off_in_equal_parts() -> None:
    assert without_overhead({"a": 3.0, "b": 2.0}, 4.0) == pytest.approx({"a": 2.5, "b": 1.5})
    assert without_overhead({"a": 1.0, "b": 1.0}, 4.0) == pytest.approx({"a": 2.0, "b": 2.0})
    assert without_overhead({}, 4.0) == {}


def test_a_small_kernel_keeps_a_share_of_its_time() -> None:
    """Its part of the overhead is more than all that it took."""
    found = without_overhead({"big": 10.0, "small": 1.0}, 5.0)
    assert sum(found.values()) == pytest.approx(5.0)
    assert found["small"] / found["big"] == pytest.approx(LEAST_SHARE * 1.0 / 7.0)


def test_the_profiler_times_every_layer_of_a_model() -> None:
    times = kernel_times(dense(), {"x": np.zeros((8, FEATURES), np.float32)}, 1, 0.5)
    assert sum(times.values()) == pytest.approx(0.5)
    shares, _ = attribute_times(times, {f"fc{index}": [f"fc{index}"] for index in (1, 2, 3)})
    assert sorted(shares) == ["fc1", "fc2", "fc3"]
    assert all(milliseconds > 0 for milliseconds in shares.values())
