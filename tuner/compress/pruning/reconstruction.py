"""One-shot pruning that repairs: what stays is changed so that a layer's output on the calibration rows changes least.

Weights have the canonical layout [out, in, *kernel]. A Hessian is the sum XᵀX over the inputs x that a weight's row meets, [d, d] with
d = in·kernel, or [groups, d, d] where the outputs fall into groups (grouped Conv). Its scale does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.criteria import wanda
from tuner.compress.pruning.patterns import keep_blocks, keep_mask, keep_of_groups, removed_count
from tuner.errors import PlanError

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (Frantar and Alistarh, 2023)."""
BLOCK = 128
"""Columns whose mask is chosen together, and after which the columns to their right are updated."""


def wanda_mask(weight: Tensor, input_norm: Tensor, scheme: SparsityScheme) -> Tensor:
    """True where a weight stays: |w|·‖x‖₂ compared within every output (Sun et al., 2024, arXiv:2306.11695, section 3)."""
    return keep_mask(wanda(weight=weight, input_norm=input_norm), scheme, by_row=True)


def sparsegpt(weight: Tensor, hessian: Tensor, scheme: SparsityScheme, *, damping: float = DAMPING, block: int = BLOCK) -> Tensor:
    """The pruned and repaired weight of SparseGPT (Frantar and Alistarh, 2023, arXiv:2301.00774, algorithm 1); same shape and dtype.

    From left to right, each block of columns chooses its mask by w²/[H⁻¹]ⱼⱼ of the updated weights, loses those weights, and the columns to
    the right make up for the error. With H = I nothing is made up for, and the mask is by magnitude. The number of zeros is that of
    `patterns.keep_mask`, in equal shares over the blocks of columns. PlanError where the Hessian does not fit the weight."""
    flat = weight.flatten(1).float().clone()
    hessians = _per_group(hessian, flat)
    parts = flat.reshape(len(hessians), -1, flat.shape[1])
    width = _strip_width(scheme, block, flat.shape[1])
    lazy = max(block // width, 1) * width
    for i, (part, h) in enumerate(zip(parts, hessians, strict=True)):
        choose = _chooser(scheme, (part.shape[0], part.shape[1]), i, len(hessians))
        _prune_rows(part, *_inverse_factor(h, damping), choose, width, lazy)
    return flat.reshape(weight.shape).to(weight.dtype)


def least_squares(weight: Tensor, hessian: Tensor, keep: Tensor, *, damping: float = 0.0) -> Tensor:
    """The weight whose output differs least from the layer's, of all that are zero where `keep` is False.

    The optimal brain surgeon's update for all removed weights at once (Hassibi and Stork, 1992), row by row: with S the kept columns,
    w_S + H_SS⁻¹·H_SR·w_R. It solves a system of |S| unknowns for every row, so it is meant for small layers."""
    flat, mask = weight.flatten(1).double(), keep.flatten(1)
    hessians = [_damped(h.double(), damping) for h in _per_group(hessian, flat)]
    rows = flat.shape[0] // len(hessians)
    result = torch.zeros_like(flat)
    for row in range(flat.shape[0]):
        h, kept = hessians[row // rows], mask[row]
        made_up = torch.linalg.lstsq(h[kept][:, kept], (h[kept][:, ~kept] @ flat[row, ~kept])[:, None]).solution[:, 0]
        result[row, kept] = flat[row, kept] + made_up
    return result.reshape(weight.shape).to(weight.dtype)


def output_error(weight: Tensor, changed: Tensor, hessian: Tensor) -> float:
    """Σ‖(w − ŵ)·X‖² over all outputs and calibration inputs, from the Hessian alone."""
    difference = (weight - changed).flatten(1).double()
    hessians = _per_group(hessian, difference)
    parts = difference.reshape(len(hessians), -1, difference.shape[1])
    return float(sum(((part @ h.double()) * part).sum() for part, h in zip(parts, hessians, strict=True)))


def _per_group(hessian: Tensor, flat: Tensor) -> Tensor:
    hessians = hessian if hessian.ndim == 3 else hessian[None]
    columns = flat.shape[1]
    if tuple(hessians.shape[1:]) != (columns, columns) or flat.shape[0] % len(hessians):
        raise PlanError(
            f"a Hessian must be [{columns}, {columns}] for every group of outputs of a weight {list(flat.shape)}, "
            f"got {list(hessian.shape)}. Collect it for this layer."
        )
    return hessians


def _strip_width(scheme: SparsityScheme, block: int, columns: int) -> int:
    """Columns whose mask is chosen at once: M of N:M; otherwise `block`, in whole blocks of the pattern."""
    if scheme.kept is not None:
        return scheme.kept[1]
    wide = scheme.block[1]
    return min(max(block // wide, 1) * wide, columns)


def _damped(hessian: Tensor, damping: float) -> Tensor:
    mean = hessian.diagonal().mean()
    # A layer that only ever saw zeros has no preference: magnitude decides.
    return hessian + torch.eye(len(hessian)).to(hessian) * (damping * mean if mean > 0 else 1.0)


def _inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(U, cost [d]): the upper Cholesky factor of H⁻¹ = UᵀU and 1/Uⱼⱼ², what removing a weight 1 of column j costs (section 3.3).

    Row j of U holds what removing column j asks of the columns to its right. A column that only ever met zeros costs nothing."""
    damped = _damped(hessian.double(), damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    seen = hessian.diagonal() > 0
    cost = factor.diagonal().square().reciprocal()
    return factor.float(), torch.where(seen | ~seen.any(), cost, 0.0).float()


def _prune_rows(w: Tensor, factor: Tensor, cost: Tensor, choose: Callable[[Tensor, int], Tensor], width: int, lazy: int) -> None:
    """Algorithm 1 for the outputs that share a Hessian; w [rows, columns] is changed in place."""
    rows, columns = w.shape
    for start in range(0, columns, lazy):
        end = min(start + lazy, columns)
        errors = torch.zeros(rows, end - start).to(w)
        for j in range(start, end):
            if (j - start) % width == 0:
                strip = slice(j, min(j + width, end))
                keep = choose(w[:, strip].square() * cost[strip], j)
            kept = keep[:, (j - start) % width]
            errors[:, j - start] = torch.where(kept, 0.0, w[:, j]) / factor[j, j]
            w[:, j + 1 : end] -= errors[:, j - start, None] * factor[j, j + 1 : end]
            w[:, j] = torch.where(kept, w[:, j], 0.0)
        w[:, end:] -= errors @ factor[start:end, end:]


def _chooser(scheme: SparsityScheme, shape: tuple[int, int], group: int, groups: int) -> Callable[[Tensor, int], Tensor]:
    """(scores of a strip of columns, its first column) -> mask, such that the zeros of all strips add up to the exact count.

    shape: of the outputs that share a Hessian, [rows, columns]; blocks do not reach over to the next group."""
    if scheme.kept is not None:
        kept, of = scheme.kept
        return lambda scores, _start: keep_of_groups(scores, kept, of)
    tall, wide = scheme.block
    down, across = math.ceil(shape[0] / tall), math.ceil(shape[1] / wide)
    all_removed = removed_count(scheme.ratio, groups * down * across)

    def removed(blocks: int) -> int:
        return min(math.ceil(round(scheme.ratio * blocks, 6)), all_removed)

    def choose(scores: Tensor, start: int) -> Tensor:
        first = down * (group * across + start // wide)
        count = down * math.ceil(scores.shape[1] / wide)
        return keep_blocks(scores, scheme.block, removed(first + count) - removed(first))

    return choose
