"""Data files that must be refused, and such as only a job shows to be wrong."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tiny_jobs import dense, dense_data

ROWS = 300
GOOD = np.arange(6, dtype=np.float32).reshape(3, 2)

Arrays = dict[str, NDArray[Any]]


def npz(arrays: Arrays, *, packed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def rows(change: Callable[[Arrays], object] = lambda _: None, seed: int = 1, *, packed: bool = False) -> bytes:
    """Data for the network `dense`, perhaps with something changed."""
    arrays = dense_data(dense(), ROWS, seed)
    change(arrays)
    return npz(arrays, packed=packed)


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def rows_with_a_null() -> bytes:
    """Parquet whose labels lack one, which the file's statistics do not tell."""
    arrays = dense_data(dense(), ROWS)
    labels = [None if row == 250 else int(label) for row, label in enumerate(arrays["labels"])]
    return parquet({"x": list(arrays["x"]), "labels": labels}, write_statistics=False)


def npy(array: NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def archive(*members: tuple[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as file:
        for name, content in members:
            file.writestr(name, content)
    return stream.getvalue()


def directory_says(size: int) -> bytes:
    """An archive whose directory lies about what its one member unpacks to."""
    data = bytearray(archive(("x.npy", npy(GOOD))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = size.to_bytes(4, "little")
    return bytes(data)


def bomb() -> bytes:
    """A quarter of a megabyte that unpacks to 256 MB of zeros."""
    return archive(("x.npy", npy(np.zeros((64, 10**6), np.float32))))


def header_says(shape: tuple[int, ...]) -> bytes:
    """An array of 24 bytes whose header declares another shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return archive(("x.npy", stream.getvalue() + bytes(24)))


def encrypted() -> bytes:
    data = bytearray(archive(("x.npy", npy(GOOD))))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


class Explosive:
    """Would end whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exit, (13,)


def objects() -> bytes:
    return npz({"x": np.array([[Explosive()]], object)})


def damaged() -> bytes:
    return rows()[:-40]


def corrupt() -> bytes:
    """A deflated archive whose directory and heads are whole and whose content is not."""
    data = bytearray(npz(dense_data(dense(), 3000), packed=True))
    data[150_000:150_300] = bytes(300)
    return bytes(data)


def doubled() -> bytes:
    """Two members of one name: readers differ in which they take."""
    data = archive(("x.npy", npy(GOOD)), ("y.npy", npy(GOOD)))
    return data.replace(b"y.npy", b"x.npy")
