"""Layers whose weights no module can hold as they are: computed values, shared in another layout, or shapes that torch's modules lack."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from tuner.model.torch_padding import pad_last, resolved, window_of
from tuner.model.torch_table import axis_of, operator

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv")
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """x [n, c, *size], weight [out, c/group, *kernel]."""
    rank = weight.ndim - 2
    window = window_of(kernel_shape or weight.shape[2:], strides, dilations, pads, auto_pad)
    told = resolved(window, x.shape[2:])
    padded = pad_last(x, told.begin, told.end)
    return CONVOLUTIONS[rank](padded, weight, bias, told.stride, 0, told.dilation, group)


@operator("ConvTranspose")
def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """x [n, c, *size], weight [c, out/group, *kernel]: the full result, cut (or widened by zeros) at both ends, then the bias."""
    rank = weight.ndim - 2
    window = window_of(kernel_shape or weight.shape[2:], strides, dilations, pads, "NOTSET")
    extra = tuple(output_padding or [0] * rank)
    full = TRANSPOSED[rank](x, weight, None, window.stride, 0, 0, group, window.dilation)
    wanted = list(output_shape)[-rank:] if output_shape else None
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = [size * step for size, step in zip(x.shape[2:], window.stride, strict=True)]
    if wanted is None:
        begin, end = (list(window.begin), list(window.end)) if auto_pad == "NOTSET" else ([0] * rank, [0] * rank)
    else:
        begin, end = _cuts([size + more for size, more in zip(full.shape[2:], extra, strict=True)], wanted, auto_pad)
    cut = pad_last(full, [-low for low in begin], [more - high for high, more in zip(end, extra, strict=True)])
    return cut if bias is None else cut + bias.reshape([-1] + [1] * rank)


def _cuts(sizes: Sequence[int], wanted: Sequence[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """What to cut before and after each axis to leave the wanted sizes; an odd place falls at the end for SAME_UPPER, else at the start."""
    totals = [size - want for size, want in zip(sizes, wanted, strict=True)]
    halves = [total // 2 for total in totals]
    rest = [total - half for total, half in zip(totals, halves, strict=True)]
    return (halves, rest) if auto_pad == "SAME_UPPER" else (rest, halves)


@operator("BatchNormalization", only={"training_mode": (0,)})
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # noqa: ARG001 - it concerns training alone, which a function does not do
    training_mode: int = 0,  # noqa: ARG001
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("LayerNormalization", many=True)
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the result, the mean and the reciprocal deviation."""
    del stash_type
    axes = list(range(axis_of(axis, x.ndim), x.ndim))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    reciprocal = torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    result = centred * reciprocal * scale
    return result if bias is None else result + bias, mean, reciprocal


@operator("RMSNormalization")
def rms_normalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """Zhang and Sennrich, 2019, arXiv:1910.07467, equation 4."""
    del stash_type
    axes = list(range(axis_of(axis, x.ndim), x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """x [n, c, *size], scale and bias [c]."""
    axes = list(range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    wide = [-1] + [1] * len(axes)
    return normal * scale.reshape(wide) + bias.reshape(wide)


@operator("GroupNormalization", since=21)
def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """x [n, c, *size], scale and bias [c] (Wu and He, 2018, arXiv:1803.08494)."""
    del stash_type
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("GroupNormalization", since=18)
def group_normalization_by_group(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """The first version of the operator: scale and bias [num_groups]."""
    each = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(list(axes), keepdim=True)
    return centred / (centred.square().mean(list(axes), keepdim=True).sqrt() + 1e-9)


@operator("LpNormalization", only={"p": (1, 2)})
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(x, p, axis, eps=torch.finfo(x.dtype).tiny)


@operator("LRN")
def local_response_normalization(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """x [n, c, *size]: the sum of squares runs over `size` channels around each (Krizhevsky et al., 2012, section 3.3)."""
    squares = x.square().reshape(x.shape[0], 1, x.shape[1], prod(x.shape[2:]))
    around = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    means = F.avg_pool2d(around, (size, 1), 1).reshape(x.shape)
    return x / (bias + alpha * means) ** beta


@operator("Dropout", host=(1, 2), many=True)
def dropout(x: Tensor, ratio: object = None, training_mode: object = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """As at inference: nothing is dropped. Returns the mask as well."""
    del ratio, training_mode, seed
    return x, torch.ones_like(x, dtype=torch.bool)
