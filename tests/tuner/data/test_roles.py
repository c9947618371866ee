from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tuner.data.dataset import Dataset, InputInfo
from tuner.data.roles import Roles, open_roles
from tuner.errors import DataError
from tuner.job import DataSpec

INPUTS = (InputInfo("x", "float32", (None, 3)),)


def _rows(first: int, end: int) -> NDArray[np.float32]:
    """Rows that differ from each other: row i starts with i."""
    return np.stack([np.arange(first, end), np.full(end - first, 7), np.arange(first, end) % 5], axis=1).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "train.npz", x=_rows(0, 1000), labels=np.arange(1000) % 4)
    np.savez(tmp_path / "test.npz", x=_rows(1000, 1200), labels=np.arange(200) % 4)
    return tmp_path


def _open(folder: Path, seed: int = 0, **roles: Any) -> Roles:
    """Roles from {role: file or (file, first, end)}."""
    refs: dict[str, Any] = {}
    for role, ref in roles.items():
        name, *rows = (ref,) if isinstance(ref, str) else ref
        refs[role] = {"file": str(folder / name), "rows": rows or None}
    return open_roles(DataSpec.model_validate(refs), INPUTS, folder / "cache", seed)


def _seen(dataset: Dataset) -> list[int]:
    return [int(number) for number in dataset.batch(np.arange(len(dataset)))["x"][:, 0]]


def test_named_roles_are_what_was_named(folder: Path) -> None:
    roles = _open(
        folder, calibration=("train.npz", 10, 20), training="train.npz", validation=("test.npz", 0, 120), holdout=("test.npz", 120, 200)
    )
    assert _seen(roles.calibration) == list(range(10, 20)) and roles.training is not None and len(roles.training) == 1000
    assert _seen(roles.validation) == list(range(1000, 1120)) and _seen(roles.holdout) == list(range(1120, 1200))
    assert roles.excluded == 0 and roles.notes == ()


def test_calibration_left_out_comes_from_training(folder: Path) -> None:
    roles = _open(folder, training=("train.npz", 5, 1000), validation=("test.npz", 0, 120), holdout=("test.npz", 120, 200))
    assert _seen(roles.calibration) == list(range(5, 517))
    assert roles.notes == ("calibration: the first 512 rows of training",)


def test_without_training_calibration_comes_from_what_is_left_of_validation(folder: Path) -> None:
    roles = _open(folder, validation="test.npz")
    assert roles.training is None and _seen(roles.calibration) == _seen(roles.validation)
    assert roles.notes == (
        "holdout: 100 of the 200 validation rows were set aside, with seed 0",
        "calibration: the first 100 rows of validation",
    )


def test_half_of_validation_is_set_aside_by_the_seed(folder: Path) -> None:
    roles = [_open(folder, seed, training="train.npz", validation=("test.npz", 0, 121)) for seed in (3, 3, 4)]
    held = [_seen(each.holdout) for each in roles]
    assert len(held[0]) == 60 and len(_seen(roles[0].validation)) == 61
    assert sorted(held[0] + _seen(roles[0].validation)) == list(range(1000, 1121))
    assert held[0] == held[1] != held[2] and held[0] == sorted(held[0])
    middle = np.mean(np.array(held[0]) < 1060)
    assert 0.3 < middle < 0.7, "the half must be spread over the file"


def test_equal_rows_are_set_aside_together(folder: Path) -> None:
    np.savez(folder / "twice.npz", x=np.concatenate([_rows(0, 50), _rows(0, 50)]))
    roles = _open(folder, validation="twice.npz")
    assert not set(_seen(roles.validation)) & set(_seen(roles.holdout))
    assert len(roles.holdout) == 50 and roles.excluded == 0
    np.testing.assert_array_equal(np.unique(_seen(roles.holdout), return_counts=True)[1], 2)


def test_validation_that_cannot_be_halved_is_refused(folder: Path) -> None:
    np.savez(folder / "same.npz", x=np.ones((6, 3), np.float32))
    with pytest.raises(
        DataError,
        match=r"validation must have enough different rows to set half aside as holdout, got 1 among 6 rows. Give more rows, or name",
    ) as caught:
        _open(folder, validation="same.npz")
    assert caught.value.field == "data.validation"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("calibration", "validation"),
        ("calibration", "holdout"),
        ("training", "validation"),
        ("training", "holdout"),
        ("validation", "holdout"),
    ],
)
def test_roles_that_name_the_same_rows_are_refused(one: str, other: str, folder: Path) -> None:
    refs: dict[str, Any] = {"validation": "test.npz", one: ("train.npz", 0, 130), other: ("train.npz", 100, 200)}
    with pytest.raises(
        DataError, match=rf"{one} and {other} must not share rows, got 30 shared rows \[100, 130\) of train.npz. Give {other} other rows"
    ) as caught:
        _open(folder, **refs)
    assert caught.value.field == f"data.{other}"


def test_the_same_file_under_another_name_is_the_same_file(folder: Path) -> None:
    (folder / "alias.npz").symlink_to(folder / "test.npz")
    with pytest.raises(DataError, match=r"got 20 shared rows \[100, 120\)"):
        _open(folder, training="train.npz", validation=("test.npz", 0, 120), holdout=("alias.npz", 100, 200))


def test_calibration_and_training_may_share_rows(folder: Path) -> None:
    roles = _open(folder, calibration=("train.npz", 0, 64), training=("train.npz", 32, 500), validation="test.npz")
    assert len(roles.calibration) == 64


def test_holdout_rows_that_other_roles_hold_are_taken_out(folder: Path) -> None:
    held = np.concatenate([_rows(2000, 2100), _rows(3, 5), _rows(1000, 1001)])
    np.savez_compressed(folder / "held.npz", x=held, labels=np.zeros(103))
    roles = _open(folder, training="train.npz", validation="test.npz", holdout="held.npz")
    assert _seen(roles.holdout) == list(range(2000, 2100)) and roles.excluded == 3
    assert roles.overlap == {"training": 2, "validation": 1} and roles.repeated == 0
    assert roles.rows == {"calibration": 512, "training": 1000, "validation": 200, "holdout": 100}
    assert roles.notes[1:] == ("holdout: 3 of 103 rows taken out because other roles hold equal inputs (2 in training, 1 in validation)",)


def test_a_holdout_with_too_many_seen_rows_is_refused(folder: Path) -> None:
    np.savez(folder / "held.npz", x=np.concatenate([_rows(2000, 2094), _rows(3, 9)]), labels=np.zeros(100))
    with pytest.raises(
        DataError,
        match=r"holdout must hold rows that the other roles do not, got 6 of 100 rows with equal inputs \(6 in training\); at most 5%",
    ) as caught:
        _open(folder, training="train.npz", validation="test.npz", holdout="held.npz")
    assert caught.value.field == "data.holdout"
    roles = _open(folder, training="train.npz", validation="test.npz", holdout=("held.npz", 0, 98))
    assert roles.excluded == 4


def test_training_rows_in_validation_are_noted(folder: Path) -> None:
    np.savez(folder / "mixed.npz", x=np.concatenate([_rows(2000, 2090), _rows(3, 13)]), labels=np.zeros(100))
    roles = _open(folder, training="train.npz", validation="mixed.npz", holdout="test.npz")
    assert roles.notes[-1] == "validation: 10 of 100 rows have equal inputs in training"
    assert roles.repeated == 10 and roles.overlap == {"training": 0, "validation": 0}


def test_a_holdout_without_the_labels_that_validation_has_is_refused(folder: Path) -> None:
    np.savez(folder / "bare.npz", x=_rows(3000, 3010))
    with pytest.raises(DataError, match=r"holdout must have labels where validation has them, got none in bare.npz. Add the labels"):
        _open(folder, validation="test.npz", holdout="bare.npz")


def test_errors_say_which_role_they_belong_to(folder: Path) -> None:
    rows = _rows(0, 10)
    rows[4, 1] = np.nan
    np.savez(folder / "broken.npz", x=rows)
    with pytest.raises(DataError, match=r"training: input x must be finite, .* first in row 4") as caught:
        _open(folder, training="broken.npz", validation="test.npz")
    assert caught.value.field == "data.training"
    with pytest.raises(DataError, match=r"absent.npz does not exist") as caught:
        _open(folder, validation="test.npz", holdout="absent.npz")
    assert caught.value.field == "data.holdout"


def test_roles_travel_to_another_process(folder: Path) -> None:
    roles = _open(folder, training="train.npz", validation="test.npz")
    copy = pickle.loads(pickle.dumps(roles))
    assert _seen(copy.holdout) == _seen(roles.holdout) and copy.notes == roles.notes
    assert copy.validation.digest() == roles.validation.digest() != roles.holdout.digest()
