from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tiny_jobs import CLASSES, FEATURES, dense, dense_data, net, save_data, tiny_job

from tuner.errors import DataError, InputError, JobError, UnknownName
from tuner.evaluator import Evaluator
from tuner.job import Constraint, DataRef, DataSpec, JobSpec, Target
from tuner.preflight import baseline, check_job, check_names, search_aims
from tuner.results import Preflight

ROWS = 300


def checked(folder: Path, **changes: Any) -> Preflight:
    job = tiny_job(folder, changes.pop("model", None), changes.pop("arrays", None), **changes)
    check_names(job)
    return preflight(Evaluator(job, folder / "cache"))


def preflight(evaluator: Evaluator) -> Preflight:
    return baseline(evaluator, check_job(evaluator))


def good_data() -> dict[str, np.ndarray]:
    return dense_data(dense(), ROWS)


def test_a_good_job_is_told_what_it_will_do(tmp_path: Path) -> None:
    found = checked(tmp_path, arrays=dense_data(dense(), 1128))
    assert found.rows == {"calibration": 128, "training": 0, "validation": 600, "holdout": 400}
    assert [layer.name for layer in found.space.layers] == ["fc1", "fc2", "fc3"]
    assert found.metrics == ("top1",)
    assert found.allowed == {"top1": 0.02}
    assert found.baseline.measurements["size_bytes"].value == len(dense())
    assert 0.85 < found.baseline.measurements["top1"].value < 1.0


def test_a_relative_drop_is_resolved_against_the_baseline(tmp_path: Path) -> None:
    found = checked(tmp_path, constraints=(Constraint(metric="top1", max_drop=0.1, relative=True),))
    assert found.allowed["top1"] == pytest.approx(0.1 * found.baseline.measurements["top1"].value)


@pytest.mark.parametrize(
    ("changes", "kind", "field", "text"),
    [
        ({"metrics": ("top-1",)}, UnknownName, "metrics", "unknown metric 'top-1'. Did you mean 'top1'?"),
        ({"space": "int9"}, UnknownName, "space", "unknown space 'int9'. Did you mean 'int8'?"),
        ({"objectives": ("latenzy",)}, UnknownName, "objectives", "unknown objective 'latenzy'. Did you mean 'latency'?"),
        (
            {"target": Target(runtime="onnxruntime-gpu")},
            UnknownName,
            "target.runtime",
            "unknown runtime 'onnxruntime-gpu'. Did you mean 'onnxruntime-cpu'?",
        ),
        (
            {"constraints": (Constraint(metric="size_byte", at_most=1),)},
            UnknownName,
            "constraints",
            "unknown metric of a constraint 'size_byte'. Did you mean 'size_bytes'?",
        ),
        (
            {"constraints": (Constraint(metric="top1", at_least=90),)},
            JobError,
            "constraints",
            "constraint: top1 can be at most 1, got at_least 90; is it a percentage?",
        ),
        (
            {"constraints": (Constraint(metric="size_bytes", max_drop=0.5),)},
            JobError,
            "constraints",
            "constraint on size_bytes: a cost can only be limited with at_most",
        ),
        (
            {"constraints": (Constraint(metric="size_bytes", at_most=1000),)},
            JobError,
            "constraints",
            "no constraint protects accuracy; add one like {metric: top1, max_drop: 0.01}",
        ),
    ],
)
def test_names_and_demands_are_checked_before_any_file_is_opened(
    changes: dict[str, Any], kind: type[InputError], field: str, text: str
) -> None:
    nowhere = DataSpec(validation=DataRef(file="/nowhere/data.npz"))
    job = JobSpec(model="/nowhere/model.onnx", data=nowhere, constraints=(Constraint(metric="top1", max_drop=0.01),))
    with pytest.raises(kind) as caught:
        check_names(job.model_copy(update=changes))
    assert text in str(caught.value)
    assert caught.value.field == field


def without_labels(data: dict[str, np.ndarray]) -> None:
    del data["labels"]


def labels_from_one(data: dict[str, np.ndarray]) -> None:
    data["labels"] = data["labels"] + 1


def a_missing_value(data: dict[str, np.ndarray]) -> None:
    data["x"][150, 3] = np.nan


def too_many_features(data: dict[str, np.ndarray]) -> None:
    data["x"] = np.concatenate([data["x"], data["x"]], axis=1)


def text_features(data: dict[str, np.ndarray]) -> None:
    data["x"] = data["x"].astype(str)


def another_name(data: dict[str, np.ndarray]) -> None:
    data["X"] = data.pop("x")


def shorter_labels(data: dict[str, np.ndarray]) -> None:
    data["labels"] = data["labels"][:-1]


@pytest.mark.parametrize(
    ("spoil", "field", "texts"),
    [
        (without_labels, "metrics", ["metric 'top1' needs labels", "use the metric agreement"]),
        (labels_from_one, None, ["0..4", "5"]),
        (a_missing_value, "data.validation", ["x", "NaN"]),
        (too_many_features, "data.calibration", ["x", "16", "32"]),
        (text_features, "data.calibration", ["x"]),
        (another_name, "data.calibration", ["'x'", "X"]),
        (shorter_labels, "data.calibration", ["labels", "299", "300"]),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], None], field: str | None, texts: list[str]
) -> None:
    data = good_data()
    spoil(data)
    with pytest.raises(InputError) as caught:
        checked(tmp_path, arrays=data)
    message = str(caught.value)
    assert all(text.lower() in message.lower() for text in texts), message
    assert caught.value.field == field


def test_labels_out_of_range_are_found_in_the_holdout_too(tmp_path: Path) -> None:
    data = good_data()
    data["labels"][-1] = CLASSES
    with pytest.raises(DataError) as caught:
        checked(tmp_path, arrays=data)
    assert str(caught.value).startswith("label 5 in row 299 of data.npz must be a whole number in 0..4, the model's classes.")


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (
            Constraint(metric="top1", at_most=0.9),
            "constraint on top1: at_most 0.9 bounds the wrong side, because higher is better; use at_least",
        ),
        (Constraint(metric="auto", at_least=90), "constraint: top1 can be at most 1, got at_least 90; is it a percentage?"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(tmp_path: Path, constraint: Constraint, text: str) -> None:
    with pytest.raises(JobError) as caught:
        checked(tmp_path, arrays=good_data(), constraints=(constraint,))
    assert str(caught.value) == text
    assert caught.value.field == "constraints"


def test_a_model_with_constant_outputs_is_refused(tmp_path: Path) -> None:
    zero = {"w": np.zeros((FEATURES, CLASSES)), "b": np.arange(CLASSES) * 1.0}
    model = net([helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc")], zero, ["batch", FEATURES], ["batch", CLASSES])
    with pytest.raises(DataError, match="the baseline says nothing: the original model gives the same output for all"):
        checked(tmp_path, model=model, arrays=good_data())


def test_a_model_that_does_not_repeat_itself_is_refused(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((FEATURES, CLASSES))
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="noise"),
        helper.make_node("Add", ["x", "noise"], ["noisy"], name="add"),
        helper.make_node("Gemm", ["noisy", "w"], ["y"], name="fc"),
    ]
    model = net(nodes, {"w": weight}, ["batch", FEATURES], ["batch", CLASSES])
    with pytest.raises(DataError, match=r"the original model gives different outputs for the same rows \(by up to .*\), so no drop can be"):
        checked(tmp_path, model=model, arrays=good_data())


def test_a_model_without_a_layer_to_compress_is_refused(tmp_path: Path) -> None:
    model = net([helper.make_node("Relu", ["x"], ["y"], name="relu")], {}, ["batch", FEATURES], ["batch", FEATURES])
    with pytest.raises(JobError, match="has no layer that the space 'small' can compress; it needs at least one of Conv, ") as caught:
        checked(tmp_path, model=model, arrays=good_data())
    assert caught.value.field == "space"


def test_a_first_output_without_rows_is_refused(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((FEATURES, CLASSES))
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="fc"),
        helper.make_node("ReduceMean", ["h"], ["y"], name="mean", axes=[0], keepdims=0),
    ]
    model = net(nodes, {"w": weight}, ["batch", FEATURES], [CLASSES])
    with pytest.raises(DataError, match=r"the model's first output 'y' must have one row per input row, got shape \(5,\) for 64 rows"):
        checked(tmp_path, model=model, arrays=good_data())


def test_a_holdout_too_small_to_certify_is_told(tmp_path: Path) -> None:
    found = checked(tmp_path, arrays=good_data(), constraints=(Constraint(metric="top1", max_drop=0.005, confidence=0.95),))
    (note,) = [note for note in found.notes if "cannot certify" in note]
    held = found.rows["holdout"]
    assert note.startswith(f"{held} holdout rows cannot certify a drop of 0.005 in top1 at 95% confidence, even for a model")
    assert note.endswith("at least 765 are needed")


@pytest.mark.parametrize(
    ("confidence", "discordance", "aim"),
    [(None, 0.1, 0.1), (0.95, 0.0, 0.1 - 1.95996 / 400), (0.95, 0.04, 0.1 - 1.95996 * 0.2 / 20), (0.95, 1.0, 0.05)],
)
def test_the_search_aims_lower_where_the_holdout_must_certify(
    tmp_path: Path, confidence: float | None, discordance: float, aim: float
) -> None:
    """400 holdout rows; the first finalist is tested at half of the error."""
    job = tiny_job(tmp_path, constraints=(Constraint(metric="top1", max_drop=0.1, confidence=confidence),))
    assert search_aims(Evaluator(job, tmp_path / "cache"), discordance)["top1"] == pytest.approx(aim, abs=1e-5)


def test_files_that_change_under_a_job_are_noticed(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, None, good_data())
    preflight(Evaluator(job, tmp_path / "cache"))
    preflight(Evaluator(job, tmp_path / "cache"))
    save_data(tmp_path / "data.npz", dense_data(dense(), ROWS + 1, seed=5))
    with pytest.raises(JobError, match="file has changed since this job began"):
        preflight(Evaluator(job, tmp_path / "cache"))
