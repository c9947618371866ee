"""Rows given in memory or batch by batch, written to disk once as a folder of .npy files, because a job reads files only."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.sources import NUMBERS
from tuner.errors import DataError, writing

LABELS = "labels"
ACCEPTED = (
    "a path, a dict of arrays, a tuple (inputs, labels), an iterable of such dicts or tuples (a DataLoader, say), or a function without "
    "arguments that returns one"
)

Block = dict[str, NDArray[Any]]


def spool(data: object, folder: Path, names: Sequence[str], role: str) -> Path:
    """Write the rows of `data` under `folder`, one .npy file per array, and return the folder. Whatever was there is replaced.

    data: a dict of arrays; a tuple (inputs, labels); an array alone; an iterable of batches of these forms; or a function that
    returns one of all these. Batches are written as they come: no more than one is held in memory.
    names: the model's inputs, for arrays that come without a name. DataError for what cannot be read as rows."""
    with writing(f"the rows of {role}"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    _write(_blocks(data, names, role), folder, role)
    return folder


def _write(blocks: Iterable[Block], folder: Path, role: str) -> None:
    columns: dict[str, _Column] = {}
    try:
        for number, block in enumerate(blocks):
            where = f"{role}, batch {number}"
            if not columns:
                with writing(f"the rows of {role}"):
                    columns = {name: _Column(folder, name, array) for name, array in block.items()}
            if set(block) != set(columns):
                raise DataError(f"{where}: every batch must hold the same arrays, got {_listed(block)} after {_listed(columns)}")
            if len({len(array) for array in block.values()}) > 1:
                counts = ", ".join(f"'{name}' has {len(array)}" for name, array in block.items())
                raise DataError(f"{where}: inputs and labels must have the same number of rows, got: {counts}")
            with writing(f"the rows of {role}"):
                for name, array in block.items():
                    columns[name].append(array, where)
    finally:
        with writing(f"the rows of {role}"):
            for column in columns.values():
                column.close()
    if not columns:
        raise DataError(f"{role} gave no batches; give at least one, and an iterable that was not used up before")


class _Column:
    """One growing .npy file."""

    def __init__(self, folder: Path, name: str, first: NDArray[Any]) -> None:
        if "/" in name or name.startswith("."):
            raise DataError(f"array '{name}' cannot be kept in a file of that name; save the arrays with np.savez and give that path")
        self._name, self._row, self._dtype, self._rows = name, first.shape[1:], first.dtype, 0
        self._file: IO[bytes] = (folder / f"{name}.npy").open("w+b")
        self._head()

    def append(self, block: NDArray[Any], where: str) -> None:
        if block.shape[1:] != self._row:
            shapes = f"{list(block.shape[1:])} after {list(self._row)}"
            raise DataError(f"{where}: '{self._name}' must have rows of one shape, got {shapes}. Pad or resize the rows.")
        if not np.can_cast(block.dtype, self._dtype, "safe"):
            dtypes = f"{block.dtype} after {self._dtype}"
            raise DataError(f"{where}: '{self._name}' must keep its dtype, got {dtypes}. Convert all batches to one.")
        self._file.write(np.ascontiguousarray(block, self._dtype).data)
        self._rows += len(block)

    def close(self) -> None:
        self._file.seek(0)
        self._head()
        self._file.close()

    def _head(self) -> None:
        """numpy leaves room for the number of rows to grow, so that the header keeps its length."""
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _blocks(data: object, names: Sequence[str], role: str) -> Iterator[Block]:
    if callable(data) and not isinstance(data, Iterable):
        data = data()
    if isinstance(data, Mapping | tuple) or _is_array(data):
        yield _block(data, names, role)
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        for number, batch in enumerate(data):
            yield _block(batch, names, f"{role}, batch {number}")
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        raise DataError(f"{role} must come in batches, got a {type(data).__name__} of rows; wrap it in DataLoader(..., batch_size=256)")
    else:
        raise DataError(f"{role} must be {ACCEPTED}; got {type(data).__name__}")


def _block(batch: object, names: Sequence[str], where: str) -> Block:
    """One batch as arrays by name."""
    if isinstance(batch, Mapping):
        named = {str(name): value for name, value in batch.items()}
    elif _is_array(batch):
        named = _inputs([batch], names, where)
    elif isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        named = {**batch[0], LABELS: batch[1]}
    elif isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], tuple | list):
        named = _inputs(batch[0], names, where) | {LABELS: batch[1]}
    elif isinstance(batch, tuple | list):
        unlabelled = len(batch) <= len(names)
        named = _inputs(batch if unlabelled else batch[:-1], names, where) | ({} if unlabelled else {LABELS: batch[-1]})
    else:
        raise DataError(f"{where} must be a dict of arrays or a tuple (inputs, labels), got {type(batch).__name__}")
    return {name: _array(value, f"{where}: '{name}'") for name, value in named.items() if value is not None}


def _inputs(values: Sequence[object], names: Sequence[str], where: str) -> dict[str, object]:
    if len(values) != len(names):
        raise DataError(
            f"{where} must hold one array for each of the model's inputs ({', '.join(names)}) and may end with the labels, got "
            f"{len(values)} arrays before them. Give a dict from input name to array, with 'labels' for the labels."
        )
    return dict(zip(names, values, strict=True))


def _array(value: Any, what: str) -> NDArray[Any]:
    """An array, or a tensor on any device, as numbers with one row per entry."""
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu().numpy()
        except TypeError as error:
            raise DataError(f"{what} has a dtype unknown to numpy ({value.dtype}); convert it, with .float() for instance") from error
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{what} must be an array of numbers with rows of one shape, got {type(value).__name__}: {error}") from error
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{what} must be an array of numbers, got {type(value).__name__} of {array.dtype}")
    if array.ndim == 0:
        raise DataError(f"{what} must have one entry per row, got a single number; give batches (DataLoader(dataset, batch_size=256), say)")
    return array


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
