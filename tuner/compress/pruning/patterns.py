"""Where zeros may stand: masks from scores, with an exact count for every pattern.

Scores have the canonical layout [out, in, *kernel]; patterns look at them as the matrix [out, in·kernel]. Small scores are removed; of
equal scores the later one goes first, so that the same scores always give the same mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.schemes import SparsityScheme
from tuner.errors import PlanError


def removed_count(ratio: float, size: int) -> int:
    """How many of `size` things the ratio removes: ⌈ratio·size⌉, but never all of them."""
    # Rounding first: 0.1 · 30 is 3.0000000000000004 in binary.
    return min(math.ceil(round(ratio * size, 6)), size - 1)


def keep_mask(scores: Tensor, scheme: SparsityScheme, *, by_row: bool = False) -> Tensor:
    """True where a weight stays; same shape as `scores`, [out, in, *kernel].

    `any`: exactly ⌈ratio·n⌉ of the n weights go. `N:M`: of every M in a row along the inputs of an output the N highest stay; a
    last group that M does not fill keeps its min(N, its size) highest. `AxB`: of the blocks, those at the edges included as they are,
    ⌈ratio·blocks⌉ with the least sum of scores go.
    by_row, for `any`: weights are compared within an output only, and every output loses its share."""
    if not bool(torch.isfinite(scores).all()):
        raise PlanError(
            "scores must be finite numbers to be compared, got NaN or infinity. Look at the weights and gradients they come from."
        )
    flat = scores.flatten(1) if scores.ndim > 1 else scores[None]
    if scheme.kept is not None:
        keep = keep_of_groups(flat, *scheme.kept)
    elif scheme.block != (1, 1):
        rows, columns = (math.ceil(size / block) for size, block in zip(flat.shape, scheme.block, strict=True))
        keep = keep_blocks(flat, scheme.block, removed_count(scheme.ratio, rows * columns))
    elif by_row:
        keep = keep_by_row(flat, removed_count(scheme.ratio, flat.numel()))
    else:
        keep = keep_highest(flat, flat.numel() - removed_count(scheme.ratio, flat.numel()))
    return keep.reshape(scores.shape)


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` highest of all scores; of equal ones the first are taken."""
    order = scores.flatten().sort(descending=True, stable=True).indices
    keep = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[order[:count]] = True
    return keep.reshape(scores.shape)


def keep_of_groups(scores: Tensor, kept: int, of: int) -> Tensor:
    """N:M: True at the `kept` highest of every `of` neighbours along the columns of [rows, columns]."""
    rows, columns = scores.shape
    padded = functional.pad(scores, (0, -columns % of), value=-math.inf)
    rank = _rank(padded.reshape(rows, -1, of))
    return (rank < kept).reshape(rows, -1)[:, :columns]


def keep_blocks(scores: Tensor, block: tuple[int, int], removed: int) -> Tensor:
    """False in the `removed` blocks of [rows, columns] that have the least sum of scores."""
    rows, columns = scores.shape
    a, b = block
    padded = functional.pad(scores, (0, -columns % b, 0, -rows % a))
    sums = padded.reshape(padded.shape[0] // a, a, padded.shape[1] // b, b).sum(dim=(1, 3))
    keep = keep_highest(sums, sums.numel() - removed)
    return keep.repeat_interleave(a, 0).repeat_interleave(b, 1)[:rows, :columns]


def keep_by_row(scores: Tensor, removed: int) -> Tensor:
    """False at the lowest scores of every row, `removed` in all: rows lose equally many, or one more where the next score is least."""
    rows, columns = scores.shape
    every, more = divmod(removed, rows)
    from_below = columns - 1 - _rank(scores)
    keep = from_below >= every
    if more:
        following = scores.masked_fill(from_below != every, math.inf).min(dim=1).values
        extra = following.sort(stable=True).indices[:more]
        keep[extra] &= from_below[extra] != every
    return keep


def _rank(scores: Tensor) -> Tensor:
    """Place of every score along the last axis, 0 for the highest; of equal ones the first comes first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
