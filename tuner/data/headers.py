"""What a data file says of its arrays, judged without unpacking it. For files from elsewhere: stricter than reading one's own."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from tuner.data.sources import arrow_values, member_header, reading, too_large
from tuner.errors import DataError, WrongKind
from tuner.kinds import kind_of, not_data

MAX_ARRAYS = 10_000
MAX_NAME = 1000

Format = Literal["npz", "parquet"]


@dataclass(frozen=True)
class ArrayHead:
    """One array as its file declares it; shape starts with the rows."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def data_format(path: Path, name: str) -> Format:
    """The format of a file by its content; messages call it `name`. WrongKind for any that is not taken, DataError for a damaged one."""
    with reading(name):
        kind = kind_of(path)
    if kind == "damaged":
        raise DataError(f"data file {name} is {not_data(kind)}")
    if kind not in ("npz", "parquet"):
        raise WrongKind(f"data file {name} is {not_data(kind)}")
    return cast(Format, kind)


def array_heads(path: Path, name: str, limit_bytes: int) -> tuple[Format, tuple[ArrayHead, ...]]:
    """Format and arrays of a file. Every array's head is read; what would unpack to more than `limit_bytes` is refused first.

    Raises DataError for whatever could not be read as plain numbers or could harm, WrongKind for another format."""
    kind = data_format(path, name)
    heads = tuple(_npz(path, name, limit_bytes) if kind == "npz" else _parquet(path, name, limit_bytes))
    size = sum(prod(head.shape) * np.dtype(head.dtype).itemsize for head in heads)
    if size > limit_bytes:  # Encodings and headers may say anything; the shapes say what would be written.
        raise _too_large(name, size, limit_bytes)
    return kind, heads


def _npz(path: Path, name: str, limit_bytes: int) -> Iterator[ArrayHead]:
    with reading(name), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    _check_names([_array_name(info.filename, name) for info in members], name)
    unpacked = sum(info.file_size for info in members)
    if unpacked > limit_bytes:
        raise _too_large(name, unpacked, limit_bytes)
    for info in members:
        with reading(name):
            head = member_header(path, info, name)
        yield ArrayHead(info.filename.removesuffix(".npy"), head.dtype.name, head.shape)


def _array_name(member: str, name: str) -> str:
    """The array that a member holds. Slashes may be part of an input's name; what would lead somewhere else as a path is refused."""
    if member.startswith("/") or "\\" in member or member[1:2] == ":" or {"", ".", ".."} & set(member.split("/")):
        raise DataError(
            f"{name} has a member named {member[:80]!r}, which reads like a path out of the archive; write the file with np.savez"
        )
    if not member.endswith(".npy"):
        raise DataError(f"{name} has a member named {member[:80]!r}, which is no array; an .npz file holds .npy members only. Use np.savez")
    return member.removesuffix(".npy")


def _check_names(names: list[str], name: str) -> None:
    if not names:
        raise DataError(f"{name} holds no arrays; give one for each of the model's inputs")
    if len(names) > MAX_ARRAYS:
        raise DataError(f"{name} holds {len(names)} arrays; at most {MAX_ARRAYS} are taken. Join columns into arrays of several dimensions")
    for each, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{name} holds {count} arrays named {each[:80]!r}; names must differ. Write the file again")
        if len(each) > MAX_NAME or not each.isprintable():
            raise DataError(f"{name} holds an array named {each[:80]!r}; names have at most {MAX_NAME} printable characters. Rename it")


def _parquet(path: Path, name: str, limit_bytes: int) -> Iterator[ArrayHead]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {name} needs pyarrow; install it with: pip install 'accutune[parquet]'") from error
    with reading(name), parquet.ParquetFile(path, pre_buffer=False) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        _check_names(list(schema.names), name)
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        if unpacked > limit_bytes:
            raise _too_large(name, unpacked, limit_bytes)
        if rows < 1:
            raise DataError(f"{name} has no rows; a split needs at least one")
        _check_nulls(groups, name)
        for field in schema:
            first = next(iter(file.iter_batches(batch_size=1, columns=[field.name], use_threads=False)))
            values = arrow_values(first.column(0), f"column '{field.name}' in {name}", 0)
            yield ArrayHead(field.name, values.dtype.name, (rows, *values.shape[1:]))


def _check_nulls(groups: list[Any], name: str) -> None:
    """As far as the file's own statistics tell; the rest is found when its rows are read."""
    nulls: Counter[str] = Counter()
    for group in groups:
        for index in range(group.num_columns):
            column = group.column(index)
            if column.is_stats_set and column.statistics.has_null_count:
                nulls[column.path_in_schema.partition(".")[0]] += column.statistics.null_count
    for column, count in nulls.items():
        if count:
            raise DataError(f"column '{column}' in {name} must have a value in every row, got {count} nulls. Fill or drop them.")


def _too_large(name: str, size: int, limit: int) -> DataError:
    return too_large(name, size, limit, "Send fewer rows, or several files.")
