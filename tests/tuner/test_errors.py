from __future__ import annotations

import errno

import pytest

from tuner.errors import (
    AccutuneError,
    DataError,
    InputError,
    JobCancelled,
    JobError,
    ModelError,
    PlanError,
    StorageError,
    TrainingError,
    TrialError,
    UnknownName,
    WrongKind,
    disk_error,
    unknown_name,
)


@pytest.mark.parametrize("kind", [JobError, ModelError, DataError, PlanError, StorageError, WrongKind])
def test_what_the_user_gave_is_a_value_error_with_a_field(kind: type[InputError]) -> None:
    error = kind("text", field="data.file")
    assert isinstance(error, InputError) and isinstance(error, ValueError) and isinstance(error, AccutuneError)
    assert (str(error), error.field) == ("text", "data.file")


def test_what_breaks_a_trial_or_ends_a_job_is_no_input_error() -> None:
    error = TrialError("text", step="build", kind="OSError")
    assert (str(error), error.step, error.kind) == ("text", "build", "OSError")
    assert not isinstance(error, InputError) and not issubclass(JobCancelled, InputError)
    training = TrainingError("text")
    assert isinstance(training, TrialError) and (training.step, training.kind) == ("recover", "TrainingError")


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("top11", ["top5", "top1", "f1"], "unknown metric 'top11'. Did you mean 'top1'? Known: f1, top1, top5."),
        ("zzz", ["top1"], "unknown metric 'zzz'. Known: top1."),
        ("top1", [], "unknown metric 'top1'. Known: none."),
    ],
)
def test_an_unknown_name_suggests_the_nearest_known(name: str, known: list[str], text: str) -> None:
    assert unknown_name("metric", name, known) == text
    error = UnknownName("metric", name, known, field="metrics.0")
    assert (str(error), error.field) == (text, "metrics.0")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "Free some space, then go on with --resume."),
        (errno.EDQUOT, "Free some space, then go on with --resume."),
        (errno.EFBIG, "The file would be larger than a process may write here; use fewer rows or a smaller model."),
        (errno.EACCES, "Choose another folder, or change its permissions."),
    ],
)
def test_a_disk_error_says_what_to_do(number: int, way_out: str) -> None:
    error = disk_error(OSError(number, "reason", "/out/best.onnx"), "writing the model")
    assert isinstance(error, StorageError)
    assert str(error) == f"writing the model failed: reason (/out/best.onnx). {way_out}"


def test_a_disk_error_without_a_file() -> None:
    text = "writing failed: odd (no file named). Choose another folder, or change its permissions."
    assert str(disk_error(OSError("odd"), "writing")) == text
