"""Rows on disk, read a few at a time.

Arrays are mapped into memory from raw files, so memory use does not depend on the number of rows, and a `Dataset` is only
addresses: it can be pickled and sent to another process of the same machine.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.sources import NUMBERS, StoredArray, find_arrays
from tuner.errors import DataError
from tuner.job import DataRef

BLOCK_BYTES = 1 << 24
"""About how much of a dataset is in memory while it is streamed."""

Indices = NDArray[np.int64]
Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class InputInfo:
    """What the model expects of one input. `shape` starts with the batch; None is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Some rows of one file. Indices count from 0 within the dataset; `index` holds the rows of the file behind them."""

    file: Path
    inputs: tuple[InputInfo, ...]
    arrays: Mapping[str, StoredArray]
    target: StoredArray | None
    index: range | Indices

    def __len__(self) -> int:
        return len(self.index)

    @property
    def rows(self) -> tuple[int, int]:
        """The rows of the file within which this dataset lies, half-open."""
        return (int(min(self.index)), int(max(self.index)) + 1) if len(self) else (0, 0)

    @property
    def has_labels(self) -> bool:
        return self.target is not None

    def absolute(self, indices: Indices) -> Indices:
        """The rows of the file behind `indices`. IndexError outside 0..len-1: a negative index would leave the split unseen."""
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, got {indices.min()}..{indices.max()}")
        return indices + self.index.start if isinstance(self.index, range) else self.index[indices]

    def subset(self, indices: Indices) -> Dataset:
        """The rows at `indices`, in that order."""
        return replace(self, index=self.absolute(np.asarray(indices, np.int64)))

    def batch(self, indices: Indices) -> Batch:
        """The model's inputs for some rows, in the model's dtypes."""
        rows = self.absolute(indices)
        return {info.name: _cells(self.arrays[info.name], np.dtype(info.dtype), rows) for info in self.inputs}

    def labels(self, indices: Indices) -> NDArray[Any] | None:
        """The labels of some rows as int64 or float64; None where the file has none."""
        return None if self.target is None else _cells(self.target, _label_dtype(self.target.dtype), self.absolute(indices))

    def blocks(self, size: int) -> Iterator[Batch]:
        """All rows in order, `size` at a time."""
        return (self.batch(indices) for indices in self.spans(size))

    def spans(self, size: int) -> Iterator[Indices]:
        """The indices of `blocks`."""
        return (np.arange(first, min(first + size, len(self))) for first in range(0, len(self), size))

    def digest(self) -> str:
        """SHA-256 over inputs and labels of these rows: the same for the same values, whatever file they came from."""
        sha = hashlib.sha256()
        for name, dtype, stored in self._columns():
            sha.update(repr((name, dtype.str, len(self), stored.shape[1:])).encode())
            for indices in self.spans(_block_rows([stored])):
                sha.update(_cells(stored, dtype, self.absolute(indices)).data)
        return sha.hexdigest()

    def row_digests(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each row over all inputs in the model's dtypes, shape [len]. Equal rows have equal hashes."""
        hashes = bytearray()
        for batch in self.blocks(_block_rows(list(self.arrays.values()))):
            arrays = [array.reshape(len(array), -1) for array in batch.values()]
            for row in range(len(arrays[0])):
                hashes += hashlib.blake2b(b"".join(array[row].data for array in arrays), digest_size=8).digest()
        return np.frombuffer(bytes(hashes), np.uint64)

    def _columns(self) -> Iterator[tuple[str, np.dtype[Any], StoredArray]]:
        for info in self.inputs:
            yield f"input {info.name}", np.dtype(info.dtype), self.arrays[info.name]
        if self.target is not None:
            yield "labels", _label_dtype(self.target.dtype), self.target


def open_dataset(ref: DataRef, inputs: Sequence[InputInfo], cache: Path) -> Dataset:
    """The rows that `ref` names, checked against what the model expects as far as headers tell.

    cache: folder for what has to be unpacked; shared by all processes, safe to delete between jobs.
    Raises DataError for anything missing, damaged or unfit, StorageError where the cache cannot be written."""
    path = Path(ref.file)
    sources = find_arrays(path, cache)
    arrays: dict[str, StoredArray] = {}
    for info in inputs:
        _require(path, info.name, sources, f"for the model's input '{info.name}'")
        arrays[info.name] = _fit(path, info, sources[info.name]())
    if ref.target != "labels":
        _require(path, ref.target, sources, "for the labels (the job's 'target')")
    target = sources[ref.target]() if ref.target in sources else None
    if target is not None and not np.can_cast(target.dtype, _label_dtype(target.dtype), "safe"):
        raise DataError(f"labels '{ref.target}' in {path.name} are {target.dtype}, which int64 cannot hold. Save them as int64.")
    length = _common_length(path, arrays | ({ref.target: target} if target else {}))
    first, end = ref.rows or (0, length)
    if end > length:
        raise DataError(f"rows [{first}, {end}) lie outside {path.name}, which has {length} rows. Use an end of at most {length}.")
    return Dataset(path, tuple(inputs), arrays, target, range(first, end))


def check_dataset(dataset: Dataset, role: str) -> None:
    """Read every row once. DataError for a split without rows and for values that are NaN or infinite."""
    if not len(dataset):
        raise DataError(f"{role} is empty; give it at least one row")
    for name, dtype, stored in dataset._columns():
        bad = _broken_rows(dataset, stored) if dtype.kind == "f" else []
        if bad:
            count = f"{len(bad)} rows" if len(bad) > 1 else "1 row"
            raise DataError(
                f"{role}: {name} must be finite, got NaN or infinite values in {count} of {dataset.file.name}, first in row {bad[0]}. "
                "Repair or leave out such rows."
            )


def check_labels(dataset: Dataset, classes: int) -> None:
    """Read every label once. DataError unless each is one whole number in 0..classes-1."""
    if dataset.target is None:
        return
    shape, name = dataset.target.shape, dataset.file.name
    if len(shape) != 1:
        raise DataError(
            f"labels in {name} must be one class number per row, shape [{shape[0]}], got {list(shape)}. "
            "Use argmax over the classes of one-hot labels, or drop a last dimension of 1."
        )
    for indices in dataset.spans(BLOCK_BYTES // 8):
        labels = np.asarray(dataset.labels(indices))
        bad = np.flatnonzero(~((labels >= 0) & (labels < classes) & (labels == np.floor(labels))))
        if bad.size:
            row = dataset.absolute(indices[bad[:1]])[0]
            raise DataError(
                f"label {labels[bad[0]]} in row {row} of {name} must be a whole number in 0..{classes - 1}, the model's classes. "
                "Number the classes from 0, or leave the row out."
            )


def label_range(dataset: Dataset) -> tuple[int, int, int] | None:
    """The lowest and the highest label and how many different ones there are; None without labels, or where one is no whole number."""
    found: NDArray[Any] | None = None
    for indices in dataset.spans(BLOCK_BYTES // 8):
        labels = dataset.labels(indices)
        if labels is None or (labels != np.floor(labels)).any():
            return None
        found = np.unique(labels) if found is None else np.union1d(found, labels)
    return None if found is None else (int(found[0]), int(found[-1]), len(found))


def _cells(stored: StoredArray, dtype: np.dtype[Any], rows: Indices) -> NDArray[Any]:
    return np.ascontiguousarray(stored.values[rows], dtype)


def _label_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype.kind == "f" else np.int64)


def _block_rows(arrays: list[StoredArray]) -> int:
    """Rows of all `arrays` that fill about BLOCK_BYTES, counting 8 bytes for every number."""
    return max(1, BLOCK_BYTES // (8 * sum(math.prod(array.shape[1:]) for array in arrays)))


def _broken_rows(dataset: Dataset, stored: StoredArray) -> list[int]:
    broken: list[int] = []
    for indices in dataset.spans(_block_rows([stored])):
        rows = dataset.absolute(indices)
        finite = np.isfinite(stored.values[rows]).reshape(len(rows), -1).all(axis=1)
        broken += rows[~finite].tolist()
    return broken


def _require(path: Path, name: str, sources: Mapping[str, Any], purpose: str) -> None:
    if name in sources:
        return
    near = difflib.get_close_matches(name, sources, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise DataError(f"{path.name} has no array '{name}' {purpose}.{hint} It holds: {', '.join(sorted(sources)) or 'nothing'}.")


def _fit(path: Path, info: InputInfo, stored: StoredArray) -> StoredArray:
    """`stored` as the model's input. DataError where shape or dtype do not fit."""
    wanted, row = info.shape[1:], stored.shape[1:]
    if path.suffix == ".parquet" and None not in wanted and len(row) == 1 and row[0] == math.prod(d for d in wanted if d):
        # Parquet has no arrays of several dimensions: a flat list is taken to hold the row in C order.
        row = tuple(d for d in wanted if d is not None)
        stored = replace(stored, shape=(stored.shape[0], *row))
    if len(row) != len(wanted) or any(want not in (None, got) for want, got in zip(wanted, row, strict=True)):
        expected = ", ".join("any" if d is None else str(d) for d in wanted)
        turned = sorted(row) == sorted(d or 0 for d in wanted)
        remedy = "The sizes are there in another order: transpose before saving." if turned else "Save the rows in that shape."
        raise DataError(f"input '{info.name}' expects rows of shape [{expected}], got {list(row)} in {path.name}. {remedy}")
    dtype = np.dtype(info.dtype)
    if dtype.kind not in NUMBERS or not np.can_cast(stored.dtype, dtype, "safe"):
        raise DataError(
            f"input '{info.name}' takes {dtype}, got {stored.dtype} in {path.name}, which does not convert without loss. "
            f"Save the array as {dtype} (array.astype('{dtype}'))."
        )
    return stored


def _common_length(path: Path, arrays: Mapping[str, StoredArray]) -> int:
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"'{name}' has {length}" for name, length in lengths.items())
        raise DataError(f"the arrays in {path.name} must have the same number of rows, got: {listed}. Save one entry per row in each.")
    return next(iter(lengths.values()))
