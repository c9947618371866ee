"""Operators that reduce, sort or add up along axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tuner.model.torch_table import Numbers, axis_of, ints, operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def reduction(name: str) -> Callable[[Reduction], Reduction]:
    """Decorator: the function reduces (x, axes, keep the reduced axes as size 1) as the ONNX operator `name` does."""

    def enter(function: Reduction) -> Reduction:
        def reduced(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
            chosen = [] if axes is None else ints(axes)
            if not chosen and noop_with_empty_axes:
                return x
            return function(x, [axis_of(axis, x.ndim) for axis in chosen] or list(range(x.ndim)), bool(keepdims))

        reduced.__name__ = function.__name__
        operator(name, host=(1,))(reduced)
        return function

    return enter


@reduction("ReduceSum")
def reduce_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype) if axes else x


@reduction("ReduceMean")
def reduce_mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keep) if axes else x
    sums = reduce_sum(x, axes, keep)
    return torch.div(sums, max(1, x.numel() // max(1, sums.numel())), rounding_mode="trunc")


@reduction("ReduceMax")
def reduce_max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amax(axes, keep)


@reduction("ReduceMin")
def reduce_min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amin(axes, keep)


@reduction("ReduceProd")
def reduce_product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


@reduction("ReduceL1")
def reduce_l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return reduce_sum(x.abs(), axes, keep)


@reduction("ReduceL2")
def reduce_l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keep) if axes else x.abs()


@reduction("ReduceSumSquare")
def reduce_sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return reduce_sum(x * x, axes, keep)


@reduction("ReduceLogSum")
def reduce_log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return reduce_sum(x, axes, keep).log()


@reduction("ReduceLogSumExp")
def reduce_log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep) if axes else x


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmax(axis, bool(keepdims))
    return x.argmax(axis, bool(keepdims))


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmin(axis, bool(keepdims))
    return x.argmin(axis, bool(keepdims))


@operator("TopK", host=(1,), many=True)
def top_k(x: Tensor, k: Numbers, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Of equal numbers the first comes first, which torch.topk does not promise."""
    values, indices = torch.sort(x, stable=True, dim=axis, descending=bool(largest))
    count = ints(k)[0]
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@operator("CumSum", host=(1,))
def cumulative_sum(x: Tensor, axis: Numbers, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = ints(axis)[0]
    turned = x.flip(along) if reverse else x
    sums = turned.cumsum(along, dtype=x.dtype)
    sums = sums - turned if exclusive else sums
    return sums.flip(along) if reverse else sums
