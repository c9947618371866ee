from __future__ import annotations

import pytest
import torch
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.criteria import wanda
from tuner.compress.pruning.patterns import keep_mask, removed_count
from tuner.compress.pruning.reconstruction import least_squares, output_error, sparsegpt, wanda_mask
from tuner.errors import PlanError

SCHEMES = [
    SparsityScheme(ratio=0.5),
    SparsityScheme(ratio=0.83),
    SparsityScheme(ratio=0.5, pattern="2:4"),
    SparsityScheme(ratio=0.75, pattern="1:4"),
    SparsityScheme(ratio=0.5, pattern="4x1"),
    SparsityScheme(ratio=0.5, pattern="2x3"),
]


def layer(out: int = 24, columns: int = 40, rows: int = 200, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, correlated inputs X [rows, columns], XᵀX)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.5 * torch.eye(columns)
    x = torch.randn(rows, columns, generator=generator) @ mixing
    return torch.randn(out, columns, generator=generator), x, x.T @ x


def by_magnitude(weight: Tensor, scheme: SparsityScheme) -> Tensor:
    return weight * keep_mask(weight.abs(), scheme)


@pytest.mark.parametrize("scheme", SCHEMES[:4], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_with_an_identity_hessian_sparsegpt_is_magnitude_pruning(scheme: SparsityScheme, scale: float) -> None:
    weight, _, _ = layer()
    assert torch.equal(sparsegpt(weight, torch.eye(40) * scale, scheme), by_magnitude(weight, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_sparsegpt_changes_the_output_less_than_magnitude_and_wanda(scheme: SparsityScheme) -> None:
    weight, x, hessian = layer(columns=160, rows=600)
    pruned = sparsegpt(weight, hessian, scheme)
    error = output_error(weight, pruned, hessian)
    assert error == pytest.approx(float((x @ (weight - pruned).T).double().square().sum()), rel=1e-3)
    assert error < output_error(weight, by_magnitude(weight, scheme), hessian)
    assert error < output_error(weight, weight * wanda_mask(weight, hessian.diagonal().sqrt(), scheme), hessian)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("block", [7, 16, 128])
def test_sparsegpt_makes_exactly_as_many_zeros_as_the_pattern_asks(scheme: SparsityScheme, block: int) -> None:
    weight, _, hessian = layer(out=10, columns=22)
    zeros = sparsegpt(weight, hessian, scheme, block=block) == 0
    if scheme.kept is not None:
        kept, of = scheme.kept
        assert all(bool(((~part).sum(dim=1) == min(kept, part.shape[1])).all()) for part in zeros.split(of, dim=1))
        return
    a, b = scheme.block
    parts = [part for band in zeros.split(a) for part in band.split(b, dim=1)]
    assert sum(bool(part.all()) for part in parts) == removed_count(scheme.ratio, len(parts))
    assert all(bool(part.all()) or not bool(part.any()) for part in parts)


def test_a_block_as_wide_as_the_layer_and_many_small_ones_both_beat_magnitude() -> None:
    weight, _, hessian = layer()
    scheme = SparsityScheme(ratio=0.6)
    errors = [output_error(weight, sparsegpt(weight, hessian, scheme, block=block), hessian) for block in (1, 8, 40)]
    assert max(errors) < output_error(weight, by_magnitude(weight, scheme), hessian)


def test_updates_between_blocks_are_the_same_as_within_one() -> None:
    weight, _, hessian = layer()
    scheme = SparsityScheme(ratio=0.5, pattern="2:4")
    assert torch.allclose(sparsegpt(weight, hessian, scheme, block=4), sparsegpt(weight, hessian, scheme, block=128), atol=1e-4)


def test_groups_are_pruned_by_their_own_hessians() -> None:
    weight, _, first = layer(out=8, columns=18)
    _, _, second = layer(out=8, columns=18, seed=1)
    scheme = SparsityScheme(ratio=0.5, pattern="1:2")
    both = sparsegpt(weight, torch.stack([first, second]), scheme)
    apart = torch.cat([sparsegpt(weight[:4], first, scheme), sparsegpt(weight[4:], second, scheme)])
    assert torch.equal(both, apart)


def test_groups_share_one_exact_count() -> None:
    weight, _, hessian = layer(out=9, columns=3)
    pruned = sparsegpt(weight.reshape(9, 1, 3), hessian.expand(9, 3, 3), SparsityScheme(ratio=0.4))
    assert pruned.shape == (9, 1, 3)
    assert int((pruned == 0).sum()) == removed_count(0.4, 27)


def test_inputs_that_were_always_zero_lose_their_weights_first() -> None:
    weight, x, _ = layer()
    x[:, ::2] = 0
    pruned = sparsegpt(weight, x.T @ x, SparsityScheme(ratio=0.5))
    assert bool((pruned[:, ::2] == 0).all())
    assert torch.equal(pruned[:, 1::2], weight[:, 1::2])


def test_a_layer_that_saw_nothing_is_pruned_by_magnitude() -> None:
    weight, _, _ = layer()
    scheme = SparsityScheme(ratio=0.5)
    assert torch.equal(sparsegpt(weight, torch.zeros(40, 40), scheme), by_magnitude(weight, scheme))


def test_a_hessian_of_another_layer_is_refused() -> None:
    with pytest.raises(PlanError, match=r"must be \[40, 40\] for every group of outputs of a weight \[24, 40\], got \[39, 39\]"):
        sparsegpt(layer()[0], torch.eye(39), SparsityScheme(ratio=0.5))


def test_wanda_compares_within_an_output() -> None:
    weight = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]])
    scheme = SparsityScheme(ratio=0.5)
    assert wanda_mask(weight, torch.ones(4), scheme).int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert wanda_mask(weight, torch.tensor([9.0, 1, 1, 1]), scheme).int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]


def test_wanda_of_n_to_m_is_the_pattern_of_its_scores() -> None:
    weight, _, hessian = layer()
    norm, scheme = hessian.diagonal().sqrt(), SparsityScheme(ratio=0.5, pattern="2:4")
    assert torch.equal(wanda_mask(weight, norm, scheme), keep_mask(wanda(weight=weight, input_norm=norm), scheme))


def test_least_squares_is_the_best_weight_for_its_mask() -> None:
    weight, x, hessian = layer(out=5, columns=12)
    pruned = sparsegpt(weight, hessian, SparsityScheme(ratio=0.5))
    keep = pruned != 0
    best = least_squares(weight, hessian, keep)
    assert bool((best[~keep] == 0).all())
    for row in range(5):
        solution = torch.linalg.lstsq(x[:, keep[row]].double(), (x @ weight[row]).double()[:, None]).solution[:, 0]
        assert torch.allclose(best[row, keep[row]].double(), solution, atol=1e-4)
    error = output_error(weight, best, hessian)
    assert error <= output_error(weight, pruned, hessian) <= output_error(weight, weight * keep, hessian)


def test_least_squares_changes_nothing_where_all_or_nothing_stays() -> None:
    weight, _, hessian = layer(out=3, columns=6)
    assert torch.allclose(least_squares(weight, hessian, torch.ones(3, 6, dtype=torch.bool)), weight)
    assert not bool(least_squares(weight, hessian, torch.zeros(3, 6, dtype=torch.bool)).any())


def test_one_weight_that_goes_is_made_up_for_by_the_columns_to_its_right() -> None:
    weight, _, hessian = layer(out=1, columns=8)
    pruned = sparsegpt(weight, hessian, SparsityScheme(ratio=0.1), damping=1e-9)
    # With what is left of column j fixed, removing its weight costs w²/[H_F⁻¹]ⱼⱼ, F being j and the columns after it.
    costs = [float(weight[0, j] ** 2 / torch.linalg.inv(hessian[j:, j:].double())[0, 0]) for j in range(8)]
    j = int((pruned == 0).flatten().int().argmax())
    assert costs[j] == min(costs)
    assert torch.equal(pruned[:, :j], weight[:, :j])
    assert output_error(weight, pruned, hessian) == pytest.approx(costs[j], rel=1e-3)


def test_removing_one_weight_costs_what_the_optimal_brain_surgeon_says() -> None:
    weight, _, hessian = layer(out=1, columns=8)
    inverse = torch.linalg.inv(hessian.double())
    for j in range(8):
        keep = torch.arange(8)[None] != j
        cost = output_error(weight.double(), least_squares(weight.double(), hessian, keep), hessian)
        assert cost == pytest.approx(float(weight[0, j] ** 2 / inverse[j, j]), rel=1e-4)
