"""Pooling. x has the shape [n, c, *size]; windows slide over `size`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from tuner.model.torch_padding import Window, pad_last, resolved, window_of
from tuner.model.torch_table import operator

MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@operator("MaxPool", only={"storage_order": (0,)})
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,  # noqa: ARG001 - it concerns the second output alone
    strides: Sequence[int] | None = None,
) -> Tensor:
    window = resolved(window_of(kernel_shape, strides, dilations, pads, auto_pad), x.shape[2:])
    pool = MAX_POOLS[len(window.kernel)]
    if _torch_pads(window):
        return pool(x, window.kernel, window.stride, window.begin, window.dilation, bool(ceil_mode))
    padded = pad_last(x, *_full_padding(window, x.shape[2:], ceil_mode), value=-torch.inf)
    return pool(padded, window.kernel, window.stride, 0, window.dilation)


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """count_include_pad: the padding's zeros count as numbers, but not what ceil_mode reaches beyond it."""
    window = resolved(window_of(kernel_shape, strides, dilations, pads, auto_pad), x.shape[2:])
    if _torch_pads(window) and not ceil_mode and set(window.dilation) == {1}:
        pool = AVERAGE_POOLS[len(window.kernel)]
        return pool(x, window.kernel, window.stride, window.begin, False, bool(count_include_pad))
    return _sums(x, window, ceil_mode) / _counts(x, window, ceil_mode, count_include_pad)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    window = resolved(window_of(kernel_shape, strides, dilations, pads, auto_pad), x.shape[2:])
    powers = _sums(x.abs() ** p, window, ceil_mode)
    # A root has no finite slope at 0: below the smallest number the slope is 0.
    return powers.clamp_min(torch.finfo(x.dtype).tiny) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, p, list(range(2, x.ndim)), keepdim=True)
    return norm


def _torch_pads(window: Window) -> bool:
    """Can torch's pools pad like this themselves? The same at both ends, and at most half a window."""
    return window.symmetric and all(2 * pad <= span for pad, span in zip(window.begin, window.spans, strict=True))


def _places(window: Window, sizes: Sequence[int], ceil_mode: int) -> list[int]:
    """How many windows each axis has; with ceil_mode a last one may reach beyond the padding, but must not start in it."""
    counts = []
    for size, begin, end, step, span in zip(sizes, window.begin, window.end, window.stride, window.spans, strict=True):
        room = size + begin + end - span
        count = (-(-room // step) if ceil_mode else room // step) + 1
        counts.append(count - 1 if ceil_mode and (count - 1) * step >= size + begin else count)
    return counts


def _full_padding(window: Window, sizes: Sequence[int], ceil_mode: int) -> tuple[list[int], list[int]]:
    """What to pad before and after so that exactly the windows fit."""
    counts = _places(window, sizes, ceil_mode)
    lengths = [(count - 1) * step + span for count, step, span in zip(counts, window.stride, window.spans, strict=True)]
    return list(window.begin), [length - size - begin for length, size, begin in zip(lengths, sizes, window.begin, strict=True)]


def _sums(x: Tensor, window: Window, ceil_mode: int) -> Tensor:
    """The sum of each window."""
    padded = pad_last(x, *_full_padding(window, x.shape[2:], ceil_mode))
    rank = len(window.kernel)
    if set(window.dilation) == {1}:
        return AVERAGE_POOLS[rank](padded, window.kernel, window.stride) * prod(window.kernel)
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype, device=x.device)
    planes = padded.reshape(-1, 1, *padded.shape[2:])
    summed = CONVOLUTIONS[rank](planes, ones, None, window.stride, 0, window.dilation)
    return summed.reshape(*x.shape[:2], *summed.shape[2:])


def _counts(x: Tensor, window: Window, ceil_mode: int, with_padding: int) -> Tensor:
    """How many numbers each window holds; shape [*places]."""
    sizes = x.shape[2:]
    counts = torch.ones((), dtype=x.dtype, device=x.device)
    for axis, places in enumerate(_places(window, sizes, ceil_mode)):
        before, size, after = window.begin[axis], sizes[axis], window.end[axis]
        low, high = (0, before + size + after) if with_padding else (before, before + size)
        firsts = torch.arange(places, device=x.device).unsqueeze(1) * window.stride[axis]
        taps = firsts + torch.arange(window.kernel[axis], device=x.device) * window.dilation[axis]
        held = ((taps >= low) & (taps < high)).sum(1)
        counts = counts.unsqueeze(-1) * held
    return counts
