from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tuner.data.dataset import InputInfo, open_dataset
from tuner.data.spool import spool
from tuner.errors import DataError, StorageError
from tuner.job import DataRef

RNG = np.random.default_rng(0)
X: NDArray[np.float32] = RNG.normal(size=(50, 3, 2)).astype(np.float32)
Y: NDArray[np.int64] = RNG.integers(0, 7, 50)
TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
FORMS: dict[str, Any] = {
    "dict": {"x": X, "labels": Y},
    "tuple": (X, Y),
    "tensors": (torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)),
    "loader": DataLoader(TENSORS, batch_size=16),
    "generator": ((X[i : i + 7], Y[i : i + 7]) for i in range(0, 50, 7)),
    "dicts": [{"x": X[:20], "labels": Y[:20]}, {"x": X[20:], "labels": Y[20:]}],
    "nested": ([X], Y),
    "function": lambda: DataLoader(TENSORS, batch_size=50),
}


def written(folder: Path) -> dict[str, NDArray[Any]]:
    return {file.stem: np.load(file) for file in folder.iterdir()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_files(form: str, tmp_path: Path) -> None:
    arrays = written(spool(FORMS[form], tmp_path / "rows", ["x"], "validation"))
    assert set(arrays) == {"x", "labels"}
    np.testing.assert_array_equal(arrays["x"], X)
    np.testing.assert_array_equal(arrays["labels"], Y)
    assert [str(array.dtype) for array in (arrays["x"], arrays["labels"])] == ["float32", "int64"]


@pytest.mark.parametrize("data", [X, torch.from_numpy(X), {"x": X}, (X, None), [[X[:9]], [X[9:]]], (X,)])
def test_rows_without_labels(data: Any, tmp_path: Path) -> None:
    arrays = written(spool(data, tmp_path / "rows", ["x"], "validation"))
    assert set(arrays) == {"x"}
    np.testing.assert_array_equal(arrays["x"], X)


@pytest.mark.parametrize("data", [(X, X + 1, Y), ((X, X + 1), Y), ({"b": X + 1, "a": X}, Y), [(X, X + 1, Y)]])
def test_several_inputs_take_the_models_names(data: Any, tmp_path: Path) -> None:
    arrays = written(spool(data, tmp_path / "rows", ["a", "b"], "validation"))
    assert set(arrays) == {"a", "b", "labels"}
    np.testing.assert_array_equal(arrays["a"] + 1, arrays["b"])


def test_what_is_written_opens_as_a_dataset(tmp_path: Path) -> None:
    folder = spool(FORMS["loader"], tmp_path / "rows", ["x"], "validation")
    dataset = open_dataset(DataRef(file=str(folder)), [InputInfo("x", "float32", (None, 3, 2))], tmp_path / "cache")
    assert len(dataset) == 50
    np.testing.assert_array_equal(dataset.batch(np.array([49, 3]))["x"], X[[49, 3]])


def test_an_earlier_folder_is_replaced(tmp_path: Path) -> None:
    spool({"old": X}, tmp_path / "rows", ["x"], "validation")
    assert set(written(spool((X, Y), tmp_path / "rows", ["x"], "validation"))) == {"x", "labels"}


def test_memory_does_not_grow_with_the_number_of_batches(tmp_path: Path) -> None:
    def batches() -> Iterator[NDArray[np.float32]]:
        for _ in range(64):
            yield np.ones((64, 1024), np.float32)  # 256 KiB, 16 MiB in all

    tracemalloc.start()
    folder = spool(batches, tmp_path / "rows", ["x"], "validation")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.load(folder / "x.npy", mmap_mode="r").shape == (64 * 64, 1024)
    assert peak < 2 << 20


class Rows(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]

    def __len__(self) -> int:
        return 50


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, r"validation must be a path, a dict of arrays, .*; got int"),
        (iter([]), r"validation gave no batches; give at least one, and an iterable that was not used up before"),
        (Rows(), r"validation must come in batches, got a Rows of rows; wrap it in DataLoader"),
        ([(X[0], Y[0])], r"validation, batch 0: 'labels' must have one entry per row, got a single number; give batches"),
        ((X, Y[:9]), r"validation, batch 0: inputs and labels must have the same number of rows, got: 'x' has 50, 'labels' has 9"),
        ([(X, Y), (X[:, :2], Y)], r"batch 1: 'x' must have rows of one shape, got \[2, 2\] after \[3, 2\]\. Pad or resize the rows"),
        ([(X, Y), (X.astype(np.float64), Y)], r"batch 1: 'x' must keep its dtype, got float64 after float32\. Convert all batches"),
        ([(X, Y), X], r"batch 1: every batch must hold the same arrays, got x after labels, x"),
        ((X, X, Y), r"one array for each of the model's inputs \(x\) and may end with the labels, got 2 arrays before them"),
        ({"x": np.array(["a"])}, r"'x' must be an array of numbers, got ndarray of <U1"),
        ({"x": [[1, 2], [3]]}, r"'x' must be an array of numbers with rows of one shape, got list"),
        ({"x": torch.zeros(2, dtype=torch.bfloat16)}, r"'x' has a dtype unknown to numpy \(torch.bfloat16\); convert it, with \.float\(\)"),
        ({"a/b": X}, r"array 'a/b' cannot be kept in a file of that name; save the arrays with np\.savez"),
        (["text"], r"validation, batch 0 must be a dict of arrays or a tuple \(inputs, labels\), got str"),
    ],
)
def test_what_cannot_be_read_as_rows_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        spool(data, tmp_path / "rows", ["x"], "validation")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"writing the rows of validation failed: .*Choose another folder"):
        spool((X, Y), tmp_path / "file" / "rows", ["x"], "validation")


def test_what_the_iterable_raises_comes_through(tmp_path: Path) -> None:
    def batches() -> Iterator[Any]:
        yield X, Y
        raise FileNotFoundError("no such image")

    with pytest.raises(FileNotFoundError, match="no such image"):
        spool(batches, tmp_path / "rows", ["x"], "validation")
