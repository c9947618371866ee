"""What is told of a job before it is submitted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_jobs import CLASSES, dense, dense_data, save_data, tiny_job

from search_spaces.space import LayerChoices, SearchSpace
from tuner.evaluator import Evaluator
from tuner.job import Budget, Constraint, DataRef, DataSpec, JobSpec
from tuner.outlook import preview
from tuner.preview import JobPreview, LabelRange, Overlap

AGREEMENT: dict[str, Any] = {"metrics": ("agreement",), "constraints": (Constraint(metric="agreement", max_drop=0.02),)}


def asked(folder: Path, job: JobSpec) -> JobPreview:
    return preview(Evaluator(job.model_copy(update={"budget": Budget(threads=1)}), folder / "cache"), job.budget)


def with_data(job: JobSpec, **roles: DataRef | None) -> JobSpec:
    return job.model_copy(update={"data": job.data.model_copy(update=roles)})


def test_a_job_that_names_everything(tmp_path: Path) -> None:
    found = asked(tmp_path, tiny_job(tmp_path))
    assert (found.goal, found.metrics) == ("top1 may get worse by at most 0.02", ("top1",))
    assert found.rows == {"calibration": 128, "training": 0, "validation": 600, "holdout": 400}
    assert found.labels == LabelRange(low=0, high=CLASSES - 1, classes=CLASSES)
    assert found.overlap == Overlap()
    assert (found.layers, found.options, found.plans, found.seconds_most) == (3, 5, 125.0, 120.0)
    assert [note for note in found.notes if not note.startswith("processor:")] == []


def test_defaults_are_filled_in_and_told(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, metrics=("auto",), constraints=(Constraint(metric="auto", max_drop=0.1, relative=True),))
    whole = DataRef(file=job.data.validation.file)
    found = asked(tmp_path, job.model_copy(update={"data": DataSpec(validation=whole)}))
    assert found.rows == {"calibration": 512, "training": 0, "validation": 564, "holdout": 564}
    assert (found.metrics, found.goal) == (("top1",), "top1 may get worse by at most 0.1 of its value")
    assert found.notes[:2] == (
        "holdout: 564 of the 1128 validation rows were set aside, with seed 0",
        "calibration: the first 512 rows of validation",
    )


def test_rows_that_roles_share_are_counted(tmp_path: Path) -> None:
    job, arrays = tiny_job(tmp_path), dense_data(dense(), 1128)
    arrays["x"][[800, 801, 802]] = arrays["x"][[5, 200, 201]]
    arrays["x"][300] = arrays["x"][6]
    train = DataRef(file=str(save_data(tmp_path / "train.npz", {name: array[:128] for name, array in arrays.items()})))
    save_data(tmp_path / "data.npz", arrays)
    found = asked(tmp_path, with_data(job, training=train))
    assert found.overlap == Overlap(calibration=1, training=1, validation=2, validation_in_training=1)
    assert found.rows == {"calibration": 128, "training": 128, "validation": 600, "holdout": 397}


@pytest.mark.parametrize(
    ("labels", "changes", "found"),
    [
        (None, AGREEMENT, None),
        (np.arange(1128) % 2, AGREEMENT, None),
        (np.arange(1128) % 3 + 1, {}, LabelRange(low=1, high=3, classes=3)),
        (np.tile(np.arange(1128)[:, None] % 7 - 3, CLASSES), {"metrics": ("r2",)}, LabelRange(low=-3, high=3, classes=7)),
        (np.tile(np.arange(1128)[:, None] / 7, CLASSES), {"metrics": ("r2",)}, None),
    ],
    ids=["no labels", "not needed", "classes", "whole numbers", "fractions"],
)
def test_labels_are_told_where_they_count(tmp_path: Path, labels: Any, changes: dict[str, Any], found: LabelRange | None) -> None:
    arrays = {"x": dense_data(dense(), 1128)["x"]} | ({} if labels is None else {"labels": labels})
    if changes.get("metrics") == ("r2",):
        changes = changes | {"constraints": (Constraint(metric="r2", max_drop=0.1),)}
    assert asked(tmp_path, tiny_job(tmp_path, None, arrays, **changes)).labels == found


def test_the_goal_is_what_must_not_be_lost(tmp_path: Path) -> None:
    constraints = (Constraint(metric="size_bytes", at_most=5000), Constraint(metric="auto", max_drop=0.1))
    assert asked(tmp_path, tiny_job(tmp_path, constraints=constraints)).goal == "top1 may get worse by at most 0.1"


def test_a_space_without_measure_has_the_largest_number(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    evaluator = Evaluator(job, tmp_path / "cache")
    options = ("float", *(f"u8-asym-p99.{n}/s8-sym-channel" for n in range(1, 10)))
    layers = tuple(LayerChoices(name=f"fc{n}", op="Gemm", input="", options=options) for n in range(400))
    evaluator.__dict__["space"] = SearchSpace(name="vast", layers=layers)
    found = preview(evaluator, job.budget)
    assert (found.layers, found.options, found.plans) == (400, 10, sys.float_info.max)
    assert json.loads(found.model_dump_json())["plans"] == sys.float_info.max


def test_the_estimate_grows_with_the_trials_and_ends_with_the_budget(tmp_path: Path) -> None:
    def told(**budget: Any) -> JobPreview:
        return asked(tmp_path, tiny_job(tmp_path, budget=Budget(**budget)))

    few, many, hurried = told(trials=5), told(trials=100), told(trials=100, seconds=4.0)
    assert few.seconds < many.seconds <= told(trials=10_000).seconds < many.seconds + 10  # There are 125 plans.
    assert (few.seconds_most, hurried.seconds_most) == (900.0, 4.0)
    assert hurried.seconds < many.seconds
    (note,) = [note for note in hurried.notes if note.startswith("budget:")]
    assert "s go by before the search, more than a budget of 4 s leaves, so one trial is made; give more seconds" in note
