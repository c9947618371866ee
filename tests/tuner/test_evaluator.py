from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from tiny_jobs import CLASSES, FEATURES, dense, dense_data, net, tiny_job

from search_spaces.space import SpaceSpec
from tuner import calibration, preflight
from tuner import evaluator as evaluator_module
from tuner.errors import JobCancelled, StorageError, TrialError
from tuner.evaluator import Evaluator
from tuner.job import Budget, Constraint
from tuner.plan import CompressionPlan, make_plan
from tuner.preflight import search_aims
from tuner.results import TrialResult, TrialState

GOOD, POOR = "u8-asym-minmax/s8-sym-channel", "u8-asym-minmax/s8-sym-tensor"
LAYERS = ("fc1", "fc2", "fc3")


def plan_of(**schemes: str) -> CompressionPlan:
    return make_plan({layer: {"quantize": scheme} for layer, scheme in schemes.items()}, 0)


def evaluate(evaluator: Evaluator, plan: CompressionPlan, *, aim: float = 0.02, **options: Any) -> TrialResult:
    options.setdefault("measure_latency", False)
    return evaluator.evaluate(7, plan, dict(plan.layers("quantize")), aims={"top1": aim}, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluator")


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    return Evaluator(tiny_job(folder), folder / "cache")


def accuracy_of(model: bytes, job_data: dict[str, np.ndarray], rows: slice) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": job_data["x"][rows]})[0]
    return float((outputs.argmax(axis=1) == job_data["labels"][rows]).mean())


def test_a_trial_says_what_the_deployed_file_does(evaluator: Evaluator) -> None:
    plan = plan_of(fc1=GOOD, fc2=GOOD, fc3=GOOD)
    trial = evaluate(evaluator, plan, full=True)
    assert (trial.number, trial.state, trial.plan_digest) == (7, TrialState.COMPLETE, plan.digest())
    assert trial.assignment == dict.fromkeys(LAYERS, GOOD)
    data = evaluator.compressor.build(evaluator.compressor.resolve(plan))
    accuracy = accuracy_of(data, dense_data(dense(), 1128), slice(128, 728))
    assert trial.measurements["top1"].value == pytest.approx(accuracy)
    assert trial.measurements["top1"].samples == 600
    assert trial.measurements["size_bytes"].value == len(data)
    assert trial.measurements["params"].value == 16 * 32 + 32 + 32 * 32 + 32 + 32 * 5 + 5
    assert trial.measurements["macs"].value == 16 * 32 + 32 * 32 + 32 * 5
    assert "compressed_size_bytes" not in trial.measurements
    (verdict,) = trial.verdicts
    original = accuracy_of(dense(), dense_data(dense(), 1128), slice(128, 728))
    assert verdict.drop == pytest.approx(original - accuracy)
    assert (verdict.metric, verdict.rule, verdict.samples) == ("top1", "point estimate", 600)
    assert verdict.violation == pytest.approx(original - accuracy - 0.02)
    assert list(trial.timings) == ["resolve", "build", "session", "accuracy"]
    assert (trial.speedup, trial.notes, trial.error) == (None, (), None)


def test_early_stopping_saves_rows_and_keeps_the_verdict(folder: Path, evaluator: Evaluator) -> None:
    plan = plan_of(fc1=GOOD)
    early, whole = evaluate(evaluator, plan, aim=0.4), evaluate(evaluator, plan, aim=0.4, full=True)
    assert early.measurements["top1"].samples < 600
    assert early.verdicts[0].rule == "anytime-valid test"
    assert (early.state, early.feasible) == (TrialState.COMPLETE, whole.feasible) == (TrialState.COMPLETE, True)
    off = Evaluator(evaluator.job.model_copy(update={"early_stopping": False}), folder / "cache")
    assert evaluate(off, plan, aim=0.4).measurements["top1"].samples == 600


def test_a_clearly_bad_plan_is_stopped(tmp_path: Path) -> None:
    model = dense(spoil=True)
    job = tiny_job(tmp_path, model, dense_data(model, 4128))
    trial = evaluate(Evaluator(job, tmp_path / "cache"), plan_of(fc2=POOR), measure_latency=True)
    assert (trial.state, trial.feasible, trial.verdicts[0].decision) == (TrialState.STOPPED, False, "missed")
    assert trial.measurements["top1"].samples < len(Evaluator(job, tmp_path / "cache").roles.validation)
    assert trial.speedup is None
    assert "latency_ms" not in trial.measurements


def test_latency_is_timed_where_asked_and_met(evaluator: Evaluator) -> None:
    trial = evaluate(evaluator, plan_of(fc2=GOOD), measure_latency=True, aim=0.4)
    assert trial.speedup is not None
    assert trial.speedup.lower <= trial.speedup.value <= trial.speedup.upper
    assert trial.measurements["latency_ms"].value > 0
    assert trial.measurements["latency_ms"].target == "onnxruntime-cpu, batch 1, 1 thread"


def test_calibration_runs_once_per_cache(folder: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluator.statistics

    def never(*_: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(calibration, "collect", never)
    again = Evaluator(evaluator.job, folder / "cache").statistics
    assert list(again) == list(first)
    assert all((again[name].low, again[name].high, again[name].count) == (s.low, s.high, s.count) for name, s in first.items())


def test_the_plan_that_changes_nothing_is_the_original(evaluator: Evaluator) -> None:
    trial = evaluate(evaluator, plan_of(), full=True)
    assert trial.measurements["size_bytes"].value == len(dense())
    assert trial.verdicts[0].drop == 0.0


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (plan_of(fc9=GOOD), "the plan quantizes 'fc9', which is no quantizable layer of this model"),
        (plan_of(fc1="nonsense"), "'nonsense' is no quantization scheme"),
    ],
)
def test_a_plan_that_does_not_fit_fails_at_its_step(evaluator: Evaluator, plan: CompressionPlan, text: str) -> None:
    with pytest.raises(TrialError) as caught:
        evaluate(evaluator, plan)
    assert text in str(caught.value)
    assert caught.value.step == "resolve"


@pytest.mark.parametrize(("error", "kind"), [(MemoryError(), "MemoryError"), (ZeroDivisionError("nought"), "ZeroDivisionError")])
def test_whatever_breaks_is_told_with_its_step(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(evaluator_module, "score", breaks)
    with pytest.raises(TrialError) as caught:
        evaluate(evaluator, plan_of(fc1=GOOD))
    assert (caught.value.kind, caught.value.step, str(caught.value)) == (kind, "accuracy", str(error) or kind)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), StorageError("the cache cannot be written")])
def test_a_full_disk_is_no_fault_of_the_trial(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(evaluator_module, "score", breaks)
    with pytest.raises(StorageError):
        evaluate(evaluator, plan_of(fc1=GOOD))


def test_cancelling_passes_through(folder: Path, evaluator: Evaluator) -> None:
    def stop() -> None:
        raise JobCancelled("stop")

    with pytest.raises(JobCancelled):
        evaluate(Evaluator(evaluator.job, folder / "cache", stop), plan_of(fc1=GOOD), full=True)


def test_layers_that_the_runtime_leaves_in_float_are_noted(folder: Path) -> None:
    space = SpaceSpec(activations=("u16",), calibrations=("minmax",), granularities=("tensor",), operators=False)
    job = tiny_job(folder / "u16", space=space)
    trial = evaluate(Evaluator(job, folder / "u16" / "cache"), plan_of(fc2="u16-asym-minmax/s8-sym-tensor"), full=True)
    assert trial.notes == ("fc2: the runtime runs it in float (u16-asym-minmax/s8-sym-tensor)",)


def test_costs_that_the_job_limits_are_judged(tmp_path: Path) -> None:
    limits = (
        Constraint(metric="size_bytes", at_most=1000),
        Constraint(metric="top1", max_drop=0.5),
        Constraint(metric="compressed_size_bytes", at_most=10**6),
        Constraint(metric="peak_memory_bytes", at_most=10**9),
    )
    trial = evaluate(Evaluator(tiny_job(tmp_path, constraints=limits), tmp_path / "cache"), plan_of(fc2=GOOD), full=True)
    assert [(v.metric, v.decision) for v in trial.verdicts] == [
        ("top1", "met"),
        ("size_bytes", "missed"),
        ("compressed_size_bytes", "met"),
        ("peak_memory_bytes", "undecided"),
    ]
    assert not trial.feasible
    assert 0 < trial.measurements["compressed_size_bytes"].value < trial.measurements["size_bytes"].value


def test_two_constraints_on_one_metric_both_count(tmp_path: Path) -> None:
    limits = (Constraint(metric="top1", max_drop=0.5), Constraint(metric="top1", at_least=0.999))
    evaluator = Evaluator(tiny_job(tmp_path, constraints=limits), tmp_path / "cache")
    trial = evaluate(evaluator, plan_of(fc2=GOOD), full=True)
    assert [(verdict.metric, verdict.decision) for verdict in trial.verdicts] == [("top1", "met"), ("top1", "missed")]
    baseline = evaluator.validation.base_value(evaluator.metrics[0])
    assert search_aims(evaluator, 0.0) == {"top1": pytest.approx(baseline - 0.999)}
    assert preflight.baseline(evaluator).allowed == {"top1": pytest.approx(baseline - 0.999)}
    early = evaluate(evaluator, plan_of(fc2=GOOD), aim=baseline - 0.999)
    assert not early.feasible
    assert early.measurements["top1"].samples < 600


@pytest.mark.parametrize(("labels", "name"), [(True, "top1"), (False, "agreement")])
def test_the_metric_auto_is_top1_or_agreement(tmp_path: Path, labels: bool, name: str) -> None:
    data = dense_data(dense(), 400)
    data = data if labels else {"x": data["x"]}
    job = tiny_job(tmp_path, data=data, metrics=("auto",), constraints=(Constraint(metric="auto", max_drop=0.3, confidence=0.9),))
    evaluator = Evaluator(job, tmp_path / "cache")
    assert [metric.name for metric in evaluator.metrics] == [name]
    assert list(search_aims(evaluator, 0.01)) == [name]
    trial = evaluate(evaluator, plan_of(fc2=GOOD), full=True)
    assert [verdict.metric for verdict in trial.verdicts] == [name]
    assert trial.feasible


def test_metrics_come_from_the_job_its_constraints_and_its_objectives_each_once(tmp_path: Path) -> None:
    job = tiny_job(
        tmp_path,
        metrics=("auto", "top1"),
        constraints=(Constraint(metric="macro_f1", max_drop=0.1), Constraint(metric="size_bytes", at_most=10**6)),
        objectives=("size", "top2"),
    )
    assert [metric.name for metric in Evaluator(job, tmp_path / "cache").metrics] == ["top1", "macro_f1", "top2"]


def test_a_constraint_on_a_metric_of_whole_splits_is_judged_on_all_rows(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, constraints=(Constraint(metric="macro_f1", max_drop=0.3),))
    trial = Evaluator(job, tmp_path / "cache").evaluate(0, plan_of(fc2=GOOD), {}, aims={"macro_f1": 0.3}, measure_latency=False)
    assert trial.verdicts[0].samples == 600
    assert trial.verdicts[0].lower < trial.verdicts[0].upper
    assert {"top1", "macro_f1"} <= set(trial.measurements)


@pytest.mark.parametrize("rows", [(3, 2, 2), (4, 10, 7), (9, 200, 131)])
def test_a_fixed_batch_is_filled_up(tmp_path: Path, rows: tuple[int, int, int]) -> None:
    """Also where a role has fewer rows than one batch."""
    model, free = dense(batch=4), dense()
    calibrate, validate, _ = rows
    data = dense_data(free, sum(rows))
    job = tiny_job(tmp_path, model, data)
    refs = {"calibration": (0, calibrate), "validation": (calibrate, calibrate + validate), "holdout": (calibrate + validate, sum(rows))}
    roles = {role: getattr(job.data, role).model_copy(update={"rows": span}) for role, span in refs.items()}
    job = job.model_copy(update={"data": job.data.model_copy(update=roles)})
    evaluator = Evaluator(job, tmp_path / "cache")
    assert evaluator.validation.reference.shape == (validate, CLASSES)
    expected = onnxruntime.InferenceSession(free).run(None, {"x": data["x"][calibrate : calibrate + validate]})[0]
    np.testing.assert_allclose(evaluator.validation.reference, expected, rtol=1e-4, atol=1e-5)
    trial = evaluate(evaluator, plan_of(fc2=GOOD), full=True, measure_latency=True, aim=1.0)
    assert trial.measurements["top1"].samples == validate
    counted = evaluator.statistics["x"].count / FEATURES
    assert counted == max(calibrate // 4 * 4, 4)


def test_a_model_with_two_inputs_is_evaluated(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Add", ["x", "z"], ["sum"], name="add"),
        helper.make_node("Gemm", ["sum", "w"], ["y"], name="fc1"),
    ]
    model = net(
        nodes,
        {"w": random.standard_normal((FEATURES, CLASSES))},
        ["batch", FEATURES],
        ["batch", CLASSES],
        inputs={"x": 1, "z": 1},
    )
    data = {name: random.standard_normal((500, FEATURES)).astype(np.float32) for name in ("x", "z")}
    job = tiny_job(tmp_path, model, data, metrics=("agreement",), constraints=(Constraint(metric="agreement", max_drop=0.2),))
    trial = Evaluator(job, tmp_path / "cache").evaluate(0, plan_of(fc1=GOOD), {}, aims={}, measure_latency=False, full=True)
    assert trial.feasible
    assert 0.8 < trial.measurements["agreement"].value <= 1.0


def test_threads_are_shared_among_parallel_trials(folder: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    job = evaluator.job.model_copy(update={"budget": Budget(parallel=2)})
    assert Evaluator(job, folder / "cache").threads == 4
    assert evaluator.threads == 1
