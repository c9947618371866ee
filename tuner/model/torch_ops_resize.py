"""Resizing and sampling of images. Every axis is resized apart: each new place is a weighted sum of a few old ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tuner.model.torch_table import Numbers, axis_of, floats, ints, operator

Floats = NDArray[np.floating[Any]]
REACH = {"nearest": 0, "linear": 1, "cubic": 2}
"""How many old places on each side of a new one count."""
NEAREST = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class Line:
    """How one axis is resized: `size` old places to `new`, `scale` as the graph gives it, the part [start, end] with a crop."""

    size: int
    new: int
    scale: float
    start: float
    end: float


@dataclass(frozen=True)
class Way:
    """The attributes of Resize that every axis shares."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude: bool
    antialias: bool


@operator("Resize", host=(1, 2, 3), only={"mode": REACH, "nearest_mode": NEAREST})
def resize(
    x: Tensor,
    roi: Numbers | None = None,
    scales: Numbers | None = None,
    sizes: Numbers | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """x: any rank. `scales`, `sizes` and `roi` speak of `axes` (all without them)."""
    along = list(range(x.ndim)) if axes is None else [axis_of(axis, x.ndim) for axis in axes]
    old = [x.shape[axis] for axis in along]
    factors = floats(scales) if scales is not None else []
    if not factors:
        assert sizes is not None, "the rules of ONNX want one of them"
        wanted, factors = _stretched(old, ints(sizes), keep_aspect_ratio_policy)
    else:
        wanted = [int(np.float32(size) * np.float32(factor)) for size, factor in zip(old, factors, strict=True)]
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    part = floats(roi) if crops and roi is not None else [0.0] * len(along) + [1.0] * len(along)
    way = Way(mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias))
    for index, axis in enumerate(along):
        line = Line(old[index], wanted[index], factors[index], part[index], part[index + len(along)])
        if line.size != line.new or line.scale != 1 or (line.start, line.end) != (0, 1):
            x = _resized(x, axis, line, way, extrapolation_value)
    return x


def _stretched(old: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[float]]:
    """The new sizes and the factors that they mean; the same factor for all axes where the aspect ratio is kept."""
    factors = [float(np.float32(new) / np.float32(size)) for new, size in zip(sizes, old, strict=True)]
    if policy == "stretch":
        return sizes, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [int(np.floor(factor * size + 0.5)) for size in old], [factor] * len(old)


def _resized(x: Tensor, axis: int, line: Line, way: Way, outside: float) -> Tensor:
    places, weights, off = _taps(line, way)
    shape = [-1] + [1] * (x.ndim - 1 - axis)
    taps = torch.from_numpy(places).to(x.device)
    if way.mode == "nearest":
        result = x.index_select(axis, taps[0])
    else:
        shares = torch.from_numpy(weights).to(x.device, x.dtype)
        result = torch.stack([x.index_select(axis, tap) * share.reshape(shape) for tap, share in zip(taps, shares, strict=True)]).sum(0)
    return torch.where(torch.from_numpy(off).to(x.device).reshape(shape), outside, result) if off.any() else result


@lru_cache(maxsize=512)
def _taps(line: Line, way: Way) -> tuple[NDArray[np.int64], Floats, NDArray[np.bool_]]:
    """Old places [taps, new], their shares [taps, new], and which new places lie outside the tensor [new]."""
    centres = _coordinates(line, way.coordinates)
    off: NDArray[np.bool_] = (
        (centres < 0) | (centres > line.size - 1) if way.coordinates == "tf_crop_and_resize" else np.zeros(line.new, np.bool_)
    )
    if way.mode == "nearest":
        chosen = np.clip(NEAREST[way.nearest](centres), 0, line.size - 1).astype(np.int64)  # type: ignore[operator]
        return chosen[None], np.ones((1, line.new)), off
    width = max(1.0, 1 / line.scale) if way.antialias else 1.0
    count = 2 * int(np.ceil(REACH[way.mode] * width))
    first = np.floor(centres - REACH[way.mode] * width) + 1
    places = first + np.arange(count)[:, None]
    weights = _kernel((places - centres) / width, way)
    if way.exclude:
        weights = np.where((places >= 0) & (places < line.size), weights, 0)
    if way.exclude or way.antialias:
        weights = weights / weights.sum(0)
    return np.clip(places, 0, line.size - 1).astype(np.int64), weights, off


def _coordinates(line: Line, mode: str) -> Floats:
    """Where each new place lies among the old ones; in float32, whose rounding decides between neighbours as in onnxruntime."""
    x, scale, half = np.arange(line.new, dtype=np.float32), np.float32(line.scale), np.float32(0.5)
    last = np.float32(line.size - 1)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * last / np.float32(line.new - 1) if line.new > 1 else np.zeros_like(x)
    if mode == "pytorch_half_pixel" and line.new <= 1:
        return np.zeros_like(x)
    if mode == "tf_crop_and_resize":
        start, end = np.float32(line.start), np.float32(line.end)
        if line.new <= 1:
            return np.full_like(x, half * (start + end) * last)
        return start * last + x * (end - start) * last / np.float32(line.new - 1)
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(line.new) / (scale * np.float32(line.size))
        centre = np.float32(line.size) / 2
        return centre * (1 - adjustment) + (x + half) / scale - half
    return (x + half) / scale - half


def _kernel(distance: Floats, way: Way) -> Floats:
    """The share of an old place by its distance; cubic: Keys, 1981, "Cubic convolution interpolation", equation 4."""
    s = np.abs(distance)
    if way.mode == "linear":
        hat: Floats = np.maximum(0, 1 - s)
        return hat
    a = way.cubic
    near: Floats = ((a + 2) * s - (a + 3)) * s * s + 1
    far: Floats = ((a * s - 5 * a) * s + 8 * a) * s - 4 * a
    shares: Floats = np.where(s <= 1, near, np.where(s < 2, far, 0))
    return shares


SAMPLING = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}


@operator("GridSample", only={"mode": SAMPLING})
def grid_sample(x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Tensor:
    return F.grid_sample(x, grid, SAMPLING[mode], padding_mode, bool(align_corners))
