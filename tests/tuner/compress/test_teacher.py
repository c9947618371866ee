from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import FEATURES, tiny_data

from tuner.compress.teacher import TeacherOutputs
from tuner.data.dataset import Dataset
from tuner.errors import JobCancelled, ModelError

ROWS = 600
WANTED = np.array([599, 3, 300, 3, 0])


class Doubling:
    def __init__(self, scale: float = 2) -> None:
        self.scale, self.sizes = scale, list[int]()

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        self.sizes.append(len(feed["x"]))
        return {"y": self.scale * feed["x"], "sum": feed["x"].sum(1)}


def outputs(teacher: Any, data: Dataset, folder: Path | None, names: tuple[str, ...] = ("y", "sum"), **given: Any) -> TeacherOutputs:
    return TeacherOutputs(teacher, data, np.arange(ROWS)[::-1].copy(), names, folder=folder, **given)


def expected(data: Dataset) -> Any:
    return 2 * data.batch(ROWS - 1 - WANTED)["x"]


@pytest.mark.parametrize("kept", [True, False])
def test_rows_come_by_their_position_in_the_order(tmp_path: Path, kept: bool) -> None:
    data = tiny_data(tmp_path, ROWS)
    found = outputs(Doubling(), data, tmp_path / "kept" if kept else None).rows(WANTED)
    assert np.array_equal(found["y"].numpy(), expected(data)) and found["sum"].shape == (5,)


def test_what_is_kept_is_not_asked_for_again(tmp_path: Path) -> None:
    data, teacher = tiny_data(tmp_path, ROWS), Doubling()
    outputs(teacher, data, tmp_path / "kept").rows(WANTED)
    assert sum(teacher.sizes) == ROWS  # All three blocks of 256, 256 and 88 rows were touched.
    again = outputs(teacher, data, tmp_path / "kept")
    assert again.keep(ROWS, 1 << 30) == [] and np.array_equal(again.rows(WANTED)["y"].numpy(), expected(data))
    again.only(["y"])
    assert set(again.rows(WANTED)) == {"y"} and sum(teacher.sizes) == ROWS


def test_a_tensor_that_is_not_kept_yet_is_asked_for(tmp_path: Path) -> None:
    data, teacher = tiny_data(tmp_path, ROWS), Doubling()
    outputs(teacher, data, tmp_path / "kept", ("y",)).rows(np.array([0]))
    assert sum(teacher.sizes) == 256
    outputs(teacher, data, tmp_path / "kept").rows(np.array([0]))
    assert sum(teacher.sizes) == 512


def test_a_block_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    data, teacher = tiny_data(tmp_path, ROWS), Doubling()
    outputs(teacher, data, tmp_path / "kept").rows(np.array([0]))
    files = sorted((tmp_path / "kept").rglob("*.npy"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:-100])
    assert np.array_equal(outputs(teacher, data, tmp_path / "kept").rows(WANTED)["y"].numpy(), expected(data))
    assert not list((tmp_path / "kept").rglob("*.partial"))


def test_ending_between_two_runs_keeps_whole_blocks_only(tmp_path: Path) -> None:
    calls = iter([None] * 5)

    def between() -> None:
        if next(calls, 1):
            raise JobCancelled("stop")

    data, teacher = tiny_data(tmp_path, ROWS), Doubling()
    with pytest.raises(JobCancelled):
        outputs(teacher, data, tmp_path / "kept", between=between).rows(WANTED)
    assert sum(teacher.sizes) == 5 * 64  # Four runs of the first block and one of the second.
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 2


def test_the_limit_decides_how_rows_are_kept(tmp_path: Path) -> None:
    data, size = tiny_data(tmp_path, ROWS), 4 * ROWS * (FEATURES + 1)
    exact, half, none = (outputs(Doubling(), data, tmp_path / "kept") for _ in range(3))
    assert exact.keep(ROWS, size) == []
    assert half.keep(ROWS, size - 1) == ["what the original says was kept in float16, which takes half the room of float32"]
    (note,) = none.keep(ROWS, size // 2 - 1)
    assert note.startswith("the original ran anew for each batch: what it says of 600 rows takes 0.0084 MB, over 0.0084 MB")
    narrow = half.rows(WANTED)["y"].numpy()
    assert np.array_equal(narrow, expected(data).astype(np.float16))
    assert all("-float16-" in file.name for file in (tmp_path / "kept").rglob("*.npy"))
    assert np.array_equal(none.rows(WANTED)["y"].numpy(), expected(data))


def test_values_beyond_float16_are_kept_as_they_are(tmp_path: Path) -> None:
    data, big = tiny_data(tmp_path, ROWS), Doubling(1e7)
    kept = outputs(big, data, tmp_path / "kept")
    kept.keep(ROWS, 4 * ROWS * (FEATURES + 1) - 1)
    first = kept.rows(WANTED)["y"].numpy()
    again = outputs(big, data, tmp_path / "kept")
    again.keep(ROWS, 4 * ROWS * (FEATURES + 1) - 1)
    assert np.array_equal(first, 5e6 * expected(data)) and np.array_equal(again.rows(WANTED)["y"].numpy(), first)
    assert sum(big.sizes) == 64 + ROWS


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    data, teacher = tiny_data(tmp_path, ROWS, batch=16), Doubling()
    found = outputs(teacher, data, None, fixed=16).rows(WANTED)
    assert teacher.sizes == [16] and np.array_equal(found["y"].numpy(), expected(data))
    assert np.array_equal(outputs(teacher, data, tmp_path / "kept", fixed=16).rows(WANTED)["y"].numpy(), expected(data))
    assert set(teacher.sizes) == {16}


def test_a_tensor_that_the_teacher_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the teacher gives no tensor 'z'; it gives sum, y. Name one of these"):
        outputs(Doubling(), tiny_data(tmp_path, ROWS), None, ("z",)).rows(WANTED)
