"""Where arrays lie: `.npy` folders, `.npz` archives and parquet files, each opened as addresses of raw arrays.

`.npy` files and stored members of an `.npz` are read where they lie; deflated members and parquet columns are streamed once
into a cache folder. Every header is judged before a value is read, and nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from tuner.errors import DataError, InputError, disk_error

MAX_UNPACKED_BYTES = 256 << 30
"""The most that one file may unpack to."""

HEADER_BYTES = 1 << 16
"""Room for the longest header that numpy reads."""

NUMBERS = "biuf"
"""The numpy kinds that a model can read: booleans, integers, floats."""


_MAPPED: WeakValueDictionary[tuple[object, ...], NDArray[Any]] = WeakValueDictionary()


@dataclass(frozen=True)
class StoredArray:
    """The address of an array in a file. It is mapped when first read; pickling carries the address only."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False

    @cached_property
    def values(self) -> NDArray[Any]:
        """Roles of one file share one map: maps count against a limit of address space."""
        stat = self.path.stat()
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, self.offset, self.dtype.str, self.shape, self.fortran)
        found = _MAPPED.get(key)
        if found is None:
            found = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F" if self.fortran else "C")
            _MAPPED[key] = found
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArray, (self.path, self.offset, self.dtype, self.shape, self.fortran)


@dataclass(frozen=True)
class Header:
    """What the head of a .npy file says. `start`: where the values begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int


Sources = Mapping[str, Callable[[], StoredArray]]
"""The arrays of one file by name, each opened (and unpacked) when called."""


def find_arrays(path: Path, cache: Path) -> Sources:
    """What a file or folder holds: names and ways to open them."""
    if path.is_dir():
        return {file.stem: partial(_npy, file) for file in sorted(path.glob("*.npy"))}
    if not path.exists():
        raise DataError(f"the data file {path} does not exist; give an .npz file, a .parquet file or a folder of .npy files")
    if path.suffix == ".npz":
        return _npz(path, cache)
    if path.suffix == ".parquet":
        return _parquet(path, cache)
    raise DataError(f"the data file {path} is of no known kind; give an .npz file, a .parquet file or a folder of .npy files")


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what readers raise for a damaged or unreadable file, which messages call `path`, into a DataError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the file and its permissions") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged or of another format ({error}); write it again") from error


def _npy(path: Path) -> StoredArray:
    with reading(path), path.open("rb") as stream:
        head = read_header(stream, path.name, path.stat().st_size)
    return StoredArray(path, head.start, head.dtype, head.shape, head.fortran)


def read_header(stream: Any, name: str, size: int) -> Header:
    """What the head of a .npy stream of `size` bytes says, judged before any value is read."""
    stream = io.BytesIO(stream.read(HEADER_BYTES))  # A header may claim to be of any length.
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in versions:
        raise DataError(f"{name} has .npy version {version}; save plain numbers with np.save or np.savez")
    shape, fortran, dtype = versions[version](stream)
    if dtype.kind not in NUMBERS:
        raise DataError(
            f"{name} holds {dtype} values; only booleans, integers and floats are read, objects never. Save it as one of these."
        )
    if not shape or min(shape) < 1:
        raise DataError(f"{name} has shape {list(shape)}; it must have at least one row and one value per row")
    if stream.tell() + math.prod(shape) * dtype.itemsize > size:
        raise DataError(f"{name} is truncated: its header declares {dtype} {list(shape)}, more than its {size} bytes. Write it again.")
    return Header(dtype, shape, fortran, stream.tell())


def _npz(path: Path, cache: Path) -> Sources:
    with reading(path), zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    check_unpacked(path, sum(info.file_size for info in members.values() if info.compress_type != zipfile.ZIP_STORED))
    return {name[: -len(".npy")]: partial(_member, path, info, cache) for name, info in members.items() if name.endswith(".npy")}


def check_unpacked(path: Path, size: int) -> None:
    if size > MAX_UNPACKED_BYTES:
        raise too_large(path.name, size, MAX_UNPACKED_BYTES, "Use a folder of .npy files, which are read where they lie.")


def too_large(name: str, size: int, limit: int, remedy: str) -> DataError:
    """The error for a file that would unpack to more than `limit` bytes."""
    return DataError(f"{name} would unpack to {_gib(size)} GiB, more than the {_gib(limit)} GiB allowed. {remedy}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}".rstrip("0").rstrip(".")


def member_header(path: Path, info: zipfile.ZipInfo, called: str) -> Header:
    """The head of a member of an archive, which messages name by `called`; nothing but its first bytes is unpacked."""
    name = f"'{info.filename}' in {called}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name} is encrypted or packed in an unusual way; write it with np.savez or np.savez_compressed")
    with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        return read_header(stream, name, info.file_size)


def _member(path: Path, info: zipfile.ZipInfo, cache: Path) -> StoredArray:
    with reading(path):
        head = member_header(path, info, path.name)
    if info.compress_type == zipfile.ZIP_STORED:
        return StoredArray(path, _member_offset(path, info) + head.start, head.dtype, head.shape, head.fortran)
    with reading(path):
        file = _keep(cache, path, (info.filename, info.CRC, info.file_size), partial(_inflate, path, info))
    return StoredArray(file, head.start, head.dtype, head.shape, head.fortran)


def _member_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after the local header, whose name and extra field may differ from the directory's."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        head = stream.read(30)
    offset = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if offset + info.file_size > path.stat().st_size:
        raise DataError(f"'{info.filename}' in {path.name} is truncated: it would end after the file. Write the file again.")
    return offset


def _inflate(path: Path, info: zipfile.ZipInfo, target: BinaryIO) -> None:
    with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        shutil.copyfileobj(stream, target, 1 << 20)
    if target.tell() != info.file_size:
        raise DataError(f"'{info.filename}' in {path.name} is truncated; write the file again")


def _keep(cache: Path, source: Path, part: tuple[object, ...], write: Callable[[BinaryIO], None]) -> Path:
    """The .npy file that `write` makes of `part` of `source`: written once, under a lock, whole or not at all."""
    stat = source.stat()
    key = hashlib.sha256(repr((str(source.resolve()), stat.st_size, stat.st_mtime_ns, part)).encode()).hexdigest()[:32]
    final = cache / f"{key}.npy"
    if final.exists():
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{key}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not final.exists():
                _write_whole(final, write)
    except OSError as error:
        if error.errno is None:  # a reader's complaint about the source, not the system's about the cache
            raise
        raise disk_error(error, f"unpacking {source.name} into {cache}") from error
    return final


def _write_whole(final: Path, write: Callable[[BinaryIO], None]) -> None:
    part = final.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)


def _parquet(path: Path, cache: Path) -> Sources:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {path.name} needs pyarrow; install it with: pip install 'accutune[parquet]'") from error
    with reading(path), parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
        check_unpacked(path, sum(group.total_byte_size for group in groups))
    return {name: partial(_column, path, name, cache) for name in names}


def _column(path: Path, name: str, cache: Path) -> StoredArray:
    with reading(path):
        return _npy(_keep(cache, path, (name,), partial(_write_column, path, name)))


def _write_column(path: Path, name: str, target: BinaryIO) -> None:
    """Stream one column into a .npy file; its row shape is the first row's and must be every row's."""
    import pyarrow.parquet as parquet

    where, seen, shape = f"column '{name}' in {path.name}", 0, None
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=256, columns=[name]):
            values = arrow_values(batch.column(0), where, seen)
            if shape is None:
                shape = values.shape[1:]
                header = {"descr": values.dtype.str, "fortran_order": False, "shape": (file.metadata.num_rows, *shape)}
                np.lib.format.write_array_header_1_0(target, header)
            if values.shape[1:] != shape:
                raise DataError(f"{where} must hold lists of one length, got {list(shape)} and {list(values.shape[1:])}. Pad the rows.")
            check_unpacked(path, target.tell() + values.nbytes)
            target.write(values.tobytes())
            seen += len(values)
    if shape is None:
        raise DataError(f"{where} has no rows; a split needs at least one")


def arrow_values(column: Any, where: str, first: int) -> NDArray[Any]:
    """An arrow array of numbers or of (nested) lists of equal length as a numpy array [rows, …]."""
    import pyarrow

    if column.null_count:
        raise DataError(f"{where} must have a value in every row, got {column.null_count} nulls from row {first} on. Fill or drop them.")
    kinds = pyarrow.types
    if isinstance(column, pyarrow.ExtensionArray):
        return arrow_values(column.storage, where, first)
    if kinds.is_list(column.type) or kinds.is_large_list(column.type) or kinds.is_fixed_size_list(column.type):
        lengths = column.value_lengths().to_numpy() if not kinds.is_fixed_size_list(column.type) else np.array([column.type.list_size])
        if lengths.min() != lengths.max():
            raise DataError(f"{where} must hold lists of one length, got {lengths.min()} and {lengths.max()}. Pad the rows.")
        inner = arrow_values(column.flatten(), where, first)
        return inner.reshape(len(column), int(lengths[0]), *inner.shape[1:])
    if not (kinds.is_integer(column.type) or kinds.is_floating(column.type) or kinds.is_boolean(column.type)):
        raise DataError(f"{where} holds {column.type}; only booleans, integers, floats and lists of them are read. Convert it.")
    return np.asarray(column.to_numpy(zero_copy_only=False))
