from __future__ import annotations

import pytest
import torch
from builders import Net, small_cnn

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.pruners import make_pruner
from tuner.compress.pruning.slimming import Slimming
from tuner.errors import PlanError
from tuner.model.torch_view import TorchView, torch_view


def network() -> TorchView:
    """conv1 → norm1 → Relu → conv2 → norm2; γ of norm1 is -0.5, 0, 0.5, 1."""
    net = Net(0)
    x = net.norm(net.conv(net.input(shape=("batch", 3, 4, 4)), 3, 4, "conv1"), 4, "norm1")
    x = net.norm(net.conv(net.op("Relu", x), 4, 4, "conv2"), 4, "norm2")
    view = torch_view(net.output(x).model())
    view.value("norm1.g").copy_(torch.tensor([-0.5, 0.0, 0.5, 1.0]))
    return view


def test_the_penalty_is_the_sum_of_magnitudes_and_its_subgradient() -> None:
    view, hook = network(), Slimming(strength=0.25, gammas=["norm1.g"])
    hook.begin(view, 10)
    penalty = hook.penalty(view)
    assert penalty is not None
    penalty.backward()
    assert penalty.item() == 0.5
    assert view.parameter("norm1.g").grad is not None
    assert view.parameter("norm1.g").grad.tolist() == [-0.25, 0.0, 0.25, 0.25]  # type: ignore[union-attr]
    assert view.parameter("norm2.g").grad is None


def test_every_scale_is_pressed_unless_some_are_named() -> None:
    view, hook = network(), Slimming()
    hook.begin(view, 10)
    assert hook.gammas == ("norm1.g", "norm2.g")
    hook.end(view)
    assert hook.state() == {}


def test_scales_that_the_loss_does_not_need_fall_to_nothing() -> None:
    """Loss: γ of channel 3 alone is wanted at 1."""
    view, hook = network(), Slimming(strength=0.1, gammas=["norm1.g"])
    hook.begin(view, 100)
    gamma = view.parameter("norm1.g")
    optimizer = torch.optim.SGD([gamma], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        penalty = hook.penalty(view)
        assert penalty is not None
        ((gamma[3] - 1).square() + penalty).backward()
        optimizer.step()
    # Sub-gradient steps of 0.01 end within a step of zero; (γ − 1)² + 0.1 |γ| is least at 0.95.
    assert gamma.detach().abs()[:3].max() <= 0.011
    assert gamma[3].item() == pytest.approx(0.95, abs=1e-3)


def test_what_it_cannot_work_on_is_refused() -> None:
    with pytest.raises(PlanError, match="there is no BatchNormalization of this model"):
        Slimming().begin(torch_view(small_cnn()), 10)
    with pytest.raises(PlanError, match=r"'norm1\.b' is no scale of a BatchNormalization"):
        Slimming(gammas=["norm1.b"]).begin(network(), 10)
    with pytest.raises(PlanError, match="slim needs strength > 0, got strength=0"):
        Slimming(strength=0.0)
    with pytest.raises(PlanError, match=r"slim sets no weights to zero, got a sparsity for 'conv1\.w'"):
        make_pruner("slim", {"conv1.w": SparsityScheme(ratio=0.5)})
