"""One small job through real workers, and everything that it leaves is checked by other means."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_jobs import dense_data, tiny_job

from tuner.compress.pipeline import replay
from tuner.conclude import run_job
from tuner.executor import LocalExecutor
from tuner.job import Budget, Constraint, JobSpec
from tuner.model.graph import Model
from tuner.plan import AppliedPlan
from tuner.progress import PHASES, Event
from tuner.results import JobResult, TrialState
from tuner.store import InMemoryTrialStore, JobState
from tuner.study import Study

ROWS, HOLDOUT = 1128, slice(728, 1128)


@dataclass(frozen=True)
class Finished:
    folder: Path
    job: JobSpec
    store: InMemoryTrialStore
    result: JobResult
    events: list[Event]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


def run(folder: Path, job: JobSpec) -> Finished:
    store, events = InMemoryTrialStore(), list[Event]()
    executor = LocalExecutor(job, folder / "cache")
    result = run_job(Study(job, "20261121-e2e", folder / "out", store, executor, events.append))
    return Finished(folder / "out", job, store, result, events)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("e2e")
    limit = Constraint(metric="top1", max_drop=0.05, confidence=0.9)
    return run(folder, tiny_job(folder, constraints=(limit,), strategy="auto", budget=Budget(trials=6, seconds=300, threads=1)))


def hits(model: Path, data: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Whether each holdout row is right, in onnxruntime as it comes."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": data["x"][HOLDOUT]})[0]
    return np.asarray(outputs.argmax(axis=1) == data["labels"][HOLDOUT], np.float64)


def test_the_folder_is_complete(finished: Finished) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {"job.json", "result.json", "trials.csv", "sensitivity.csv", "report.html", "best.onnx", "best.plan.json"}
    assert JobSpec.model_validate(finished.json("job.json")) == finished.job
    assert "<html" in (finished.folder / "report.html").read_text()


def test_the_job_ended_well(finished: Finished) -> None:
    result = finished.result
    assert (result.state, result.feasible, result.best.verdict) == ("succeeded", True, "met")
    assert result.best.size_ratio < 0.8
    assert finished.store.job("20261121-e2e").state == JobState.SUCCEEDED
    assert result.trials["total"] == 6
    assert all(trial.state in (TrialState.COMPLETE, TrialState.STOPPED) for trial in finished.store.trials("20261121-e2e"))
    assert list(dict.fromkeys(event.phase for event in finished.events)) == list(PHASES)
    assert set(PHASES[:5]) <= set(result.phases)
    assert result.summary.startswith("Target met: the best model is ")


def test_result_json_holds_what_is_promised(finished: Finished) -> None:
    found = finished.json("result.json")
    assert {"job_id", "state", "feasible", "seconds", "trials", "baseline", "best", "pareto", "environment"} <= set(found)
    for entry in (found["baseline"], found["best"]):
        assert {"top1", "latency_ms", "size_bytes", "macs", "params"} <= set(entry["measurements"])
        assert {"value", "stderr", "samples"} <= set(entry["measurements"]["top1"])
    best = found["best"]
    assert {"trial", "plan_digest", "drop", "speedup", "size_ratio", "verdict"} <= set(best)
    assert best["drop"]["split"] == "holdout"
    assert best["drop"]["lower"] <= best["drop"]["value"] <= best["drop"]["upper"] <= 0.05
    assert best["speedup"]["lower"] <= best["speedup"]["value"] <= best["speedup"]["upper"]
    assert found["rows"] == {"calibration": 128, "training": 0, "validation": 600, "holdout": 400}
    assert found["pareto"] == [best]
    assert found["environment"]["onnxruntime"] == onnxruntime.__version__


def test_accuracy_can_be_measured_again(finished: Finished) -> None:
    data = dense_data(Path(finished.job.model).read_bytes(), ROWS)
    original, best = hits(Path(finished.job.model), data), hits(finished.folder / "best.onnx", data)
    result = finished.result
    assert result.baseline.measurements["top1"].value == pytest.approx(original.mean())
    assert result.best.measurements["top1"].value == pytest.approx(best.mean())
    assert result.best.measurements["top1"].samples == 400
    assert result.best.measurements["top1"].stderr == pytest.approx(best.std(ddof=1) / 20)
    assert result.best.drop.value == pytest.approx(float((original - best).mean()))
    assert result.best.measurements["size_bytes"].value == (finished.folder / "best.onnx").stat().st_size


def test_the_plan_makes_the_same_file_again(finished: Finished) -> None:
    applied = AppliedPlan.model_validate(finished.json("best.plan.json"))
    assert replay(Model.load(finished.job.model), applied) == (finished.folder / "best.onnx").read_bytes()
    assert applied.plan.digest() == finished.result.best.plan_digest


def test_the_tables_hold_every_trial_and_layer(finished: Finished) -> None:
    lines = (finished.folder / "trials.csv").read_text().splitlines()
    assert lines[0].startswith("number,")
    trials = list(csv.DictReader(lines))
    assert [row["number"] for row in trials] == [str(number) for number in range(6)]
    best = trials[finished.result.best.trial]
    assert best["plan_digest"] == finished.result.best.plan_digest
    layers = list(csv.DictReader((finished.folder / "sensitivity.csv").read_text().splitlines()))
    assert [row["layer"] for row in layers] == ["fc1", "fc2", "fc3"]
    assert all(float(row["divergence"]) > 0 for row in layers)


def test_the_same_job_tries_the_same_plans_again(finished: Finished, tmp_path: Path) -> None:
    again = run(tmp_path, tiny_job(tmp_path, **{name: getattr(finished.job, name) for name in ("constraints", "strategy", "budget")}))
    plans = [[trial.plan_digest for trial in each.store.trials("20261121-e2e")] for each in (finished, again)]
    assert plans[0] == plans[1]
    assert again.result.best.plan_digest == finished.result.best.plan_digest
    assert (again.folder / "best.onnx").read_bytes() == (finished.folder / "best.onnx").read_bytes()


def test_a_target_that_cannot_be_met_gives_the_nearest_model(tmp_path: Path) -> None:
    limit, budget = Constraint(metric="auto", at_least=0.999), Budget(trials=3, seconds=300, parallel=2)
    job = tiny_job(tmp_path, constraints=(limit,), metrics=("auto",), budget=budget)
    found = run(tmp_path, job)
    assert not found.result.feasible
    assert found.result.best.layers != {}
    assert found.result.summary.startswith("Target missed (top1 by ")
    assert found.result.advice[0].startswith("the original itself reaches 0.9")
    assert (found.folder / "best.onnx").is_file()
