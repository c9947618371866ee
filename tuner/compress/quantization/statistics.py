"""Streaming statistics of one tensor: collected once, they serve every quantized type, symmetry and calibration method.

Memory depends on neither rows nor batches. The histogram's limit is a power of two above the largest magnitude seen; when the
magnitude outgrows it, neighbouring bins are added two by two, which is exactly what binning the old values anew would give.
So counts do not depend on the order or the grouping of the rows, and partial statistics merge without loss.
"""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tuner.errors import DataError, ModelError, disk_error

BINS = 2048
"""Histogram bins on either side of zero, a power of two."""
_LOG2_BINS = BINS.bit_length() - 1

SMALLEST_EXPONENT = -100
"""2**-100 is the smallest limit; below it the bin index could not be computed in float32."""

_BLOCK = 1 << 16
"""Elements handled at a time, so that the scratch arrays stay in the processor's cache."""


class TensorStatistics:
    """Extremes, moments, signed histogram and, along `axis`, per-channel extremes of everything a tensor held.

    count, zeros: elements in all, and those exactly zero. Zeros are kept out of the histogram because every affine
    quantization represents them exactly. low, high: extremes (inf, -inf while empty). mean, m2: mean and sum of squared
    deviations. histogram: [2 * BINS], bin i holds x with floor(x * BINS / limit) = i - BINS. channel_low, channel_high:
    [channels] or None."""

    def __init__(self, name: str, axis: int | None = None) -> None:
        self.name = name
        self.axis = axis
        self.count = 0
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf
        self.mean = 0.0
        self.m2 = 0.0
        self.exponent = SMALLEST_EXPONENT
        self.histogram: NDArray[np.int64] = np.zeros(2 * BINS, np.int64)
        self.channel_low: NDArray[np.float32] | None = None
        self.channel_high: NDArray[np.float32] | None = None

    @property
    def limit(self) -> float:
        """The histogram spans (-limit, limit)."""
        return math.ldexp(1.0, self.exponent)

    @property
    def largest(self) -> float:
        """The largest magnitude seen, 0 while empty."""
        return max(-self.low, self.high, 0.0)

    @property
    def variance(self) -> float:
        """Population variance, 0 while empty."""
        return self.m2 / self.count if self.count else 0.0

    def edges(self) -> NDArray[np.float64]:
        """[2 * BINS + 1] bin edges, clipped to the extremes seen, so that mass at an extreme is not smeared beyond it."""
        edges = np.arange(-BINS, BINS + 1, dtype=np.float64) * (self.limit / BINS)
        return np.clip(edges, self.low, self.high) if self.count else edges

    def update(self, values: NDArray[np.floating[Any]], rows: tuple[int, int] | None = None) -> None:
        """Take in one batch. `rows` (first, last + 1) only serves the message of the ModelError for NaN or infinity."""
        values = np.asarray(values, np.float32)
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(self._not_finite(rows))
        self._update_channels(values)
        self._grow(_exponent_above(max(-low, high)))
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            self._update_block(flat[start : start + _BLOCK])

    def merge(self, other: TensorStatistics) -> None:
        """Take in what another instance collected for the same tensor: the same as its batches, except for rounding of the moments."""
        if self.axis != other.axis:
            axes = f"got {self.axis} and {other.axis}"
            raise ValueError(f"statistics to merge must have the same channel axis, {axes} for tensor '{self.name}'")
        self._merge_channels(other.channel_low, other.channel_high)
        self._grow(other.exponent)
        self.histogram += _coarsened(other.histogram, self.exponent - other.exponent)
        self.zeros += other.zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._merge_moments(other.count, other.mean, other.m2)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the name, as arrays that .npz stores without pickle."""
        channels = [] if self.channel_low is None or self.channel_high is None else [self.channel_low, self.channel_high]
        return {
            "integers": np.array([self.count, self.zeros, self.exponent], np.int64),
            "moments": np.array([self.low, self.high, self.mean, self.m2], np.float64),
            "histogram": self.histogram,
            "axis": np.array([] if self.axis is None else [self.axis], np.int64),
            "channels": np.array(channels, np.float32),
        }

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`. KeyError or ValueError where an array is missing or has another shape."""
        axis = arrays["axis"].tolist()
        statistics = cls(name, axis[0] if axis else None)
        statistics.count, statistics.zeros, statistics.exponent = arrays["integers"].tolist()
        statistics.low, statistics.high, statistics.mean, statistics.m2 = arrays["moments"].tolist()
        statistics.histogram = arrays["histogram"].astype(np.int64).reshape(2 * BINS)
        if arrays["channels"].size:
            statistics.channel_low, statistics.channel_high = arrays["channels"]
        return statistics

    def _not_finite(self, rows: tuple[int, int] | None) -> str:
        block = "the calibration rows" if rows is None else f"calibration rows {rows[0]} to {rows[1]}"
        return (
            f"the model's tensor '{self.name}' holds NaN or infinity for {block}; ranges need finite values. "
            "Leave those rows out (data.calibration.rows) or look for an overflow in the model before that tensor."
        )

    def _update_block(self, block: NDArray[np.float32]) -> None:
        """block: [n], already covered by the limit."""
        zeros = block.size - int(np.count_nonzero(block))
        scaled = block * np.float32(math.ldexp(1.0, _LOG2_BINS - self.exponent))
        # floor, not a shifted truncation: it commutes with halving, so that growing the limit stays exact.
        bins = np.floor(scaled, out=scaled).astype(np.int64)
        if self.exponent > _LOG2_BINS:  # Scaling down may underflow; a negative number must stay on its side of zero.
            bins[(bins == 0) & (block < 0)] = -1
        bins += BINS
        self.histogram += np.bincount(bins, minlength=2 * BINS)
        self.histogram[BINS] -= zeros
        self.zeros += zeros
        wide = block.astype(np.float64)
        mean = float(wide.mean())
        wide -= mean
        self._merge_moments(block.size, mean, float(np.square(wide, out=wide).sum()))

    def _merge_moments(self, count: int, mean: float, m2: float) -> None:
        """Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1."""
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean += delta * count / total
        self.m2 += m2 + delta * delta * self.count * count / total
        self.count = total

    def _update_channels(self, values: NDArray[np.float32]) -> None:
        if self.axis is None:
            return
        if not -values.ndim <= self.axis < values.ndim:
            raise ModelError(
                f"the channel axis of tensor '{self.name}' must lie within its {values.ndim} dimensions, got axis={self.axis}. "
                "Collect it without per-channel extremes."
            )
        others = tuple(i for i in range(values.ndim) if i != self.axis % values.ndim)
        self._merge_channels(values.min(axis=others), values.max(axis=others))

    def _merge_channels(self, low: NDArray[np.float32] | None, high: NDArray[np.float32] | None) -> None:
        if low is None or high is None:
            return
        if self.channel_low is None or self.channel_high is None:
            self.channel_low, self.channel_high = low.copy(), high.copy()
            return
        if low.shape != self.channel_low.shape:
            raise ModelError(
                f"tensor '{self.name}' must keep its number of channels along axis {self.axis}, "
                f"got {low.size} after {self.channel_low.size}. Collect it without per-channel extremes."
            )
        np.minimum(self.channel_low, low, out=self.channel_low)
        np.maximum(self.channel_high, high, out=self.channel_high)

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.histogram = _coarsened(self.histogram, exponent - self.exponent)
            self.exponent = exponent


def save(path: Path, statistics: Mapping[str, TensorStatistics]) -> None:
    """Write all statistics into one .npz; the file appears whole or not at all. StorageError where it cannot be written."""
    arrays = {"names": np.array(list(statistics), dtype=np.str_)}
    for index, entry in enumerate(statistics.values()):
        arrays.update({f"{index}/{field}": array for field, array in entry.to_arrays().items()})
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(error, "writing the calibration statistics") from error


def load(path: Path) -> dict[str, TensorStatistics]:
    """What `save` wrote. DataError where the file is damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _read(archive, index, name) for index, name in enumerate(archive["names"].tolist())}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        way_out = "Delete the file; they are collected again."
        raise DataError(f"the calibration statistics in '{path}' cannot be read: {error}. {way_out}") from error


def _read(archive: Mapping[str, NDArray[Any]], index: int, name: str) -> TensorStatistics:
    fields = ("integers", "moments", "histogram", "axis", "channels")
    return TensorStatistics.from_arrays(name, {field: archive[f"{index}/{field}"] for field in fields})


def _exponent_above(magnitude: float) -> int:
    """The smallest e >= SMALLEST_EXPONENT with 2**e > magnitude."""
    return max(math.frexp(magnitude)[1], SMALLEST_EXPONENT) if magnitude else SMALLEST_EXPONENT


def _coarsened(histogram: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The same counts over a limit 2**doublings times as large. histogram: [2 * BINS]."""
    # Once a side holds one bin, more doublings change nothing: floor(-1 / 2) = -1 and floor(0 / 2) = 0.
    factor = 1 << min(doublings, _LOG2_BINS)
    merged = histogram.reshape(-1, factor).sum(axis=1)
    coarse = np.zeros_like(histogram)
    coarse[BINS - merged.size // 2 : BINS + merged.size // 2] = merged
    return coarse
