from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuner.data import headers
from tuner.data.headers import ArrayHead, array_heads
from tuner.errors import DataError, InputError, WrongKind

LIMIT = 1 << 30
GOOD = np.arange(6, dtype=np.float32).reshape(3, 2)


def npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version)
    return stream.getvalue()


def archive(*members: tuple[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as file:
        for name, content in members:
            file.writestr(name, content)
    return stream.getvalue()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def refusal(folder: Path, data: bytes, limit: int = LIMIT, kind: type[InputError] = DataError) -> str:
    blob = folder / "blob"
    blob.write_bytes(data)
    with pytest.raises(kind) as caught:
        array_heads(blob, "rows.npz", limit)
    assert type(caught.value) is kind
    assert [path.name for path in folder.iterdir()] == ["blob"]
    return str(caught.value)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_archive_is_known_by_its_content_and_described(write: Callable[..., None], tmp_path: Path) -> None:
    with (tmp_path / "blob").open("wb") as file:
        write(file, **{"x": GOOD, "in/put:0": np.zeros((4, 1), bool), "labels": np.arange(3, dtype=">i4")})
    kind, heads = array_heads(tmp_path / "blob", "rows.npz", LIMIT)
    assert kind == "npz"
    assert heads == (ArrayHead("x", "float32", (3, 2)), ArrayHead("in/put:0", "bool", (4, 1)), ArrayHead("labels", "int32", (3,)))


def test_a_parquet_file_is_known_by_its_content_and_described(tmp_path: Path) -> None:
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 4)
    columns = {"a": pa.array([1, 2]), "b": pa.array([[[1.5], [2.5]], [[3.5], [4.5]]]), "c": fixed, "d": pa.array([True, False])}
    (tmp_path / "blob").write_bytes(parquet(columns))
    kind, heads = array_heads(tmp_path / "blob", "rows", LIMIT)
    assert kind == "parquet"
    expected = [("a", "int64", (2,)), ("b", "float64", (2, 2, 1)), ("c", "float32", (2, 4)), ("d", "bool", (2,))]
    assert [(head.name, head.dtype, head.shape) for head in heads] == expected


def claiming(size: int) -> bytes:
    """An archive whose directory says that its one member unpacks to `size` bytes."""
    data = bytearray(archive(("x.npy", npy(GOOD))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = size.to_bytes(4, "little")
    return bytes(data)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def encrypted() -> bytes:
    data = bytearray(archive(("x.npy", npy(GOOD))))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.array([[Bomb()]], object))
    return stream.getvalue()


NUMBERS_ONLY = "'x.npy' in rows.npz holds object values; only booleans, integers and floats are read, objects never"
PATH_LIKE = "which reads like a path out of the archive; write the file with np.savez"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (pickled(), NUMBERS_ONLY),
        (archive(("x.npy", npy(np.array(["a"])))), "'x.npy' in rows.npz holds <U1 values; only booleans, integers and floats are read"),
        (archive(("x.npy", npy(GOOD, (3, 0)))), "'x.npy' in rows.npz has .npy version (3, 0); save plain numbers with np.save or np.savez"),
        (archive(("x.npy", npy(GOOD)[:-4])), "'x.npy' in rows.npz is truncated: its header declares float32 [3, 2], more than its"),
        (archive(("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(200_000))), "rows.npz is damaged or of another format"),
        (archive(("x.npy", npy(GOOD)))[:-40], "data file rows.npz is a zip archive that is damaged or was cut off; copy or write it again"),
        (encrypted(), "'x.npy' in rows.npz is encrypted or packed in an unusual way; write it with np.savez"),
        (archive(("x.npy", npy(GOOD)), packed=zipfile.ZIP_LZMA), "is encrypted or packed in an unusual way"),
        (archive(("../x.npy", npy(GOOD))), f"rows.npz has a member named '../x.npy', {PATH_LIKE}"),
        (archive(("/etc/x.npy", npy(GOOD))), f"rows.npz has a member named '/etc/x.npy', {PATH_LIKE}"),
        (archive(("a/../../x.npy", npy(GOOD))), PATH_LIKE),
        (archive(("C:x.npy", npy(GOOD))), PATH_LIKE),
        (archive(("a\\..\\x.npy", npy(GOOD))), PATH_LIKE),
        (archive(("x.npy", npy(GOOD)), ("notes.txt", b"hello")), "has a member named 'notes.txt', which is no array; an .npz file holds"),
        (archive(("x\n.npy", npy(GOOD))), "rows.npz holds an array named 'x\\n'; names have at most 1000 printable characters. Rename it"),
        (archive(("x.npy", npy(np.zeros((0, 3))))), "must have at least one row"),
        (claiming(3 << 30), "rows.npz would unpack to 3 GiB, more than the 1 GiB allowed. Send fewer rows, or several files."),
        (parquet({"x": pa.array([1.0, None])}), "column 'x' in rows.npz must have a value in every row, got 1 nulls. Fill or drop them."),
        (parquet({"x": pa.array([[1.0], [None]])}), "column 'x' in rows.npz must have a value in every row, got 1 nulls"),
        (parquet({"x": pa.array([None, 1.0])}, write_statistics=False), "column 'x' in rows.npz must have a value in every row"),
        (
            parquet({"x": pa.array(["a"])}),
            "column 'x' in rows.npz holds string; only booleans, integers, floats and lists of them are read",
        ),
        (parquet({"x": pa.array([], pa.float32())}), "rows.npz has no rows; a split needs at least one"),
        (parquet({"x": pa.array([1.0])})[:-9], "rows.npz is damaged or of another format"),
        (b"PAR1" + bytes(100), "rows.npz is damaged or of another format"),
    ],
)
def test_hostile_files_are_refused_and_nothing_is_unpacked(data: bytes, text: str, tmp_path: Path) -> None:
    assert text in refusal(tmp_path, data)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = archive(("x.npy", npy(GOOD)), ("x.npy", npy(GOOD + 1)))
    assert refusal(tmp_path, data) == "rows.npz holds 2 arrays named 'x'; names must differ. Write the file again"


def test_rows_that_were_written_small_are_counted_as_they_unpack(tmp_path: Path) -> None:
    """A million equal numbers take a few bytes in parquet, and its own figure for the unpacked size says so too."""
    data = parquet({"x": pa.array(np.zeros(1 << 20, np.float32))})
    assert len(data) < 20_000
    assert "rows.npz would unpack to 0 GiB" in refusal(tmp_path, data, limit=1 << 20)


def test_too_many_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_ARRAYS", 2)
    data = archive(*((f"x{index}.npy", npy(GOOD)) for index in range(3)))
    assert refusal(tmp_path, data) == "rows.npz holds 3 arrays; at most 2 are taken. Join columns into arrays of several dimensions"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (npy(GOOD), "data file rows.npz is a single .npy array; put it into an archive under the name of the model's input: np.savez"),
        (pickle.dumps([1]), "data file rows.npz is a Python pickle, perhaps an old PyTorch checkpoint, whose loading can execute code"),
        (archive(("a/data.pkl", b"")), "data file rows.npz is a PyTorch file (a zip archive with pickles or TorchScript inside), whose"),
        (archive(("a.txt", b"")), "data file rows.npz is a zip archive without arrays; give arrays of rows"),
        (archive(), "data file rows.npz is a zip archive without arrays; give arrays of rows"),
        (b"x,y\n1,2\n", "data file rows.npz is neither an .npz archive nor a parquet file; give arrays of rows, named after the model's"),
        (b"", "data file rows.npz is neither an .npz archive nor a parquet file"),
    ],
)
def test_files_of_another_kind_are_told_what_they_are(data: bytes, text: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, data, kind=WrongKind).startswith(text)
