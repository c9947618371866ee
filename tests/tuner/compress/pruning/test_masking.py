from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from builders import Net

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.masking import MaskedTraining, last, partial_mask
from tuner.compress.pruning.patterns import keep_mask
from tuner.compress.pruning.schedules import Timing, sparsity
from tuner.model.torch_view import TorchView, torch_view

STEPS = 12


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def view_of_matmul() -> TorchView:
    """One MatMul, [10, 6] in the file, so 6 outputs of 10 inputs."""
    net = Net(1)
    return torch_view(net.output(net.matmul(net.input(shape=("batch", 10)), 10, 6, "fc")).model())


@pytest.mark.parametrize("name", ["0.6-any", "0.5-2:4", "0.5-2x4"])
def test_partial_masks_grow_into_the_whole_one(name: str) -> None:
    scheme = SparsityScheme.parse(name)
    rated = scores(8, 16)
    masks = [partial_mask(rated, scheme, share / 10) for share in range(11)]
    assert masks[0].all()
    assert torch.equal(masks[10], keep_mask(rated, scheme))
    assert all((later <= earlier).all() for earlier, later in pairwise(masks))
    removed = [int((~mask).sum()) for mask in masks]
    unit = math.prod(scheme.block)
    total = removed[10] if scheme.kept else scheme.ratio * 128
    assert removed == [min(unit * math.ceil(round(share / 10 * total / unit, 6)), removed[10]) for share in range(11)]


def test_half_of_a_pattern_takes_the_lowest_of_what_the_whole_would_take() -> None:
    rated = torch.tensor([[1.0, 4.0, 2.0, 3.0, 8.0, 7.0, 6.0, 5.0]])
    keep = partial_mask(rated, SparsityScheme(ratio=0.5, pattern="2:4"), 0.5)
    assert keep.tolist() == [[False, True, False, True, True, True, True, True]]


@pytest.mark.parametrize("name", ["0.5-any", "0.5-2:4", "0.5-3x5"])
def test_what_is_gone_comes_last_whatever_its_score(name: str) -> None:
    """Also in blocks at the edge, which add up fewer scores, and with scores below zero."""
    scheme = SparsityScheme.parse(name)
    gone = partial_mask(scores(8, 16, seed=1), scheme, 0.6)
    keep = keep_mask(last(scores(8, 16, seed=2) - 3, gone), scheme)
    assert (keep <= gone).all()


@pytest.mark.parametrize("revives", [True, False])
def test_the_course_of_automated_gradual_pruning(revives: bool) -> None:
    """⌈s_t n⌉ zeros after step t, with s_t of equation 1, renewed every second step."""
    view, scheme = view_of_matmul(), SparsityScheme(ratio=0.8)
    hook = MaskedTraining({"fc.w": scheme}, Timing("cubic", end=1.0, every=2), revives=revives)
    hook.begin(view, STEPS)
    generator = torch.Generator().manual_seed(4)
    for step in range(STEPS):
        weight = view.value("fc.w")
        weight += 0.3 * torch.randn(weight.shape, generator=generator)
        hook.after_step(view, step)
        target = sparsity((step + 1) // 2 * 2, STEPS, "cubic", 0.8)
        assert int((view.value("fc.w") == 0).sum()) == math.ceil(round(target * 60, 6))


def renewed(revives: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(the largest of the weights that are gone half-way, its value after all others shrank a thousandfold)."""
    view = view_of_matmul()
    start = view.value("fc.w").clone()
    hook = MaskedTraining({"fc.w": SparsityScheme(ratio=0.5)}, Timing("linear", end=1.0), revives=revives)
    hook.begin(view, 2)
    hook.after_step(view, 0)
    gone = view.value("fc.w") == 0
    largest = (start.abs() * gone).argmax()
    view.value("fc.w").mul_(1e-3)
    hook.after_step(view, 1)
    return start.flatten()[largest], view.value("fc.w").flatten()[largest]


def test_a_revived_weight_has_the_value_that_it_had() -> None:
    before, after = renewed(revives=True)
    assert torch.equal(before, after)


def test_without_reviving_what_is_gone_stays_gone() -> None:
    _, after = renewed(revives=False)
    assert after == 0


def test_nothing_is_kept_beside_the_weights_once_the_mask_is_held() -> None:
    view = view_of_matmul()
    hook = MaskedTraining({"fc.w": SparsityScheme(ratio=0.5)}, Timing("cubic", end=0.5), revives=True)
    hook.begin(view, 4)
    hook.after_step(view, 0)
    assert set(hook.state()) == {"done", "mask/fc.w", "hidden/fc.w"}
    hook.after_step(view, 1)
    assert set(hook.state()) == {"done", "mask/fc.w"}
