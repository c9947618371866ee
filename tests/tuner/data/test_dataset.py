from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tuner.data import dataset as dataset_module
from tuner.data.dataset import Dataset, InputInfo, check_dataset, check_labels, label_range, open_dataset
from tuner.errors import DataError
from tuner.job import DataRef

ROWS = 40
INPUTS = (InputInfo("image", "float32", (None, 3, 4)), InputInfo("ids", "int64", (1, None)))
Arrays = dict[str, NDArray[Any]]
RNG = np.random.default_rng(0)
ARRAYS: Arrays = {
    "image": RNG.normal(size=(ROWS, 3, 4)).astype(np.float32),
    "ids": RNG.integers(0, 99, (ROWS, 5)).astype(np.int32),
    "labels": RNG.integers(0, 7, ROWS).astype(np.uint8),
    "extra": np.zeros((3, 3)),
}


def _write_parquet(path: Path, arrays: Arrays) -> None:
    """Images as flat lists of a fixed size, ids as lists of any size, in row groups smaller than the file."""
    columns: dict[str, Any] = {}
    for name, array in arrays.items():
        if name == "extra":
            columns[name] = pa.array(["text"] * len(arrays["image"]))
        elif array.ndim == 3:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array[0].size)
        else:
            columns[name] = pa.array(list(array))
    pq.write_table(pa.table(columns), path, row_group_size=16)


def _write(kind: str, folder: Path, arrays: Arrays) -> Path:
    path = folder / f"data.{kind}"
    if kind == "stored.npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif kind == "deflated.npz":
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    elif kind == "parquet":
        _write_parquet(path, arrays)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


KINDS = ["stored.npz", "deflated.npz", "parquet", "folder"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {kind: _write(kind, folder, ARRAYS) for kind in KINDS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _saved(tmp_path: Path, **arrays: Any) -> Path:
    return _write("stored.npz", tmp_path, {name: np.asarray(array) for name, array in arrays.items()})


def _open(path: Path, *inputs: InputInfo, **ref: Any) -> Dataset:
    return open_dataset(DataRef(file=str(path), **ref), inputs or (InputInfo("x", "float32", (None, 2)),), path.parent / "cache")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, (7, 33)])
def test_every_source_gives_the_same_batches(kind: str, rows: tuple[int, int] | None, files: dict[str, Path], cache: Path) -> None:
    dataset = open_dataset(DataRef(file=str(files[kind]), rows=rows), INPUTS, cache)
    first, end = rows or (0, ROWS)
    assert (len(dataset), dataset.rows, dataset.has_labels) == (end - first, (first, end), True)
    check_dataset(dataset, "validation")
    check_labels(dataset, 7)
    picked = np.array([5, 0, 12, 5])
    batch, labels = dataset.batch(picked), dataset.labels(picked)
    np.testing.assert_array_equal(batch["image"], ARRAYS["image"][first + picked])
    np.testing.assert_array_equal(batch["ids"], ARRAYS["ids"][first + picked])
    np.testing.assert_array_equal(labels, ARRAYS["labels"][first + picked])
    assert [batch["image"].dtype, batch["ids"].dtype, labels is not None and labels.dtype] == [np.float32, np.int64, np.int64]
    assert batch["image"].flags.c_contiguous and batch["image"].flags.aligned and set(batch) == {"image", "ids"}


def test_digests_depend_on_values_and_not_on_the_source(files: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    opened = [open_dataset(DataRef(file=str(path)), INPUTS, cache) for path in files.values()]
    assert len({dataset.digest() for dataset in opened}) == 1
    for dataset in opened[1:]:
        np.testing.assert_array_equal(dataset.row_digests(), opened[0].row_digests())
    for name in ("image", "ids", "labels"):
        changed = {key: array.copy() for key, array in ARRAYS.items()}
        changed[name].flat[-1] += 1
        (tmp_path / name).mkdir()
        other = open_dataset(DataRef(file=str(_write("folder", tmp_path / name, changed))), INPUTS, cache)
        assert other.digest() != opened[0].digest()
        differs = other.row_digests() != opened[0].row_digests()
        assert differs.sum() == (0 if name == "labels" else 1) and differs[-1] == (name != "labels")


def test_digests_do_not_depend_on_the_block_size(files: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(DataRef(file=str(files["folder"])), INPUTS, cache)
    digest, rows = dataset.digest(), dataset.row_digests()
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 300)
    assert dataset.digest() == digest
    np.testing.assert_array_equal(dataset.row_digests(), rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picks=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), min_size=1, max_size=3), size=st.integers(1, 9))
def test_subsets_of_subsets_and_blocks_read_the_right_rows(picks: list[list[int]], size: int, files: dict[str, Path], cache: Path) -> None:
    dataset = open_dataset(DataRef(file=str(files["stored.npz"]), rows=(3, 37)), INPUTS, cache)
    expected = np.arange(3, 37)
    for pick in picks:
        chosen = np.array(pick) % len(dataset)
        dataset, expected = dataset.subset(chosen), expected[chosen]
    blocks = [block["image"] for block in dataset.blocks(size)]
    assert all(len(block) == size for block in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate(blocks), ARRAYS["image"][expected])
    np.testing.assert_array_equal(dataset.labels(np.arange(len(dataset))), ARRAYS["labels"][expected])
    assert dataset.rows == (expected.min(), expected.max() + 1)


@pytest.mark.parametrize("index", [-1, 26])
def test_an_index_outside_the_split_never_reads_a_row_of_another(index: int, files: dict[str, Path], cache: Path) -> None:
    dataset = open_dataset(DataRef(file=str(files["folder"]), rows=(7, 33)), INPUTS, cache)
    with pytest.raises(IndexError, match=rf"indices must lie in 0..25, got {index}..{index}"):
        dataset.batch(np.array([index]))


def test_a_dataset_travels_as_addresses(files: dict[str, Path], cache: Path) -> None:
    dataset = open_dataset(DataRef(file=str(files["deflated.npz"])), INPUTS, cache)
    before = dataset.batch(np.arange(4))["image"]
    payload = pickle.dumps(dataset)
    assert len(payload) < 2000 < ARRAYS["image"].nbytes + ARRAYS["ids"].nbytes
    np.testing.assert_array_equal(pickle.loads(payload).batch(np.arange(4))["image"], before)


def test_files_in_column_order_and_foreign_byte_order_are_read(tmp_path: Path) -> None:
    values = np.asfortranarray(RNG.normal(size=(6, 2)).astype(">f4"))
    dataset = _open(_saved(tmp_path, x=values))
    np.testing.assert_array_equal(dataset.batch(np.array([4, 1]))["x"], values[[4, 1]])


def test_a_large_deflated_array_is_streamed(tmp_path: Path) -> None:
    array = np.tile(np.arange(512, dtype=np.float32), (16_384, 1))
    path = _write("deflated.npz", tmp_path, {"x": array})
    tracemalloc.start()
    dataset = _open(path, InputInfo("x", "float32", (None, 512)))
    opened = tracemalloc.get_traced_memory()[1]
    check_dataset(dataset, "training")
    digest, peak = dataset.digest(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.nbytes == 32 << 20 and opened < 4 << 20 and peak < 20 << 20
    assert digest == _open(_write("stored.npz", tmp_path, {"x": array}), InputInfo("x", "float32", (None, 512))).digest()


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float16", "float32"), ("int32", "int64"), ("bool", "int64"), ("uint8", "float32"), ("float32", "float64")]
)
def test_lossless_casts_are_silent(stored: str, wanted: str, tmp_path: Path) -> None:
    dataset = _open(_saved(tmp_path, x=np.array([[0, 1], [1, 1]], stored)), InputInfo("x", wanted, (None, 2)))
    batch = dataset.batch(np.arange(2))["x"]
    assert batch.dtype == wanted and batch.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(("stored", "wanted"), [("float64", "float32"), ("int64", "int32"), ("int64", "float32"), ("float32", "int64")])
def test_casts_that_lose_are_refused(stored: str, wanted: str, tmp_path: Path) -> None:
    message = rf"input 'x' takes {wanted}, got {stored} in data.stored.npz.*without loss. Save the array as {wanted} \(array.astype"
    with pytest.raises(DataError, match=message):
        _open(_saved(tmp_path, x=np.ones((2, 2), stored)), InputInfo("x", wanted, (None, 2)))


def test_a_missing_array_names_file_input_arrays_and_the_nearest(tmp_path: Path) -> None:
    path = _saved(tmp_path, imgae=np.ones(3), labels=np.ones(3))
    with pytest.raises(
        DataError,
        match=r"data.stored.npz has no array 'image' for the model's input 'image'. Did you mean 'imgae'\? It holds: imgae, labels.",
    ):
        _open(path, InputInfo("image", "float64", (None,)))


def test_labels_may_be_missing_but_not_where_the_job_names_them(tmp_path: Path) -> None:
    path = _saved(tmp_path, x=np.ones((3, 2), np.float32), klass=np.arange(3))
    dataset = _open(path)
    assert not dataset.has_labels and dataset.labels(np.arange(3)) is None
    assert _open(path, target="klass").labels(np.arange(3)).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"no array 'clas' for the labels \(the job's 'target'\). Did you mean 'klass'\?"):
        _open(path, target="clas")


@pytest.mark.parametrize(
    ("shape", "got", "remedy"),
    [((5, 4, 3), r"\[4, 3\]", "another order: transpose"), ((5, 3), r"\[3\]", "Save the rows in that"), ((5, 3, 5), r"\[3, 5\]", "Save")],
)
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...], got: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"input 'x' expects rows of shape \[3, 4\], got {got} in data.stored.npz.*{remedy}"):
        _open(_saved(tmp_path, x=np.ones(shape, np.float32)), InputInfo("x", "float32", (None, 3, 4)))


def test_rows_outside_the_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows \[1, 9\) lie outside data.stored.npz, which has 4 rows. Use an end of at most 4"):
        _open(_saved(tmp_path, x=np.ones((4, 2), np.float32)), rows=(1, 9))


def test_arrays_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must have the same number of rows, got: 'x' has 4, 'labels' has 3. Save one entry per row"):
        _open(_saved(tmp_path, x=np.ones((4, 2), np.float32), labels=np.ones(3)))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([3, 1, 1, 7], (1, 7, 3)),
        ([-2.0, 5.0, 5.0, 0.0], (-2, 5, 3)),
        ([[0, 4], [4, 4], [9, 0], [0, 0]], (0, 9, 3)),
        ([0.0, 1.0, 0.5, 1.0], None),
        (None, None),
    ],
)
def test_the_range_of_labels(labels: Any, found: tuple[int, int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.data.dataset.BLOCK_BYTES", 16)  # Two rows at a time.
    arrays = {"x": np.ones((4, 2), np.float32)} | ({} if labels is None else {"labels": np.asarray(labels)})
    assert label_range(_open(_saved(tmp_path, **arrays))) == found


def test_labels_beyond_int64_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels 'labels' in data.stored.npz are uint64, which int64 cannot hold. Save them as int64"):
        _open(_saved(tmp_path, x=np.ones((4, 2), np.float32), labels=np.ones(4, np.uint64)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    x, labels = np.ones((9, 2), np.float32), np.ones(9)
    x[[5, 7], 1], labels[6] = value, value
    path = _saved(tmp_path, x=x, labels=labels)
    with pytest.raises(
        DataError, match=r"holdout: input x must be finite, got NaN or infinite values in 2 rows of data.stored.npz, first in row 5. Repair"
    ):
        check_dataset(_open(path, rows=(2, 9)), "holdout")
    with pytest.raises(DataError, match=r"validation: labels must be finite, got NaN or infinite values in 1 row of .*, first in row 6"):
        check_dataset(_open(path, rows=(6, 7)), "validation")
    check_dataset(_open(path, rows=(0, 5)), "calibration")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    dataset = _open(_saved(tmp_path, x=np.ones((4, 2), np.float32)))
    with pytest.raises(DataError, match="calibration is empty; give it at least one row"):
        check_dataset(dataset.subset(np.array([], np.int64)), "calibration")


@pytest.mark.parametrize(("label", "shown"), [(-1, "-1"), (3, "3"), (np.nan, "nan"), (0.5, "0.5")])
def test_a_label_that_is_no_class_is_refused(label: float, shown: str, tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, label, 1])
    path = _saved(tmp_path, x=np.ones((5, 2), np.float32), labels=labels if label % 1 else labels.astype(np.int64))
    with pytest.raises(
        DataError, match=rf"label {shown} in row 3 of data.stored.npz must be a whole number in 0..2, the model's classes. Number"
    ):
        check_labels(_open(path, rows=(1, 5)), 3)
    check_labels(_open(path, rows=(0, 3)), 3)


def test_one_hot_labels_are_refused(tmp_path: Path) -> None:
    dataset = _open(_saved(tmp_path, x=np.ones((3, 2), np.float32), labels=np.eye(3)))
    with pytest.raises(
        DataError, match=r"one class number per row, shape \[3\], got \[3, 3\]. Use argmax over the classes of one-hot labels"
    ):
        check_labels(dataset, 3)


@pytest.mark.parametrize("flat", [True, False])
def test_flat_lists_in_parquet_take_the_shape_that_the_model_expects(flat: bool, tmp_path: Path) -> None:
    values = RNG.normal(size=(5, 3, 2)).astype(np.float32)
    kind = pa.list_(pa.float32()) if flat else pa.list_(pa.list_(pa.float32()))
    column = pa.array((values.reshape(5, -1) if flat else values).tolist(), kind)
    pq.write_table(pa.table({"x": column}), tmp_path / "data.parquet")
    dataset = _open(tmp_path / "data.parquet", InputInfo("x", "float32", (None, 3, 2)))
    np.testing.assert_array_equal(dataset.batch(np.arange(5))["x"], values)
    with pytest.raises(DataError, match=r"input 'x' expects rows of shape \[3, 3\], got"):
        _open(tmp_path / "data.parquet", InputInfo("x", "float32", (None, 3, 3)))
