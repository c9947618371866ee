"""Operators that ask for shapes and change them. Shapes are int64 tensors on the CPU, whatever device the numbers are on."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tuner.model.torch_table import Numbers, axis_of, floats, ints, operator


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(sizes: Numbers, *, value: tuple[list[Any], torch.dtype] = ([0.0], torch.float32)) -> Tensor:
    return torch.full(ints(sizes), value[0][0], dtype=value[1])


@operator("Range")
def number_range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


@operator("Reshape", host=(1,))
def reshape(x: Tensor, sizes: Numbers, *, allowzero: int = 0) -> Tensor:
    """A size of 0 keeps that axis's size, unless allowzero is set; -1 stands for what is left."""
    wanted = ints(sizes)
    return x.reshape(wanted if allowzero else [size or x.shape[axis] for axis, size in enumerate(wanted)])


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    front = axis_of(axis, x.ndim)
    return x.reshape(prod(x.shape[:front]), prod(x.shape[front:]))


@operator("Squeeze", host=(1,))
def squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


@operator("Unsqueeze", host=(1,))
def unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    wanted = ints(axes)
    rank = x.ndim + len(wanted)
    for axis in sorted(axis_of(axis, rank) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(range(x.ndim - 1, -1, -1)) if perm is None else tuple(perm))


@operator("Expand", host=(1,))
def expand(x: Tensor, sizes: Numbers) -> Tensor:
    wanted = ints(sizes)
    own = (1,) * (len(wanted) - x.ndim) + tuple(x.shape)
    front = own[: len(own) - len(wanted)]
    return x.expand(*front, *(size if want == 1 else want for size, want in zip(own[len(front) :], wanted, strict=True)))


@operator("Tile", host=(1,))
def tile(x: Tensor, repeats: Numbers) -> Tensor:
    return x.repeat(ints(repeats))


@operator("Concat")
def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


@operator("Split", host=(1,), many=True)
def split(x: Tensor, split: Numbers | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int) -> tuple[Tensor, ...]:
    """Without sizes: equal parts, of which the last may be smaller."""
    if split is not None:
        return torch.split(x, ints(split), axis)
    count = num_outputs or outputs
    part = -(-x.shape[axis] // count)
    return torch.split(x, [min(part, max(0, x.shape[axis] - part * index)) for index in range(count)], axis)


@operator("Slice", host=(1, 2, 3, 4))
def slices(x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None) -> Tensor:
    first, last = ints(starts), ints(ends)
    along = list(range(len(first))) if axes is None else ints(axes)
    stride = [1] * len(first) if steps is None else ints(steps)
    cuts = [slice(None)] * x.ndim
    turned = []
    for axis, begin, end, step in zip(along, first, last, stride, strict=True):
        taken = range(*slice(begin, end, step).indices(x.shape[axis]))
        if step < 0:
            # torch takes only positive steps: the same places from the other end, turned round below.
            turned.append(axis)
            taken = taken[::-1]
        cuts[axis] = slice(taken.start, max(taken.stop, taken.start), taken.step)
    part = x[tuple(cuts)]
    return part.flip(turned) if turned else part


@operator("Pad", host=(1, 2, 3))
def pad(x: Tensor, pads: Numbers, constant_value: Numbers | None = None, axes: Numbers | None = None, *, mode: str = "constant") -> Tensor:
    """pads: how much before each axis, then how much after each; a negative number cuts."""
    amounts = ints(pads)
    along = list(range(x.ndim)) if axes is None else [axis_of(axis, x.ndim) for axis in ints(axes)]
    before, after = amounts[: len(along)], amounts[len(along) :]
    if mode != "constant":
        return _pad_from_inside(x, along, before, after, mode)
    wide = [0] * (2 * x.ndim)
    for axis, low, high in zip(along, before, after, strict=True):
        # torch counts axes from the last.
        wide[2 * (x.ndim - 1 - axis)], wide[2 * (x.ndim - 1 - axis) + 1] = low, high
    return F.pad(x, wide, value=0 if constant_value is None else floats(constant_value)[0])


def _pad_from_inside(x: Tensor, axes: Sequence[int], before: Sequence[int], after: Sequence[int], mode: str) -> Tensor:
    """Pad with the tensor's own numbers: its edge, its reflection, or itself again (wrap)."""
    for axis, low, high in zip(axes, before, after, strict=True):
        count = x.shape[axis]
        if not low and not high:
            continue
        places = torch.arange(-low, count + high, device=x.device)
        x = x.index_select(axis, _inside(places, count, mode))
    return x


def _inside(places: Tensor, count: int, mode: str) -> Tensor:
    """Which of `count` numbers stands at each place of the line that they are continued to."""
    if mode == "edge":
        return places.clamp(0, count - 1)
    if mode == "wrap":
        return places.remainder(count)
    period = max(1, 2 * (count - 1))
    places = places.remainder(period)
    return torch.where(places < count, places, period - places)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """[n, c, h, w] to [n, c/b², h·b, w·b]; channels hold (row, column, depth), or (depth, row, column) in mode CRD."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        parts = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, depth, h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """[n, c, h, w] to [n, c·b², h/b, w/b]; channels hold (row, column, depth)."""
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
