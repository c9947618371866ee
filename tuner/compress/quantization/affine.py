"""Affine quantization: real = scale * (stored - zero_point), rounded half to even as ONNX QuantizeLinear does.

Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2.1 (arXiv:1712.05877): r = S (q - Z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuner.errors import ModelError, unknown_name

STORAGE: dict[str, type[np.integer[Any]]] = {"u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16}
"""The numpy type that stores each quantized type."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def integer_limits(dtype: str, symmetric: bool = False) -> tuple[int, int]:
    """The integers (qmin, qmax) that a range is spread over; a symmetric signed type leaves its lowest value unused."""
    if dtype not in STORAGE:
        raise ValueError(unknown_name("quantized type", dtype, STORAGE))
    info = np.iinfo(STORAGE[dtype])
    return (-info.max if symmetric and info.min < 0 else info.min), info.max


def choose_scale(low: ArrayLike, high: ArrayLike, dtype: str, symmetric: bool) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scale S and zero point Z covering [low, high], each widened to contain 0.

    low, high: any one shape, e.g. () or [groups], low <= high. Returns S (float32) and Z (the storage type) of that shape.
    A range too narrow for a normal float32 scale gets S = 1. ModelError where a range is not finite or is reversed."""
    floor, ceiling = np.asarray(low, np.float64), np.asarray(high, np.float64)
    _check_range(floor, ceiling)
    floor, ceiling = np.minimum(floor, 0.0), np.maximum(ceiling, 0.0)
    if symmetric:
        ceiling = np.maximum(-floor, ceiling)
        floor = -ceiling
    qmin, qmax = integer_limits(dtype, symmetric)
    scale = (ceiling - floor) / (qmax - qmin)
    degenerate = scale < SMALLEST_SCALE
    scale = np.where(degenerate, 1.0, scale)
    # Symmetric: independent of the range, because runtimes want one zero point for all channels.
    zero_point = np.full(scale.shape, np.rint((qmin + qmax) / 2)) if symmetric else np.rint(qmin - floor / scale)
    if not symmetric:
        zero_point = np.where(degenerate, 0.0, zero_point)
    return scale.astype(np.float32), zero_point.astype(STORAGE[dtype])


def _check_range(low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    bad = ~(np.isfinite(low) & np.isfinite(high) & (low <= high) & (np.maximum(-low, high) <= np.finfo(np.float32).max))
    if not bad.any():
        return
    where = np.unravel_index(int(np.argmax(bad)), bad.shape)
    pair = (float(np.broadcast_to(low, bad.shape)[where]), float(np.broadcast_to(high, bad.shape)[where]))
    raise ModelError(
        f"a range to quantize must be finite in float32 with low <= high, got [{pair[0]}, {pair[1]}]. "
        "Look for NaN or infinity in the weights and in the calibration data."
    )


def quantize(
    values: NDArray[np.floating[Any]], scale: ArrayLike, zero_point: ArrayLike, dtype: str, axis: int | None = None
) -> NDArray[Any]:
    """clip(round(values / S) + Z) in the storage type, the whole of its range, as the runtime does.

    scale, zero_point: one number, or [values.shape[axis]] where `axis` is given."""
    qmin, qmax = integer_limits(dtype)
    ratio = np.asarray(values, np.float32) / _along(np.asarray(scale, np.float32), values.ndim, axis)
    stored = np.rint(ratio, out=ratio)
    stored += _along(np.asarray(zero_point, np.float32), values.ndim, axis)
    clipped: NDArray[Any] = np.clip(stored, qmin, qmax, out=stored).astype(STORAGE[dtype])
    return clipped


def dequantize(stored: NDArray[Any], scale: ArrayLike, zero_point: ArrayLike, axis: int | None = None) -> NDArray[np.float32]:
    """S (stored - Z) in float32. scale, zero_point: one number, or [stored.shape[axis]] where `axis` is given."""
    shifted = stored.astype(np.float32) - _along(np.asarray(zero_point, np.float32), stored.ndim, axis)
    return np.asarray(shifted * _along(np.asarray(scale, np.float32), stored.ndim, axis), np.float32)


def weight_scale(
    weight: NDArray[np.floating[Any]], axis: int | None, dtype: str, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scale and zero point from the exact extremes of a weight: shape () for axis None, else [weight.shape[axis]]."""
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    low, high = weight.min(axis=others, initial=0.0), weight.max(axis=others, initial=0.0)
    return choose_scale(low, high, dtype, symmetric)


def _along(parameter: NDArray[np.float32], ndim: int, axis: int | None) -> NDArray[np.float32]:
    """The parameter shaped so that it broadcasts along `axis` of an array of `ndim` dimensions."""
    if axis is None:
        return parameter.reshape(())
    shape = [1] * ndim
    shape[axis] = -1
    return parameter.reshape(shape)
