from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import Net

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.rewinding import Lottery, Rounds
from tuner.errors import PlanError
from tuner.model.torch_view import TorchView, torch_view

STEPS = 16


def network() -> TorchView:
    net = Net(1)
    x = net.op("Relu", net.norm(net.conv(net.input(shape=("batch", 3, 4, 4)), 3, 8, "conv"), 8, "norm"))
    return torch_view(net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 8, 4, "fc")).model())


def jolt(view: TorchView, generator: torch.Generator) -> None:
    """A training step of the coarsest kind: noise on every value, statistics of the normalization included."""
    for values in view.state_dict().values():
        values.add_(0.1 * torch.rand(values.shape, generator=generator) if values.is_floating_point() else 1)


@pytest.mark.parametrize("rewind", [0.0, 0.5])
def test_survivors_return_bit_for_bit_and_each_round_takes_its_share(rewind: float) -> None:
    """216 weights to 1/8 in 3 prunings: 108, 54 and 27 are left. Rewound to the start, or to half-way through the first of 4 rounds."""
    view, generator = network(), torch.Generator().manual_seed(0)
    hook = Lottery({"conv.w": SparsityScheme(ratio=0.875)}, prunings=3, rewind=rewind)
    hook.begin(view, STEPS)
    assert (hook.rounds, hook.boundaries) == (4, (4, 8, 12))
    origin = {key: values.clone() for key, values in view.state_dict().items()}
    weight, left = view.value("conv.w").clone(), []
    for step in range(STEPS):
        jolt(view, generator)
        trained = view.value("conv.w").clone()
        hook.after_step(view, step)
        if step + 1 == hook.kept_at:
            origin = {key: values.clone() for key, values in view.state_dict().items()}
            weight = view.value("conv.w").clone()
        if step + 1 in hook.boundaries:
            mask = hook.masks["conv.w"]
            left.append(int(mask.sum()))
            assert torch.equal(view.value("conv.w"), weight.masked_fill(~mask, 0.0))
            assert trained.abs()[mask].min() >= trained.abs()[~mask & (trained != 0)].min()
            others = [key for key, values in view.state_dict().items() if not torch.equal(values, origin[key])]
            assert len(others) == 1
    assert left == [108, 54, 27]
    assert [done for done in range(STEPS + 1) if hook.settled(done)] == [12, 13, 14, 15, 16]


def test_the_lowest_magnitudes_at_the_end_of_a_round_go_and_not_those_at_its_start() -> None:
    view = network()
    hook = Lottery({"fc.w": SparsityScheme(ratio=0.5)}, prunings=1)
    hook.begin(view, 2)
    start = view.value("fc.w").clone()
    trained = torch.from_numpy(np.random.default_rng(0).permutation(32).astype(np.float32).reshape(4, 8)) + 1
    view.value("fc.w").copy_(trained)
    hook.after_step(view, 0)
    assert torch.equal(view.value("fc.w"), torch.where(trained > 16, start, 0.0))


def test_rounds_prune_before_they_train_and_never_rewind() -> None:
    """10 steps in 4 rounds are 3 + 3 + 3 + 1; each pruning leaves half of the 216 weights that there are."""
    view, generator = network(), torch.Generator().manual_seed(0)
    hook = Rounds({"conv.w": SparsityScheme(ratio=0.9375)}, prunings=4)
    hook.begin(view, 10)
    left = [int((view.value("conv.w") != 0).sum())]
    for step in range(10):
        jolt(view, generator)
        trained = view.value("conv.w").clone()
        hook.after_step(view, step)
        assert torch.equal(view.value("conv.w"), trained.masked_fill(~hook.masks["conv.w"], 0.0))
        left.append(int((view.value("conv.w") != 0).sum()))
    assert hook.boundaries == (0, 3, 6, 9)
    assert left == [108] * 3 + [54] * 3 + [27] * 3 + [13] * 2
    assert [done for done in range(11) if hook.settled(done)] == [9, 10]


@pytest.mark.parametrize("rewind", [1.0, -0.1])
def test_wrong_options_are_refused(rewind: float) -> None:
    with pytest.raises(PlanError, match=f"0 <= rewind < 1, got rewind={rewind:g}"):
        Lottery({}, rewind=rewind)
    with pytest.raises(PlanError, match="pruning in rounds needs at least one, got 0"):
        Lottery({}, prunings=0)
