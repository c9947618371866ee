from __future__ import annotations

import math

import pytest
import torch

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.patterns import keep_mask, removed_count
from tuner.errors import PlanError


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("ratio", "size", "removed"), [(0.1, 30, 3), (0.3, 10, 3), (0.25, 10, 3), (0.999, 10, 9), (0.9, 1, 0), (1 / 3, 3, 1)]
)
def test_a_ratio_rounds_up_and_never_takes_everything(ratio: float, size: int, removed: int) -> None:
    assert removed_count(ratio, size) == removed


@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 3, 3), (7, 1, 3), (1, 9)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_any_removes_exactly_the_lowest(shape: tuple[int, ...], ratio: float) -> None:
    values = scores(*shape)
    keep = keep_mask(values, SparsityScheme(ratio=ratio))
    assert keep.shape == values.shape
    assert int((~keep).sum()) == min(math.ceil(round(ratio * values.numel(), 9)), values.numel() - 1)
    assert values[~keep].max() < values[keep].min()


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.6, 0.95])
def test_by_row_gives_every_output_its_share(ratio: float) -> None:
    values = scores(7, 11)
    keep = keep_mask(values, SparsityScheme(ratio=ratio), by_row=True)
    lost = (~keep).sum(dim=1)
    assert int(lost.sum()) == math.ceil(ratio * 77)
    assert int(lost.max() - lost.min()) <= 1
    for row, kept in zip(values, keep, strict=True):
        assert not bool(kept.any()) or bool(kept.all()) or row[~kept].max() < row[kept].min()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5)])
@pytest.mark.parametrize("shape", [(6, 40), (4, 8, 5)])
def test_of_every_m_exactly_n_stay(n: int, m: int, shape: tuple[int, ...]) -> None:
    values = scores(*shape)
    keep = keep_mask(values, SparsityScheme(ratio=1 - n / m, pattern=f"{n}:{m}"))
    groups, kept = values.reshape(-1, m), keep.reshape(-1, m)
    assert bool((kept.sum(dim=1) == n).all())
    assert torch.equal(groups[kept].reshape(-1, n).sort(dim=1).values, groups.topk(n, dim=1).values.flip(1))


@pytest.mark.parametrize("columns", [9, 10, 11])
def test_a_last_group_that_is_not_full_keeps_its_highest(columns: int) -> None:
    keep = keep_mask(scores(5, columns), SparsityScheme(ratio=0.5, pattern="2:4"))
    assert bool((keep[:, 8:].sum(dim=1) == min(2, columns - 8)).all())


def test_blocks_go_by_the_sum_of_their_scores() -> None:
    values = torch.tensor([[9.0, 0, 1, 1, 3], [0, 0, 1, 1, 0], [2, 2, 0, 0, 8]])
    keep = keep_mask(values, SparsityScheme(ratio=0.5, pattern="2x2"))
    # Sums: 9 4 3 over 4 0 8; the lowest three of the six blocks are 0, 3 and, of two that are equal, the later 4.
    assert keep.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize(("block", "shape"), [("4x1", (10, 7)), ("1x4", (6, 10)), ("4x4", (9, 3, 3, 3)), ("8x2", (5, 5))])
def test_blocks_stay_or_go_as_a_whole(block: str, shape: tuple[int, ...]) -> None:
    keep = keep_mask(scores(*shape), SparsityScheme(ratio=0.4, pattern=block)).flatten(1)
    a, b = map(int, block.split("x"))
    parts = [part for band in keep.split(a) for part in band.split(b, dim=1)]
    assert all(bool(part.all()) or not bool(part.any()) for part in parts)
    assert sum(not bool(part.any()) for part in parts) == removed_count(0.4, len(parts))


@pytest.mark.parametrize(
    "scheme", [SparsityScheme(ratio=0.5), SparsityScheme(ratio=0.5, pattern="2:4"), SparsityScheme(ratio=0.5, pattern="1x2")]
)
def test_of_equal_scores_the_first_stay(scheme: SparsityScheme) -> None:
    keep = keep_mask(torch.ones(1, 4), scheme)
    assert keep.tolist() == [[True, True, False, False]]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(PlanError, match=r"finite numbers to be compared, got NaN or infinity"):
        keep_mask(torch.tensor([[1.0, math.nan]]), SparsityScheme(ratio=0.5))
