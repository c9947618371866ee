from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tuner.data import sources
from tuner.data.sources import StoredArray, find_arrays
from tuner.errors import DataError, StorageError


def _write(kind: str, folder: Path, x: NDArray[Any]) -> Path:
    path = folder / f"data.{kind}"
    if kind == "folder":
        path.mkdir()
        np.save(path / "x.npy", x)
    elif kind == "parquet":
        pq.write_table(pa.table({"x": list(x)}), path)
    else:
        {"stored.npz": np.savez, "deflated.npz": np.savez_compressed}[kind](path, x=x)
    return path


def _open(path: Path, name: str = "x") -> StoredArray:
    return find_arrays(path, path.parent / "cache")[name]()


def test_stored_members_lie_where_they_are_and_deflated_ones_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _open(_write("stored.npz", tmp_path, np.ones((3, 2))))
    assert not (tmp_path / "cache").exists()
    path = _write("deflated.npz", tmp_path, np.ones((3, 2), np.float32))
    _open(path)
    [unpacked] = (tmp_path / "cache").glob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_inflate", lambda *_: pytest.fail("unpacked again"))
        _open(path)
    _write("deflated.npz", tmp_path, np.full((3, 2), 5, np.float32))
    assert _open(path).values[0].tolist() == [5, 5], "a rewritten file must not be read from the cache"
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2 and unpacked.exists()


def test_an_array_that_is_opened_twice_is_mapped_once(tmp_path: Path) -> None:
    path = _write("stored.npz", tmp_path, np.ones((3, 2)))
    one, other = _open(path), _open(path)
    assert one.values is other.values
    _write("stored.npz", tmp_path, np.full((4, 2), 5.0))
    assert _open(path).values.tolist() == [[5.0, 5.0]] * 4


def test_several_readers_at_once_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write("deflated.npz", tmp_path, np.arange(6, dtype=np.float32).reshape(3, 2))
    inflate, calls, readers = sources._inflate, [], 4
    start = threading.Barrier(readers)

    def slow(*arguments: Any) -> None:
        calls.append(1)
        time.sleep(0.05)
        inflate(*arguments)

    def read(_: int) -> list[float]:
        start.wait()
        values: list[float] = _open(path).values[2].tolist()
        return values

    monkeypatch.setattr(sources, "_inflate", slow)
    with ThreadPoolExecutor(readers) as pool:
        assert list(pool.map(read, range(readers))) == [[4, 5]] * readers
    assert len(calls) == 1


def test_an_unpacking_that_breaks_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write("deflated.npz", tmp_path, np.ones((3, 2), np.float32))

    def full(_path: Path, _info: object, target: Any) -> None:
        target.write(b"half")
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match=r"unpacking data.deflated.npz into .*No space left.*Free some space"),
    ):
        patch.setattr(sources, "_inflate", full)
        _open(path)
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".lock"}
    assert _open(path).shape == (3, 2)


@pytest.mark.parametrize("kind", ["stored.npz", "deflated.npz", "folder"])
def test_objects_are_refused_before_a_byte_of_them_is_read(kind: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return pytest.fail, ("unpickled",)

    path = _write(kind, tmp_path, np.array([[Bomb(), 1]], object))
    with pytest.raises(DataError, match=r"holds object values; only booleans, integers and floats are read, objects never"):
        _open(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("array", [np.array([["a", "b"]]), np.ones((2, 2), complex), np.zeros(2, "i4,f4")])
def test_what_is_not_a_number_is_refused(array: NDArray[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'x.npy' in data.stored.npz holds .* values; only booleans, integers and floats are read"):
        _open(_write("stored.npz", tmp_path, array))


@pytest.mark.parametrize("shape", [(), (0, 2), (3, 0)])
def test_an_array_without_rows_or_values_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must have at least one row and one value per row"):
        _open(_write("stored.npz", tmp_path, np.ones(shape, np.float32)))


def _npy_with_shape(declared: str) -> bytes:
    head = ("{'descr': '<f4', 'fortran_order': False, 'shape': " + declared + ", }").ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(16)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_npy_with_shape("(999999999, 2)"), r"is truncated: its header declares float32 \[999999999, 2\], more than its \d+ bytes"),
        (_npy_with_shape("(-2, 2)"), "at least one row"),
        (_npy_with_shape("__import__('os')"), "damaged or of another format"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "version"),
        (b"no array", "damaged or of another format"),
        (b"", "damaged or of another format"),
    ],
)
def test_a_header_that_lies_is_refused(method: int, content: bytes, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w", method) as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=message):
        _open(tmp_path / "data.npz")
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_members_packed_in_an_unusual_way_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", _npy_with_shape("(2, 2)"))
    with pytest.raises(DataError, match=r"'x.npy' in data.npz is encrypted or packed in an unusual way; write it with np.savez"):
        _open(tmp_path / "data.npz")


def test_damaged_bytes_are_noticed(tmp_path: Path) -> None:
    path = _write("deflated.npz", tmp_path, np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"data.deflated.npz is damaged or of another format \(.*\); write it again"):
        _open(path)
    assert not list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.parametrize("kind", ["deflated.npz", "parquet"])
def test_a_file_that_would_unpack_to_too_much_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(kind, tmp_path, np.zeros((1000, 2), np.float32))
    monkeypatch.setattr(sources, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(DataError, match=rf"data.{kind} would unpack to \d+ GiB, more than the \d+ GiB allowed. Use a folder of .npy files"):
        _open(path)


@pytest.mark.parametrize("name", ["absent.npz", "notes.txt", "text.npz", "text.parquet", "text.npy.parquet"])
def test_files_that_are_none_of_ours_are_refused(name: str, tmp_path: Path) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_text("just text")
    kinds = {
        "absent": "does not exist; give an .npz file",
        "notes": "is of no known kind; give an .npz file",
        "text": "damaged or of another",
    }
    with pytest.raises(DataError, match=kinds[name.split(".")[0]]):
        _open(tmp_path / name)


def test_a_folder_offers_its_own_files_only(tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", np.ones((2, 2), np.float32))
    (tmp_path / "data").mkdir()
    assert dict(find_arrays(tmp_path / "data", tmp_path)) == {}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], [3.0]]), r"column 'x' in data.parquet must hold lists of one length, got 1 and 2. Pad the rows"),
        (pa.array([[1.0, 2.0], None]), r"column 'x' in data.parquet must have a value in every row, got 1 nulls from row 0 on. Fill"),
        (pa.array(["a", "b"]), r"column 'x' in data.parquet holds string; only booleans, integers, floats and lists of them are read"),
        (pa.array([[1.0, 2.0]] * 256 + [[3.0]]), r"must hold lists of one length, got \[2\] and \[1\]"),
        (pa.array([], pa.list_(pa.float32())), r"column 'x' in data.parquet has no rows"),
    ],
)
def test_parquet_columns_that_are_no_arrays_are_refused(column: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=message):
        _open(tmp_path / "data.parquet")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_nested_lists_and_tensors_in_parquet_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    table = pa.table(
        {
            "nested": pa.array(values.tolist(), pa.list_(pa.list_(pa.float32()))),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(values),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    for name in ("nested", "tensor"):
        read = _open(tmp_path / "data.parquet", name).values
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read.reshape(values.shape), values)
    assert _open(tmp_path / "data.parquet", "nested").shape == (5, 3, 2)
