from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from builders import Net
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.admm import Admm, project
from tuner.compress.pruning.schedules import Timing
from tuner.errors import PlanError
from tuner.model.torch_view import torch_view


def supports(scheme: SparsityScheme) -> list[Tensor]:
    """Every mask of [2, 4] that the scheme allows."""
    if scheme.kept:
        rows = [torch.tensor([i in kept for i in range(4)]) for kept in combinations(range(4), 2)]
        return [torch.stack(pair) for pair in product(rows, rows)]
    if scheme.block == (1, 2):
        halves = [torch.tensor([i in kept for i in range(4)]) for kept in combinations(range(4), 2)]
        return [half.reshape(2, 2).repeat_interleave(2, 1) for half in halves]
    return [torch.tensor([i in kept for i in range(8)]).reshape(2, 4) for kept in combinations(range(8), 4)]


@pytest.mark.parametrize("pattern", ["any", "2:4", "1x2"])
def test_the_projection_is_the_nearest_point_of_all(pattern: str) -> None:
    scheme = SparsityScheme(ratio=0.5, pattern=pattern)
    for seed in range(20):
        weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        distances = [(weight - weight * support).square().sum() for support in supports(scheme)]
        found = project(weight, scheme)
        assert torch.equal(found[found != 0], weight[found != 0])
        assert (weight - found).square().sum() == pytest.approx(float(min(distances)))


def problem() -> tuple[Admm, list[float], list[float], Tensor]:
    """Least squares: (the hook, ‖W − Z‖ after every iteration, the loss, the final weights)."""
    net = Net(2)
    view = torch_view(net.output(net.matmul(net.input(shape=("batch", 8)), 8, 4, "fc")).model())
    hook = Admm({"fc.w": SparsityScheme(ratio=0.5)}, Timing("linear", end=0.8, every=10), rho=2.0)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x @ torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(view.parameters(), lr=0.1)
    residuals, losses = [], []
    hook.begin(view, 400)
    for step in range(400):
        loss = (next(iter(view({"x": x}).values())) - y).square().sum(1).mean() / 2
        penalty = hook.penalty(view)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        hook.after_backward(view, step)
        optimizer.step()
        hook.after_step(view, step)
        losses.append(loss.item())
        if hook.z and hook.timing.renews(step + 1, 400):
            residuals.append(float((view.value("fc.w") - hook.z["fc.w"]).norm()))
    hook.end(view)
    return hook, residuals, losses, view.value("fc.w")


def test_the_primal_residual_falls_to_nothing_and_cutting_then_costs_nothing() -> None:
    hook, residuals, losses, weight = problem()
    assert residuals[-1] < 1e-3 < 0.1 < residuals[0]
    assert losses[319] == pytest.approx(losses[321], rel=1e-4)
    assert int((weight == 0).sum()) == 16
    assert hook.penalty(None) is None  # type: ignore[arg-type]


def test_the_penalty_is_the_augmented_term_and_its_gradient() -> None:
    """ρ/2 ‖W − Z + U‖² and ρ(W − Z + U), for a weight that lies transposed in the file."""
    net = Net(2)
    view = torch_view(net.output(net.gemm(net.input(shape=("batch", 8)), 8, 4, "fc", transposed=False)).model())
    hook = Admm({"fc.w": SparsityScheme(ratio=0.5)}, Timing("linear", every=1), rho=0.3)
    hook.begin(view, 100)
    weight = view.value("fc.w").clone()
    view.value("fc.w").add_(0.1)
    hook.after_step(view, 0)
    z, u = hook.z["fc.w"], hook.u["fc.w"]
    # U begins at 0.
    assert torch.allclose(u, weight + 0.1 - z)
    penalty = hook.penalty(view)
    assert penalty is not None
    penalty.backward()
    assert penalty.item() == pytest.approx(0.15 * float((weight + 0.1 - z + u).square().sum()), rel=1e-5)
    gradient = view.grad("fc.w")
    assert gradient is not None
    torch.testing.assert_close(gradient, 0.3 * (weight + 0.1 - z + u))


def test_a_rho_that_does_not_pull_is_refused() -> None:
    with pytest.raises(PlanError, match="admm needs rho > 0, got rho=0"):
        Admm({}, Timing("linear"), rho=0.0)
