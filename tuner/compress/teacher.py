"""What the original says about the training rows, computed once and kept on disk for every trial."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.data.dataset import Dataset, Indices
from tuner.errors import ModelError, writing

Array = NDArray[Any]
Teacher = Callable[[Mapping[str, Array]], Mapping[str, Any]]
"""The inputs of some rows -> {tensor name: array or tensor}: outputs and, where they are asked for, tensors inside the network."""

BLOCK_ROWS = 256
RUN_ROWS = 64
OPEN_BLOCKS = 200
"""Blocks that are mapped at once: every map holds a file open."""


class TeacherOutputs:
    """The teacher's tensors for rows of `data` in a fixed order, read by their position in it.

    With a folder, rows are computed in whole blocks of that order and kept in one file for each block and tensor, so that what a row
    gets depends neither on the batch it is in nor on what was computed before. A file is there whole or not at all; one that cannot
    be read is made again. The folder belongs to one teacher and one dataset; `order_key` tells orders apart.

    fixed: the batch that the teacher takes, where it takes only one."""

    def __init__(
        self,
        teacher: Teacher,
        data: Dataset,
        order: Indices,
        names: Sequence[str] = (),
        *,
        folder: Path | None = None,
        order_key: str = "0",
        fixed: int | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.between = between
        self._teacher, self._data, self._order, self._names = teacher, data, order, tuple(names)
        self._folder, self._key, self._fixed = folder, order_key, fixed
        self._run_rows = fixed or RUN_ROWS
        self._block_rows = self._run_rows * max(1, BLOCK_ROWS // self._run_rows)
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._block = lru_cache(maxsize=OPEN_BLOCKS)(self._open)

    def keep(self, rows: int, limit: int) -> list[str]:
        """Choose how `rows` rows are kept within `limit` bytes: in float32, float16 or not at all. Returns notes about it."""
        if self._folder is None or not self._names:
            return []
        size = 4 * rows * self._row_values()
        if size <= limit:
            return []
        if size // 2 <= limit:
            self._dtype = np.dtype(np.float16)
            return ["what the original says was kept in float16, which takes half the room of float32"]
        self._folder = None
        return [f"the original ran anew for each batch: what it says of {rows} rows takes {size / 2e6:.3g} MB, over {limit / 1e6:.3g} MB"]

    def only(self, names: Sequence[str]) -> None:
        """Forget all tensors but `names`."""
        self._names = tuple(names)
        self._block.cache_clear()

    def rows(self, positions: Indices) -> dict[str, Tensor]:
        """The tensors of the rows at `positions`, [len(positions), …] in float32."""
        if self._folder is None:
            return {name: torch.from_numpy(array) for name, array in self.compute(positions).items()}
        blocks = positions // self._block_rows
        found: dict[str, Array] = {}
        for block in np.unique(blocks):
            here = blocks == block
            for name, kept in self._block(int(block)).items():
                cells = found.setdefault(name, np.empty((len(positions), *kept.shape[1:]), np.float32))
                cells[here] = kept[positions[here] - block * self._block_rows]
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def compute(self, positions: Indices) -> dict[str, Array]:
        """Ask the teacher, some rows at a time; an incomplete last batch is filled up where the batch is fixed."""
        found: dict[str, list[Array]] = {name: [] for name in self._names}
        for first in range(0, len(positions), self._run_rows):
            self.between()
            part = positions[first : first + self._run_rows]
            padded = np.pad(part, (0, (self._fixed or len(part)) - len(part)), mode="edge")
            answer = self._teacher(self._data.batch(self._order[padded]))
            for name in self._names:
                found[name].append(_answer(answer, name)[: len(part)])
        return {name: np.concatenate(arrays) for name, arrays in found.items()}

    def _row_values(self) -> int:
        """How many numbers the tensors of one row have, from what is kept or else from the teacher."""
        rows = min(self._block_rows, len(self._order))
        types = (np.dtype(np.float32), np.dtype(np.float16))
        kept = [[_map(self._file(name, 0, dtype), rows, dtype) for dtype in types] for name in self._names]
        arrays = [next((array for array in found if array is not None), None) for found in kept]
        there = [array for array in arrays if array is not None]
        if len(there) < len(arrays):
            there = list(self.compute(np.arange(min(self._run_rows, rows))).values())
        return sum(math.prod(array.shape[1:]) for array in there)

    def _open(self, block: int) -> dict[str, Array]:
        """One block of every tensor, from disk or computed and written."""
        first = block * self._block_rows
        positions = np.arange(first, min(first + self._block_rows, len(self._order)))
        files = {name: self._file(name, block, self._dtype) for name in self._names}
        kept = {name: _map(file, len(positions), self._dtype) for name, file in files.items()}
        if any(array is None for array in kept.values()):
            for name, array in self.compute(positions).items():
                kept[name] = _write(files[name], self._narrow(array))
        return {name: array for name, array in kept.items() if array is not None}

    def _file(self, name: str, block: int, dtype: np.dtype[Any]) -> Path:
        assert self._folder is not None
        tensor = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self._folder / f"{self._key}-{len(self._order)}-{self._block_rows}" / f"{tensor}-{dtype.name}-{block}.npy"

    def _narrow(self, array: Array) -> Array:
        """In the type that is kept; a block with values beyond float16 stays as it is."""
        with np.errstate(over="ignore"):
            narrow = array.astype(self._dtype)
        return narrow if np.isfinite(narrow).all() else array


def _answer(answer: Mapping[str, Any], name: str) -> Array:
    if name not in answer:
        raise ModelError(f"the teacher gives no tensor '{name}'; it gives {', '.join(sorted(answer)) or 'none'}. Name one of these.")
    value = answer[name]
    array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
    return np.asarray(array, np.float32)


def _map(file: Path, rows: int, dtype: np.dtype[Any]) -> Array | None:
    """A kept block; None where it is missing, damaged or not what is wanted."""
    try:
        array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if len(array) == rows and array.dtype in (dtype, np.dtype(np.float32)) else None


def _write(file: Path, array: Array) -> Array:
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with writing(file.name):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        mapped: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped
