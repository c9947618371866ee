"""Operators that take from and put into tensors by index. Indices may count from the back."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tuner.model.torch_table import DTYPES, Numbers, axis_of, ints, operator

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def wrapped(indices: Tensor, count: int) -> Tensor:
    """Indices into `count` places, counted from the front."""
    return torch.where(indices < 0, indices + count, indices)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    along = axis_of(axis, x.ndim)
    taken = x.index_select(along, wrapped(indices, x.shape[along]).reshape(-1))
    return taken.reshape(x.shape[:along] + indices.shape + x.shape[along + 1 :])


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, wrapped(indices, x.shape[axis]).long())


@operator("ScatterElements", only={"reduction": ("none", *REDUCTIONS)})
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = wrapped(indices, x.shape[axis]).long()
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCTIONS[reduction])


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """indices [*batch, *places, depth]: each row of `depth` numbers names a part of x[*batch]."""
    depth, batch = indices.shape[-1], x.shape[:batch_dims]
    sizes, rest = x.shape[batch_dims : batch_dims + depth], x.shape[batch_dims + depth :]
    rows = prod(batch)
    lines = x.reshape(rows * prod(sizes), *rest)
    places = _line_numbers(indices, sizes).reshape(rows, -1)
    places = places + torch.arange(rows, device=x.device).unsqueeze(1) * prod(sizes)
    return lines.index_select(0, places.reshape(-1)).reshape(indices.shape[:-1] + rest)


@operator("ScatterND", only={"reduction": ("none", *REDUCTIONS)})
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """indices [*places, depth]: each row of `depth` numbers names the part of x that one update replaces or joins."""
    depth = indices.shape[-1]
    sizes, rest = x.shape[:depth], x.shape[depth:]
    lines, news = x.reshape(prod(sizes), prod(rest)), updates.reshape(-1, prod(rest))
    places = _line_numbers(indices, sizes).reshape(-1)
    if reduction == "none":
        return lines.index_put((places,), news).reshape(x.shape)
    wide = places.unsqueeze(1).expand(-1, lines.shape[1])
    return lines.scatter_reduce(0, wide, news, REDUCTIONS[reduction]).reshape(x.shape)


def _line_numbers(indices: Tensor, sizes: torch.Size) -> Tensor:
    """The position of each index row in a tensor of the given sizes, flattened; shape indices.shape[:-1]."""
    found = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis, count in enumerate(sizes):
        found = found * count + wrapped(indices[..., axis].long(), count)
    return found


@operator("OneHot", host=(1,))
def one_hot(indices: Tensor, depth: Numbers, values: Tensor, *, axis: int = -1) -> Tensor:
    """values: [off, on]. An index outside [-depth, depth) makes a line of offs."""
    count = ints(depth)[0]
    along = axis_of(axis, indices.ndim + 1)
    places = wrapped(indices.long(), count).unsqueeze(along)
    line = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.ndim - along))
    return torch.where(places == line, values[1], values[0])


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The places of `axis` (of the flattened tensor without one) whose condition is true; places beyond the condition are left out."""
    kept = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1).index_select(0, kept) if axis is None else x.index_select(axis, kept)


@operator("Trilu", host=(1,))
def triangle(x: Tensor, k: Numbers | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else ints(k)[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("EyeLike", only={"dtype": DTYPES})
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones(x.shape, dtype=x.dtype if dtype is None else DTYPES[dtype], device=x.device)
    return ones.tril(k).triu(k)
