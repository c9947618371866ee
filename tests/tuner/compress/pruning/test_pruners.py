from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from builders import Net
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.hooks import TrainingHook, round_length
from tuner.compress.pruning.masking import MaskedTraining
from tuner.compress.pruning.patterns import removed_count
from tuner.compress.pruning.pruners import PRUNERS, make_pruner
from tuner.errors import PlanError, UnknownName
from tuner.model.graph import Model
from tuner.model.torch_view import TorchView, torch_view

STEPS = 16
SCHEMES = {
    "conv2.w": SparsityScheme(ratio=0.7),
    "up.w": SparsityScheme(ratio=0.25, pattern="3:4"),
    "hidden.w": SparsityScheme(ratio=0.5, pattern="4x2"),
    "fc.w": SparsityScheme(ratio=0.5, pattern="2:4"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "criterion": {"schedule": "cubic", "every": 3},
    "linear": {"every": 3},
    "exponential": {"every": 3},
    "agp": {"every": 3},
    "admm": {"every": 3, "rho": 0.1},
}
MASKING = [name for name in PRUNERS if name != "slim"]


def network() -> Model:
    """conv1 → norm → Relu → conv2 → Relu → up (transposed) → Relu → mean → hidden (MatMul) → Relu → fc (Gemm, not transposed)."""
    net = Net(3)
    x = net.op("Relu", net.norm(net.conv(net.input(shape=("batch", 3, 6, 6)), 3, 8, "conv1"), 8, "norm"))
    x = net.op("Relu", net.conv(x, 8, 8, "conv2"))
    x = net.op("Relu", net.op("ConvTranspose", x, net.weight("up.w", (8, 6, 2, 2), 32), name="up", strides=[2, 2]))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.op("Relu", net.matmul(x, 6, 16, "hidden"))
    return net.output(net.gemm(x, 16, 4, "fc", transposed=False)).model()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step % 5)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.randn(8, 4, generator=generator)


def pruner(name: str) -> TrainingHook:
    options = dict(OPTIONS.get(name, {}))
    if name == "criterion":
        shapes = {"conv2.w": (8, 8, 3, 3), "up.w": (6, 8, 2, 2), "hidden.w": (16, 6), "fc.w": (4, 16)}
        generator = torch.Generator().manual_seed(9)
        options["scores"] = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return make_pruner(name, {} if name == "slim" else SCHEMES, **options)


class Loop:
    """A training loop as small as it can be: SGD with momentum and weight decay, begun anew in every round of the hook."""

    def __init__(self, hook: TrainingHook, steps: int = STEPS, rate: float = 0.05) -> None:
        self.view, self.hook, self.steps, self.rate = torch_view(network()), hook, steps, rate
        self.view.train()
        self.optimizer = self.fresh()
        hook.begin(self.view, steps)

    def fresh(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.view.parameters(), lr=self.rate, momentum=0.9, weight_decay=0.02)

    def run(self, first: int, last: int, look: Callable[[int], None] = lambda _: None) -> Loop:
        """Steps `first` up to `last`, not including it. look: called with the steps done after each."""
        for step in range(first, last):
            if step % round_length(self.steps, self.hook.rounds) == 0:
                self.optimizer = self.fresh()
            x, y = batch(step)
            loss = (next(iter(self.view({"x": x}).values())) - y).square().mean()
            penalty = self.hook.penalty(self.view)
            self.optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            self.hook.after_backward(self.view, step)
            self.optimizer.step()
            self.hook.after_step(self.view, step)
            look(step + 1)
        return self

    def finish(self) -> Mapping[str, Tensor]:
        """{key of the view's state_dict: values}."""
        self.run(0, self.steps)
        self.hook.end(self.view)
        return self.view.state_dict()


def masked(hook: TrainingHook) -> MaskedTraining:
    assert isinstance(hook, MaskedTraining)
    return hook


def check_sparsity(view: TorchView) -> None:
    """Counts zeros in the model that is written back, layer by layer, with NumPy alone."""
    model = view.write_back()
    conv2, up, hidden, fc = (model.array(name) == 0 for name in SCHEMES)
    assert conv2.sum() == removed_count(0.7, 8 * 8 * 9)
    # [in, out, 2, 2] → [out, in · 2 · 2], of which one of four goes.
    assert (up.transpose(1, 0, 2, 3).reshape(-1, 4).sum(1) == 1).all()
    blocks = hidden.T.reshape(4, 4, 3, 2).sum((1, 3))
    assert sorted(blocks.ravel()) == [0] * 6 + [8] * 6
    assert (fc.T.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("name", MASKING)
def test_the_final_sparsity_is_exact_and_other_layers_train_whole(name: str) -> None:
    loop = Loop(pruner(name))
    loop.finish()
    check_sparsity(loop.view)
    before, after = network(), loop.view.write_back()
    assert np.count_nonzero(after.array("conv1.w")) == before.array("conv1.w").size
    assert not np.array_equal(after.array("conv1.w"), before.array("conv1.w"))


@pytest.mark.parametrize("name", MASKING)
def test_removed_weights_are_zero_after_every_step_and_get_no_gradient(name: str) -> None:
    loop = Loop(pruner(name))
    hook, settled = masked(loop.hook), []

    def look(done: int) -> None:
        settled.append(hook.settled(done))
        for key, mask in hook.masks.items():
            value = loop.view.value(key)
            assert (value[~mask] == 0).all()
            assert not torch.signbit(value[~mask]).any()
        if settled[-1]:
            check_sparsity(loop.view)

    plain = hook.after_backward

    def after_backward(view: TorchView, step: int) -> None:
        plain(view, step)
        for key, mask in hook.masks.items():
            gradient = view.grad(key)
            assert gradient is not None and (gradient[~mask] == 0).all()

    hook.after_backward = after_backward  # type: ignore[method-assign]
    loop.run(0, STEPS, look)
    assert settled == sorted(settled) and settled[-1]


@pytest.mark.parametrize("name", list(PRUNERS))
def test_the_same_training_gives_the_same_weights(name: str) -> None:
    first, second = Loop(pruner(name)).finish(), Loop(pruner(name)).finish()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", list(PRUNERS))
@pytest.mark.parametrize("at", [2, 7, 14])
def test_a_training_that_goes_on_from_a_checkpoint_ends_the_same(name: str, at: int) -> None:
    whole = Loop(pruner(name))
    expected = whole.finish()
    half = Loop(pruner(name)).run(0, at)
    weights = {key: values.clone() for key, values in half.view.state_dict().items()}
    state = {key: values.clone() for key, values in half.hook.state().items()}
    other = Loop(pruner(name))
    other.view.load_state_dict(weights)
    other.hook.load(state)
    other.optimizer.load_state_dict(half.optimizer.state_dict())
    other.run(at, STEPS)
    other.hook.end(other.view)
    assert all(torch.equal(values, expected[key]) for key, values in other.view.state_dict().items())


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_training_that_is_cut_short_still_ends_sparse(name: str, steps: int) -> None:
    loop = Loop(pruner(name)).run(0, steps)
    loop.hook.end(loop.view)
    check_sparsity(loop.view)


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_training_of_hardly_a_step_ends_sparse(name: str, steps: int) -> None:
    loop = Loop(pruner(name), steps)
    loop.finish()
    check_sparsity(loop.view)


@pytest.mark.parametrize("name", MASKING)
def test_a_better_state_that_was_restored_gets_the_mask_too(name: str) -> None:
    """The loop may put back weights of an earlier step before it ends."""
    loop = Loop(pruner(name)).run(0, STEPS)
    for key in SCHEMES:
        loop.view.value(key).fill_(1.0)
    loop.hook.end(loop.view)
    check_sparsity(loop.view)


@pytest.mark.parametrize("name", MASKING)
def test_what_is_no_weight_of_a_layer_is_refused(name: str) -> None:
    options = {"scores": {}} if name == "criterion" else {}
    with pytest.raises(PlanError, match=r"'norm\.g' is no weight of a Conv"):
        make_pruner(name, {"norm.g": SCHEMES["conv2.w"]}, **options).begin(torch_view(network()), STEPS)


def test_an_unknown_pruner_and_an_unknown_option_are_named() -> None:
    with pytest.raises(UnknownName, match=r"unknown pruner 'apg'\. Did you mean 'agp'"):
        make_pruner("apg", {})
    with pytest.raises(UnknownName, match=r"unknown option of the pruner agp 'evry'\. Did you mean 'every'\? Known: end, every, start"):
        make_pruner("agp", {}, evry=3)


def test_scores_of_another_shape_are_refused() -> None:
    scores = {"fc.w": torch.ones(16, 4)}
    hook = make_pruner("level", {"fc.w": SCHEMES["fc.w"]}, scores=scores)
    with pytest.raises(PlanError, match=r"scores of 'fc\.w' must have the shape .* \[4, 16\], got \[16, 4\]"):
        hook.begin(torch_view(network()), STEPS)


def test_level_removes_the_smallest_magnitudes_before_training() -> None:
    view = torch_view(network())
    make_pruner("level", {"conv2.w": SCHEMES["conv2.w"]}).begin(view, STEPS)
    sizes = np.sort(np.abs(network().array("conv2.w")).ravel())
    kept = np.abs(view.value("conv2.w").numpy())
    assert kept[kept > 0].min() == sizes[removed_count(0.7, sizes.size)]


def test_given_scores_decide_and_not_magnitudes() -> None:
    view = torch_view(network())
    scores = torch.arange(64.0).reshape(4, 16)
    make_pruner("criterion", {"fc.w": SparsityScheme(ratio=0.5)}, scores={"fc.w": scores}).begin(view, STEPS)
    assert (view.value("fc.w").T == 0).flatten().tolist() == [True] * 32 + [False] * 32
