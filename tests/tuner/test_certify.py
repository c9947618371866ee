from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import onnxruntime
import pytest
from tiny_jobs import dense, dense_data, tiny_job

from tuner import certify as certify_module
from tuner.certify import certify, overall
from tuner.errors import StorageError
from tuner.evaluator import Evaluator
from tuner.job import Constraint
from tuner.plan import CompressionPlan, make_plan
from tuner.results import Decision, Verdict

GOOD = "u8-asym-minmax/s8-sym-channel"
PLAN = make_plan({layer: {"quantize": GOOD} for layer in ("fc1", "fc2")}, 0)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long is timed is no matter of these tests."""
    monkeypatch.setattr(certify_module, "LATENCY_SECONDS", 0.05)
    monkeypatch.setattr(certify_module, "LATENCY_BLOCKS", 3)


def make(folder: Path, *constraints: Constraint) -> Evaluator:
    limits = constraints or (Constraint(metric="top1", max_drop=0.05, confidence=0.9),)
    return Evaluator(tiny_job(folder, constraints=limits), folder / "cache")


def test_a_finalist_is_measured_on_the_holdout_from_its_file(tmp_path: Path) -> None:
    evaluator = make(tmp_path)
    path = tmp_path / "out" / "pareto" / "3.onnx"
    found = certify(evaluator, 3, PLAN, 1, path)
    data = dense_data(dense(), 1128)
    outputs = {}
    for name, model in (("original", dense()), ("candidate", path.read_bytes())):
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs[name] = session.run(None, {"x": data["x"][728:]})[0].argmax(axis=1) == data["labels"][728:]
    outcome = found.outcome
    assert outcome.measurements["top1"].value == pytest.approx(outputs["candidate"].mean())
    assert found.baseline.measurements["top1"].value == pytest.approx(outputs["original"].mean())
    assert outcome.measurements["top1"].samples == 400
    assert outcome.drop.value == pytest.approx(outputs["original"].mean() - outputs["candidate"].mean())
    assert outcome.drop.split == "holdout"
    assert outcome.drop.confidence == pytest.approx(0.95)
    assert outcome.measurements["size_bytes"].value == path.stat().st_size
    assert outcome.size_ratio == path.stat().st_size / len(dense())
    assert found.applied.result_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert outcome.layers == {"fc1": GOOD, "fc2": GOOD}
    assert (outcome.trial, outcome.file, outcome.plan_digest) == (3, "3.onnx", PLAN.digest())
    for measurements in (outcome.measurements, found.baseline.measurements):
        assert measurements["latency_ms"].value > 0
        assert measurements["peak_memory_bytes"].value > 0


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_each_further_finalist_is_tested_at_half_of_the_error(tmp_path: Path, attempt: int) -> None:
    found = certify(make(tmp_path), 0, PLAN, attempt, tmp_path / "0.onnx")
    assert found.outcome.drop.confidence == pytest.approx(1 - 0.1 / 2**attempt)


def test_without_a_confidence_the_estimate_decides_whatever_the_attempt(tmp_path: Path) -> None:
    found = certify(make(tmp_path, Constraint(metric="top1", max_drop=0.5)), 0, PLAN, 3, tmp_path / "0.onnx")
    assert (found.outcome.verdict, found.outcome.drop.confidence, found.rows_needed) == ("met", 0.95, None)


def test_the_original_is_certified_without_doubt(tmp_path: Path) -> None:
    """It differs from itself on no row, so not even the smallest drop leaves it undecided."""
    evaluator = make(tmp_path, Constraint(metric="top1", max_drop=0.0, confidence=0.99))
    found = certify(evaluator, 9, CompressionPlan(), 1, tmp_path / "9.onnx")
    assert found.outcome.verdict == "met"
    assert (found.outcome.drop.lower, found.outcome.drop.upper) == (0.0, 0.0)
    assert (found.outcome.speedup.value, found.outcome.size_ratio, found.outcome.layers) == (1.0, 1.0, {})
    assert (tmp_path / "9.onnx").read_bytes() == dense()


def test_too_few_rows_are_told_how_many_are_needed(tmp_path: Path) -> None:
    evaluator = make(tmp_path, Constraint(metric="top1", max_drop=0.01, confidence=0.99))
    found = certify(evaluator, 0, PLAN, 1, tmp_path / "0.onnx")
    if found.outcome.drop.value < 0.01:
        assert found.outcome.verdict == "undecided"
        assert found.rows_needed is not None
        assert found.rows_needed > 400
    else:
        assert found.rows_needed is None


def test_a_constraint_on_a_cost_is_judged_beside(tmp_path: Path) -> None:
    limits = (Constraint(metric="size_bytes", at_most=100), Constraint(metric="top1", max_drop=0.5))
    found = certify(make(tmp_path, *limits), 0, PLAN, 1, tmp_path / "0.onnx")
    assert [(verdict.metric, verdict.decision) for verdict in found.outcome.verdicts] == [("top1", "met"), ("size_bytes", "missed")]
    assert found.outcome.verdict == "missed"
    assert found.outcome.drop.value == found.outcome.verdicts[0].drop


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "3.onnx")

    evaluator = make(tmp_path)
    evaluator.build(PLAN, {})
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"writing 3\.onnx failed: No space left on device .*Free some space"):
        certify(evaluator, 3, PLAN, 1, tmp_path / "3.onnx")


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        (["met", "met"], "met"),
        (["met", "undecided"], "undecided"),
        (["undecided", "missed"], "missed"),
        (["met", "missed"], "missed"),
    ],
)
def test_the_worst_verdict_counts(decisions: list[Decision], expected: Decision) -> None:
    verdicts = [
        Verdict(metric="m", drop=0, lower=0, upper=0, confidence=0.95, decision=decision, violation=0) for decision in decisions
    ]
    assert overall(verdicts) == expected
