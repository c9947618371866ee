from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import Net
from tiny_training import TinyView

from search_spaces.recovery import RecoverySpec
from tuner.compress.hooks import round_length
from tuner.compress.optimizer import is_transformer, learning_rate, make_optimizer, peak_rate, trained


def test_the_rate_rises_in_equal_stages_and_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0)
    assert rates[40] == pytest.approx(1 + math.cos(math.pi / 3)) and rates[70] == pytest.approx(1 + math.cos(2 * math.pi / 3))
    assert 0 < rates[99] < 0.001 and np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.5), (10, 0.99)])
def test_short_runs_have_a_rate_too(steps: int, warmup: float) -> None:
    rates = [learning_rate(step, steps, 1.0, warmup) for step in range(steps)]
    assert max(rates) == 1.0 and min(rates) > 0


def test_biases_and_normalizations_do_not_decay() -> None:
    view = TinyView()
    decayed, plain = make_optimizer(view, RecoverySpec(weight_decay=0.3), 0.1).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(16, 6), (4, 16)] and decayed["weight_decay"] == 0.3
    assert len(plain["params"]) == 4 and plain["weight_decay"] == 0
    view.norm.requires_grad_(False)
    assert len(trained(view)) == 4


class WithModel(TinyView):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.model = net.model()


def attention() -> Net:
    net = Net()
    x = net.input(shape=("batch", 4, 8))
    weights = net.op("Softmax", net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    return net.output(net.op("MatMul", weights, x))


def normalized() -> Net:
    net = Net()
    x = net.input(shape=("batch", 8))
    return net.output(net.op("LayerNormalization", x, net.constant("g", np.ones(8)), net.constant("b", np.zeros(8))))


def classifier() -> Net:
    net = Net()
    return net.output(net.op("Softmax", net.gemm(net.input(shape=("batch", 8)), 8, 3, "fc")))


@pytest.mark.parametrize(("net", "transformer"), [(attention, True), (normalized, True), (classifier, False)])
def test_the_rate_fits_the_kind_of_network(net: Any, transformer: bool) -> None:
    view: Any = WithModel(net())
    assert is_transformer(view) == transformer
    rate, told = peak_rate(view, RecoverySpec())
    kind = "with attention or layer normalization" if transformer else "of convolutions or dense layers"
    assert (rate, told) == (
        5e-5 if transformer else 1e-3,
        f"learning rate {5e-5 if transformer else 1e-3:g}, chosen for adamw on a network {kind}",
    )
    assert peak_rate(view, RecoverySpec(optimizer="sgd"))[0] == (1e-3 if transformer else 1e-2)
    assert peak_rate(view, RecoverySpec(learning_rate=0.3)) == (0.3, "learning rate 0.3, as given")


@pytest.mark.parametrize(("steps", "rounds", "length"), [(10, 1, 10), (10, 2, 5), (10, 3, 4), (2, 5, 1)])
def test_rounds_share_the_steps(steps: int, rounds: int, length: int) -> None:
    assert round_length(steps, rounds) == length
