"""Splitting weights into smaller ones: the numbers alone, as pure functions over arrays.

A product's weight is [out, in], a convolution's [out, in, height, width]. `METHODS` names the functions; a function's parameters
after `weight` and `rank` name the evidence that it needs. It returns the factors in the order in which data meets them, in
float64. Singular vectors have a fixed sign, so that the same weight gives the same factors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tuner.registry import Registry

Array = NDArray[np.float64]
Shape = tuple[int, ...]
Ranks = tuple[int, ...]
Split = Callable[..., tuple[Array, ...]]

RELATIVE_FLOOR = 1e-10
"""Directions that no data showed count this much of the mean direction: enough to keep them as they are at full rank."""
SWEEPS = 25
LEAST_GAIN = 1e-7
"""HOOI stops after this many sweeps, or when one gains less than this share of the weight's squares."""


@dataclass(frozen=True)
class Form:
    """Which layers a method splits, and into what.

    axes: for each factor of a convolution, whether it carries the kernel's height and its width (with stride, dilation and pads)."""

    wants: str
    fits: Callable[[Shape], bool]
    full: Callable[[Shape], Ranks]
    """The greatest ranks; with them nothing is lost."""
    channels: Callable[[Shape, Ranks], tuple[tuple[int, int], ...]]
    """(out, in) of every factor."""
    axes: tuple[tuple[bool, bool], ...] = ()

    def shapes(self, weight: Shape, ranks: Ranks) -> tuple[Shape, ...]:
        """The shapes of the factors."""
        pairs = self.channels(weight, ranks)
        if not self.axes:
            return pairs
        height, width = weight[2:]
        return tuple((*pair, height if h else 1, width if w else 1) for pair, (h, w) in zip(pairs, self.axes, strict=True))

    def places(self, before: tuple[int, int], after: tuple[int, int]) -> tuple[int, ...]:
        """Output positions of every factor of a convolution whose input measures `before` and whose output `after`."""
        done = accumulate(self.axes, lambda a, b: (a[0] or b[0], a[1] or b[1]))
        return tuple((after if h else before)[0] * (after if w else before)[1] for h, w in done)


PRODUCT = Form("Gemm and MatMul", lambda w: len(w) == 2, lambda w: (min(w),), lambda w, r: ((r[0], w[1]), (w[0], r[0])))
ROWS_THEN_COLUMNS = Form(
    "convolutions whose kernel has more than one row and column",
    lambda w: len(w) == 4 and min(w[2:]) > 1,
    lambda w: (min(w[1] * w[2], w[0] * w[3]),),
    lambda w, r: ((r[0], w[1]), (w[0], r[0])),
    ((True, False), (False, True)),
)
KERNEL_THEN_POINTS = Form(
    "convolutions",
    lambda w: len(w) == 4,
    lambda w: (min(w[0], w[1] * w[2] * w[3]),),
    lambda w, r: ((r[0], w[1]), (w[0], r[0])),
    ((True, True), (False, False)),
)
POINTS_KERNEL_POINTS = Form(
    "convolutions whose kernel is larger than 1×1",
    lambda w: len(w) == 4 and max(w[2:]) > 1,
    lambda w: (min(w[1], w[0] * w[2] * w[3]), min(w[0], w[1] * w[2] * w[3])),
    lambda w, r: ((r[0], w[1]), (r[1], r[0]), (w[0], r[1])),
    ((False, False), (True, True), (False, False)),
)


@dataclass(frozen=True)
class Method:
    """A way to split a weight. unfold: the matrices, one per rank, whose singular values say what a rank keeps."""

    form: Form
    split: Split
    unfold: Split
    evidence: tuple[str, ...]


METHODS: Registry[Method] = Registry("decomposition")


def decomposition(name: str, form: Form, unfold: Split) -> Callable[[Split], Split]:
    """Decorator that enters a function (weight, rank, evidence …) → factors under `name`."""

    def enter(split: Split) -> Split:
        evidence = tuple(inspect.signature(split).parameters)[2:]
        METHODS.register(name)(Method(form, split, unfold, evidence))
        return split

    return enter


def itself(weight: Array) -> tuple[Array]:
    return (weight,)


@decomposition("svd", PRODUCT, itself)
def svd(weight: Array, rank: int) -> tuple[Array, Array]:
    """The nearest product of [rank, in] and [out, rank] (Eckart and Young, 1936, "The approximation of one matrix by another of
    lower rank"). Each factor takes the square roots of the singular values, so that both have the same range."""
    left, values, right = _singular(weight)
    roots = np.sqrt(values[:rank])
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def whitened(weight: Array, hessian: Array) -> tuple[Array]:
    """W·S with S·Sᵀ = hessian: the Frobenius norm of a difference of such matrices is that of the outputs' difference."""
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    return (weight @ (vectors * np.sqrt(_floored(values))),)


@decomposition("svd-llm", PRODUCT, whitened)
def activation_aware_svd(weight: Array, rank: int, hessian: Array) -> tuple[Array, Array]:
    """The product of two factors with the least squared error of the layer's output on the calibration data.

    hessian: [in, in] second moment of the input, Σ x·xᵀ up to a factor. This is the truncation-aware data whitening of SVD-LLM
    (Wang et al., 2024, arXiv:2403.07378, section 3.1) with the eigenvectors' root for Cholesky's, which also serves singular matrices;
    it is not the scaling by channel magnitudes of ASVD (Yuan et al., 2023, arXiv:2312.05821)."""
    return _projected(weight, whitened(weight, hessian)[0], rank)


def fisher_weighted(weight: Array, grad_squared: Array) -> tuple[Array]:
    """Columns times the root of the Fisher information of their input."""
    return (weight * np.sqrt(_floored(grad_squared.sum(axis=0))),)


@decomposition("fwsvd", PRODUCT, fisher_weighted)
def fisher_weighted_svd(weight: Array, rank: int, grad_squared: Array) -> tuple[Array, Array]:
    """The product of two factors nearest to the weight where every weight of an input counts as much as the loss depends on them.

    grad_squared: [out, in] mean squared gradients. FWSVD (Hsu et al., 2022, arXiv:2207.00112): the information of a row
    is summed, and the paper's rows (Z = X·W) are inputs."""
    return _projected(weight, fisher_weighted(weight, grad_squared)[0], rank)


def rows_by_columns(weight: Array) -> tuple[Array]:
    """[out·width, in·height]."""
    out, inputs, height, width = weight.shape
    return (weight.transpose(0, 3, 1, 2).reshape(out * width, inputs * height),)


@decomposition("spatial-svd", ROWS_THEN_COLUMNS, rows_by_columns)
def spatial_svd(weight: Array, rank: int) -> tuple[Array, Array]:
    """[rank, in, height, 1] then [out, rank, 1, width]: the second scheme of Jaderberg et al. (2014, arXiv:1405.3866, section 2)
    in the closed form of Tai et al. (2016, arXiv:1511.06067, theorem 1)."""
    out, inputs, height, width = weight.shape
    first, second = svd(rows_by_columns(weight)[0], rank)
    return first.reshape(rank, inputs, height, 1), second.reshape(out, width, rank).transpose(0, 2, 1)[:, :, None, :]


def outputs(weight: Array) -> tuple[Array]:
    """[out, in·height·width]."""
    return (weight.reshape(len(weight), -1),)


@decomposition("channel-svd", KERNEL_THEN_POINTS, outputs)
def channel_svd(weight: Array, rank: int) -> tuple[Array, Array]:
    """[rank, in, height, width] then [out, rank, 1, 1]: the two layers of Zhang et al. (2016, arXiv:1505.06798, section 3.1), by the
    weight's own singular values and not by those of responses."""
    first, second = svd(outputs(weight)[0], rank)
    return first.reshape(rank, *weight.shape[1:]), second[:, :, None, None]


def both_channels(weight: Array) -> tuple[Array, Array]:
    """[in, out·height·width] and [out, in·height·width]."""
    return _unfolded(weight, 1), _unfolded(weight, 0)


@decomposition("tucker2", POINTS_KERNEL_POINTS, both_channels)
def tucker2(weight: Array, rank: tuple[int, int]) -> tuple[Array, Array, Array]:
    """[r0, in, 1, 1], [r1, r0, height, width], [out, r1, 1, 1]: Tucker-2 of Kim et al. (2016, arXiv:1511.06530, section 3), started
    by HOSVD and improved by HOOI sweeps (De Lathauwer et al., 2000, "On the best rank-1 and rank-(R1, …, RN) approximation of
    higher-order tensors", algorithm 4.2)."""
    inner, outer = hosvd(weight, rank)
    kept, total = _squares(tucker_core(weight, inner, outer)), _squares(weight)
    for _ in range(SWEEPS):
        inner, outer = hooi_sweep(weight, inner, outer)
        before, kept = kept, _squares(tucker_core(weight, inner, outer))
        if kept - before <= LEAST_GAIN * total:
            break
    return inner.T[:, :, None, None], tucker_core(weight, inner, outer), outer[:, :, None, None]


def hosvd(weight: Array, rank: tuple[int, int]) -> tuple[Array, Array]:
    """[in, r0] and [out, r1], the leading singular vectors of the two unfoldings (De Lathauwer et al., 2000, "A multilinear singular
    value decomposition")."""
    by_input, by_output = both_channels(weight)
    return _leading(by_input, rank[0]), _leading(by_output, rank[1])


def hooi_sweep(weight: Array, inner: Array, outer: Array) -> tuple[Array, Array]:
    """The best [in, r0] for `outer` [out, r1], then the best [out, r1] for that: neither step can worsen the fit."""
    inner = _leading(_unfolded(np.einsum("oihw,or->rihw", weight, outer), 1), inner.shape[1])
    return inner, _leading(_unfolded(np.einsum("oihw,ir->orhw", weight, inner), 0), outer.shape[1])


def tucker_core(weight: Array, inner: Array, outer: Array) -> Array:
    """[r1, r0, height, width], the weight seen in both bases."""
    return np.asarray(np.einsum("oihw,ir,os->srhw", weight, inner, outer, optimize=True))


def smallest_rank(matrix: Array, energy: float) -> int:
    """The least number of singular values whose squares sum to the share `energy` of all squares."""
    kept = np.cumsum(np.square(np.linalg.svd(matrix, compute_uv=False)))
    return min(int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-12))) + 1, len(kept))


def _projected(weight: Array, scaled: Array, rank: int) -> tuple[Array, Array]:
    """U·Uᵀ·W with U the leading left singular vectors of W·S. That is the truncated W·S times S⁻¹, without an inverse."""
    basis = _singular(scaled)[0][:, :rank]
    first, second = svd(basis.T @ weight, rank)
    return first, basis @ second


def _singular(matrix: Array) -> tuple[Array, Array, Array]:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    signs = _signs(left)
    return left * signs, values, right * signs[:, None]


def _leading(matrix: Array, count: int) -> Array:
    """[rows, count] leading left singular vectors; by the squared matrix, which has as many as it has rows."""
    vectors = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :count]
    return np.asarray(vectors * _signs(vectors))


def _signs(vectors: Array) -> Array:
    """What makes the entry of the largest magnitude of every column positive."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)[0]
    return np.where(largest < 0, -1.0, 1.0)


def _floored(values: Array) -> Array:
    """No less than a tiny share of their mean; ones where all are zero."""
    mean = float(np.maximum(values, 0).mean())
    return np.maximum(values, 0) + mean * RELATIVE_FLOOR if mean > 0 else np.ones_like(values)


def _unfolded(weight: Array, axis: int) -> Array:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _squares(values: Array) -> float:
    return float(np.square(values).sum())
