from __future__ import annotations

from typing import Any

import torch
from builders import Net
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.masking import partial_mask
from tuner.compress.pruning.movement import Movement
from tuner.compress.pruning.schedules import Timing
from tuner.model.torch_view import torch_view

STEPS, RATE = 16, 0.05
SCHEME = SparsityScheme(ratio=0.6)
TIMING = Timing("cubic", start=0.125, end=0.75)
X = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
Y = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


class Top(torch.autograd.Function):
    """M = Top_v(S) forward; backward, the gradient goes straight through to S."""

    @staticmethod
    def forward(_ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return mask.to(scores)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def reference(start: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The paper's equations by automatic differentiation, W and S as parameters. (W ⊙ M, S) after every step; [out, in]."""
    weight, scores = start.clone().requires_grad_(), torch.zeros_like(start).requires_grad_()
    mask, weights, movements = torch.ones_like(start, dtype=torch.bool), [], []
    for step in range(STEPS):
        loss = (X @ (weight * Top.apply(scores, mask)).T - Y).square().mean()
        weight.grad = scores.grad = None
        loss.backward()
        with torch.no_grad():
            assert weight.grad is not None and scores.grad is not None
            weight -= RATE * weight.grad
            if not TIMING.settled(step, STEPS):
                scores -= scores.grad
        if TIMING.renews(step + 1, STEPS):
            mask = partial_mask(scores.detach(), SCHEME, TIMING.fraction(step + 1, STEPS, SCHEME.ratio))
        weights.append((weight * mask).detach())
        movements.append(scores.detach().clone())
    return weights, movements


def test_every_step_is_that_of_the_straight_through_estimator() -> None:
    net = Net(5)
    view = torch_view(net.output(net.matmul(net.input(shape=("batch", 10)), 10, 6, "fc")).model())
    weights, movements = reference(view.value("fc.w").T)
    hook = Movement({"fc.w": SCHEME}, TIMING)
    optimizer = torch.optim.SGD(view.parameters(), lr=RATE)
    hook.begin(view, STEPS)
    revived = 0
    for step in range(STEPS):
        before = hook.masks["fc.w"]
        optimizer.zero_grad()
        (next(iter(view({"x": X}).values())) - Y).square().mean().backward()
        hook.after_backward(view, step)
        optimizer.step()
        hook.after_step(view, step)
        revived += int((hook.masks["fc.w"] & ~before).sum())
        torch.testing.assert_close(view.value("fc.w").T, weights[step], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(hook.movement["fc.w"].T, movements[step], rtol=1e-4, atol=1e-7)
    hook.end(view)
    assert revived > 0
    assert int((view.value("fc.w") == 0).sum()) == 36


def test_weights_that_training_moves_to_zero_go_though_they_are_large() -> None:
    """Two weights: 2 falls towards 0.5, 0.1 grows towards 1; the large one goes."""
    net = Net()
    net.constant("fc.w", [[2.0], [0.1]])
    view = torch_view(net.output(net.op("MatMul", net.input(shape=("batch", 2)), "fc.w", name="fc")).model())
    hook = Movement({"fc.w": SparsityScheme(ratio=0.5)}, Timing("one-shot", start=0.5, end=0.75))
    hook.begin(view, 4)
    x = torch.eye(2)
    for step in range(4):
        view.zero_grad()
        (next(iter(view({"x": x}).values())) - torch.tensor([[0.5], [1.0]])).square().sum().backward()
        hook.after_backward(view, step)
        hook.after_step(view, step)
    hook.end(view)
    assert view.value("fc.w").flatten().tolist() == [0.0, float(torch.tensor(0.1))]
