from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from search_spaces.space import SpaceSpec
from tuner.errors import InputError, JobError
from tuner.job import Constraint, JobSpec, Target, load_job, parse_job

LEAST: dict[str, Any] = {
    "model": "m.onnx",
    "data": {"validation": {"file": "v.npz"}},
    "constraints": [{"metric": "top1", "max_drop": 0.01}],
}
JOB_KEYS = "budget, constraints, data, early_stopping, metrics, model, name, objectives, seed, space, stop, strategy, target, version"
SPACE_KEYS = (
    "accelerated_only, activation_symmetric, activations, calibrations, channels, granularities, keep, name, operators, quantize, rank, "
    "recovery, sparsity, summary, weight_symmetric, weights"
)


def refusal(**changes: Any) -> JobError:
    with pytest.raises(JobError) as error:
        parse_job(LEAST | changes)
    return error.value


def test_everything_but_model_validation_and_a_constraint_has_a_default() -> None:
    job = parse_job(LEAST)
    assert (job.version, job.name, job.metrics, job.objectives) == (1, "job", ("auto",), ("latency",))
    assert (job.space, job.strategy) == ("int8", "auto")
    assert (job.budget.trials, job.budget.seconds, job.budget.parallel, job.stop, job.seed) == (60, 900, 1, "budget", 0)
    assert job.target.name == "onnxruntime-cpu, batch 1, 1 thread"
    assert Target(threads=4, batch=8).name == "onnxruntime-cpu, batch 8, 4 threads"
    assert list(job.data.roles()) == ["validation"]
    assert JobSpec.model_validate_json(job.model_dump_json()) == job


def test_missing_fields_are_all_named() -> None:
    with pytest.raises(JobError) as error:
        parse_job({})
    assert str(error.value) == "; ".join(f"{name} is missing and has no default; add it" for name in ("model", "data", "constraints"))
    assert error.value.field == "model"
    assert isinstance(error.value, InputError) and isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"budgett": {}}, "budgett", f"budgett: unknown key 'budgett'. Did you mean 'budget'? Known: {JOB_KEYS}."),
        ({"xyz": 1}, "xyz", f"xyz: unknown key 'xyz'. Known: {JOB_KEYS}."),
        (
            {"budget": {"trial": 3}},
            "budget.trial",
            "budget.trial: unknown key 'trial'. Did you mean 'trials'? "
            "Known: memory_gb, parallel, seconds, threads, trial_seconds, trials.",
        ),
        (
            {"data": {"validation": {"file": "v", "row": [0, 1]}}},
            "data.validation.row",
            "data.validation.row: unknown key 'row'. Did you mean 'rows'? Known: file, rows, target.",
        ),
        (
            {"constraints": [{"metric": "top1", "max_drop": 0.1, "confidance": 0.9}]},
            "constraints.0.confidance",
            "constraints.0.confidance: unknown key 'confidance'. Did you mean 'confidence'? "
            "Known: at_least, at_most, confidence, max_drop, metric, relative.",
        ),
        (
            {"space": {"activation": ["u8"]}},
            "space.activation",
            f"space.activation: unknown key 'activation'. Did you mean 'activations'? Known: {SPACE_KEYS}.",
        ),
        (
            {"target": {"thread": 2}},
            "target.thread",
            "target.thread: unknown key 'thread'. Did you mean 'threads'? Known: batch, runtime, threads.",
        ),
    ],
)
def test_an_unknown_key_suggests_the_nearest(changes: dict[str, Any], field: str, text: str) -> None:
    error = refusal(**changes)
    assert (str(error), error.field) == (text, field)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 2}, "version: Input should be 1, got 2"),
        ({"name": "/etc"}, "name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$', got '/etc'"),
        ({"data": None}, "data must be a mapping, got None"),
        ({"data": {}}, "data.validation is missing and has no default; add it"),
        ({"constraints": []}, "constraints must have at least one entry, got []"),
        ({"constraints": {"metric": "top1"}}, "constraints must be a list"),
        ({"constraints": [{"max_drop": 0.1}]}, "constraints.0.metric is missing and has no default; add it"),
        ({"metrics": ["a", "b", "a"]}, "job: metrics must not repeat a name, got ['a', 'b', 'a']"),
        ({"objectives": ["size", "size"]}, "job: objectives must not repeat a name, got ['size', 'size']"),
        ({"space": 5}, "space must be a preset's name or a mapping, got 5"),
        ({"space": {"activations": ["u9"]}}, "space.activations.0: Input should be 'u8', 's8', 'u16' or 's16', got 'u9'"),
        ({"stop": "now"}, "stop: Input should be 'budget' or 'first', got 'now'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
        ({"budget": {"trials": 0}}, "budget.trials: Input should be greater than or equal to 1, got 0"),
        ({"budget": {"seconds": float("inf")}}, "budget.seconds: Input should be less than or equal to 31622400, got inf"),
        ({"budget": {"trial_seconds": 1e12}}, "budget.trial_seconds: Input should be less than or equal to 31622400, got 1000000000000.0"),
        ({"model": ["m"]}, "model must be a text, got ['m']"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(changes: dict[str, Any], text: str) -> None:
    assert str(refusal(**changes)) == text


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        ({}, "a constraint needs exactly one of max_drop, at_least, at_most, got none"),
        ({"max_drop": 0.1, "at_least": 0.9}, "a constraint needs exactly one of max_drop, at_least, at_most, got max_drop and at_least"),
        ({"at_most": 0.1, "at_least": 0.9}, "a constraint needs exactly one of max_drop, at_least, at_most, got at_least and at_most"),
        ({"at_least": 0.9, "relative": True}, "relative: true goes with max_drop only; a limit is always absolute"),
        ({"max_drop": 1, "relative": True}, "a relative max_drop is a fraction below 1 (0.01 is one per cent), got 1.0"),
    ],
)
def test_a_constraint_has_one_bound(constraint: dict[str, Any], text: str) -> None:
    assert str(refusal(constraints=[{"metric": "top1"} | constraint])) == f"constraints.0: {text}"


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        ({"max_drop": -0.1}, "constraints.0.max_drop: Input should be greater than or equal to 0, got -0.1"),
        ({"max_drop": float("inf")}, "constraints.0.max_drop: Input should be a finite number, got inf"),
        ({"at_least": float("nan")}, "constraints.0.at_least: Input should be a finite number, got nan"),
        ({"max_drop": 0.1, "confidence": 0.5}, "constraints.0.confidence: Input should be greater than 0.5, got 0.5"),
        ({"max_drop": 0.1, "confidence": 1}, "constraints.0.confidence: Input should be less than 1, got 1"),
    ],
)
def test_a_bound_is_a_sensible_number(constraint: dict[str, Any], text: str) -> None:
    assert str(refusal(constraints=[{"metric": "top1"} | constraint])) == text


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([5, 5], ": rows must be [first, end) with first < end, got [5, 5]; the split would be empty"),
        ([9, 5], ": rows must be [first, end) with first < end, got [9, 5]; the split would be empty"),
        ([0, 0], ".rows.1: Input should be greater than or equal to 1, got 0"),
        ([-5, 5], ".rows.0: Input should be greater than or equal to 0, got -5"),
        ([5], ".rows.1 is missing and has no default; add it, got [5]"),
        (5, ".rows must be a list, got 5"),
    ],
)
def test_empty_or_odd_rows_are_refused(rows: object, text: str) -> None:
    assert str(refusal(data={"validation": {"file": "v.npz", "rows": rows}})) == f"data.validation{text}"


@pytest.mark.parametrize(
    ("constraint", "sentence"),
    [
        (Constraint(metric="top1", max_drop=0.01), "top1 may get worse by at most 0.01"),
        (
            Constraint(metric="top1", max_drop=0.01, relative=True, confidence=0.95),
            "top1 may get worse by at most 0.01 of its value, with 95% confidence",
        ),
        (Constraint(metric="size_bytes", at_most=300000), "size_bytes must be at most 300000"),
        (Constraint(metric="f1", at_least=0.0), "f1 must be at least 0"),
    ],
)
def test_a_constraint_as_a_sentence(constraint: Constraint, sentence: str) -> None:
    assert constraint.sentence() == sentence


def test_paths_count_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    roles = {
        "validation": {"file": "../v.npz", "rows": [0, 7]},
        "holdout": {"file": str(tmp_path / "h.npz")},
        "training": {"file": "~/t.npz"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(LEAST | {"model": "nets/m.onnx", "data": roles}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in (folder / "job.yaml", Path("jobs/job.yaml")):
        job = load_job(path)
        assert job.model == str(folder / "nets" / "m.onnx")
        assert {role: ref.file for role, ref in job.data.roles().items()} == {
            "training": str(tmp_path / "home" / "t.npz"),
            "validation": str(tmp_path / "v.npz"),
            "holdout": str(tmp_path / "h.npz"),
        }
        assert job.data.validation.rows == (0, 7)


def test_a_space_can_be_written_into_the_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"space": {"activations": ["s8"], "calibrations": ["mse", "p99.5"], "operators": False}}))
    assert load_job(path).space == SpaceSpec(activations=("s8",), calibrations=("mse", "p99.5"), operators=False)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"model: [", "is not valid YAML: while parsing a flow node"),
        (b"- a\n- b\n", "must hold a mapping with at least model, data and constraints, got list"),
        (b"", "must hold a mapping with at least model, data and constraints, got NoneType"),
        (b"\xff\xfe\x00", "cannot be read ('utf-8' codec can't decode"),
        (b"!!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(JobError) as error:
        load_job(path)
    assert f"the job file {path} {text}" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(JobError) as error:
        load_job(path)
    assert str(error.value) == f"the job file {path} cannot be read (No such file or directory); give the path of a YAML job file"
