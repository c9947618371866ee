"""Whole jobs that take something away: each preset on a tiny network, and what it leaves is checked by other means.

They run in this process, so that what trains is loaded once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from builders import Net
from spare_networks import labelled, spare_cnn, spare_dense, spare_job
from tiny_jobs import FEATURES, net
from typer.testing import CliRunner

from search_spaces.presets import load_preset
from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec, SparsitySpec
from server.cli import app
from tuner import certify, structure_table
from tuner.compress.fusion import unfold
from tuner.compress.structure import restored
from tuner.conclude import run_job
from tuner.errors import JobCancelled, JobError, ModelError
from tuner.job import Budget, Constraint, DataRef, JobSpec
from tuner.model.graph import Model
from tuner.plan import AppliedPlan
from tuner.results import JobResult, TrialState
from tuner.store import InMemoryTrialStore
from tuner.study import Study
from tuner.tensors import load_tensors
from tuner.worker import Calls, _typed

LOOSE = (Constraint(metric="top1", max_drop=0.3),)
JOB = "20261121-structure"


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is certified here is not how fast it is, nor its memory."""
    monkeypatch.setattr(certify, "LATENCY_SECONDS", 0.1)
    monkeypatch.setattr(certify, "peak_memory", lambda *_: 1e6)


@dataclass
class InProcess:
    """An executor without a process of its own. between: called between steps of work."""

    job: JobSpec
    cache: Path
    between: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._worker: Calls | None = None

    def call(self, name: str, arguments: dict[str, Any], *, timeout: float, progress: Any = None) -> Any:  # noqa: ARG002
        if self._worker is None:
            self._worker = Calls(self.job, self.cache, lambda *_: None)
            self._worker.evaluator.between = self.between
        self.calls.append(name)
        found = getattr(self._worker, name)(**_typed(arguments))
        return json.loads(found.model_dump_json()) if hasattr(found, "model_dump_json") else found

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Finished:
    folder: Path
    store: InMemoryTrialStore
    result: JobResult

    @property
    def applied(self) -> AppliedPlan:
        return AppliedPlan.model_validate_json((self.folder / "best.plan.json").read_text())

    @property
    def best(self) -> Model:
        return Model.load(self.folder / "best.onnx")

    def value(self, name: str) -> float:
        return self.result.best.measurements[name].value

    def gain(self, name: str) -> float:
        return self.result.baseline.measurements[name].value / self.value(name)


def run(folder: Path, job: JobSpec, store: InMemoryTrialStore | None = None, between: Callable[[], None] = lambda: None) -> Finished:
    store = store or InMemoryTrialStore()
    study = Study(job, JOB, folder / "out", store, InProcess(job, folder / "cache", between))
    return Finished(folder / "out", store, run_job(study))


def check_delivered(found: Finished, job: JobSpec, folder: Path) -> None:
    """The files are there, the model runs as told, and `tuner apply` makes the same bytes from the original, the plan and the weights."""
    assert found.result.feasible and found.result.best.verdict == "met"
    assert {"best.onnx", "best.plan.json", "best.tensors.safetensors", "report.html", "trials.csv"} <= {
        p.name for p in found.folder.iterdir()
    }
    session = onnxruntime.InferenceSession(found.folder / "best.onnx", providers=["CPUExecutionProvider"])
    data = np.load(str(job.data.validation.file))
    assert job.data.holdout is not None and job.data.holdout.rows is not None
    first, last = job.data.holdout.rows
    right = session.run(None, {"x": data["x"][first:last]})[0].argmax(axis=1) == data["labels"][first:last]
    assert found.value("top1") == pytest.approx(float(right.mean()))
    assert found.value("size_bytes") == (found.folder / "best.onnx").stat().st_size
    out = folder / "again.onnx"
    done = CliRunner().invoke(app, ["apply", str(found.folder / "best.plan.json"), job.model, "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == (found.folder / "best.onnx").read_bytes()
    assert found.applied.choices == dict(found.result.best.layers)
    assert found.applied.plan.digest() == found.result.best.plan_digest


def preset(name: str, **changes: Any) -> SpaceSpec:
    """A preset with a training that takes a second."""
    spec = load_preset(name)
    assert spec.recovery is not None
    return spec.model_copy(update={"recovery": spec.recovery.model_copy(update={"rows": 1280, "batch": 32})} | changes)


def test_channels(tmp_path: Path) -> None:
    job = spare_job(tmp_path, preset("channels"), spare_cnn(), constraints=LOOSE)
    found = run(tmp_path, job)
    check_delivered(found, job, tmp_path)
    structure = found.applied.structure
    assert structure is not None and structure.kept
    assert found.gain("params") > 1.2 and found.gain("size_bytes") > 1.2 and found.gain("macs") > 1
    for group, kept in structure.kept.items():
        assert found.best.array(f"{group}.w").shape[0] == kept == 8 - len(structure.removed[group])
    base, tensors = unfold(Model.load(job.model)), load_tensors(found.folder / "best.tensors.safetensors")
    assert found.value("params") == restored(base, structure, tensors).parameters
    trained = [trial for trial in found.store.trials(JOB) if "recover" in trial.timings]
    assert trained and all(any(note.startswith("trained on ") for note in trial.notes) for trial in trained)


def test_zeros_make_the_packed_file_smaller(tmp_path: Path) -> None:
    model = spare_dense(hidden=48)
    space = preset("unstructured", sparsity=SparsitySpec(shares=(0.5, 0.8)))
    job = spare_job(tmp_path, space, model, constraints=LOOSE, objectives=("compressed_size",))
    found = run(tmp_path, job)
    check_delivered(found, job, tmp_path)
    structure = found.applied.structure
    assert structure is not None and structure.zeros
    for layer, share in structure.zeros.items():
        asked = float(str(found.applied.plan.layers("sparsify")[layer]).partition("-")[0])
        weight = found.best.array(f"{layer}.w")
        assert share == (weight == 0).mean() >= asked
    assert found.gain("compressed_size_bytes") > 1.1
    assert found.gain("size_bytes") == pytest.approx(1, abs=0.05)
    assert found.value("params") == model.parameters
    assert any("the runtime multiplies them like other numbers" in note for note in found.result.best.notes)


def test_channels_and_number_types_together(tmp_path: Path) -> None:
    model = spare_dense(hidden=48)
    space = preset("channels+int8", channels=ChannelSpec(shares=(0.25, 0.5)), calibrations=("minmax",))
    job = spare_job(tmp_path, space, model, constraints=LOOSE, objectives=("size",), budget=Budget(trials=5, seconds=120, threads=1))
    found = run(tmp_path, job)
    check_delivered(found, job, tmp_path)
    assert found.gain("size_bytes") > 1.5
    steps = {
        trial.number: {name.partition(":")[0] if ":" in name else "quantize" for name in changed(trial.assignment)}
        for trial in found.store.trials(JOB)
    }
    assert any({"channels", "quantize"} <= kinds for kinds in steps.values())
    joint = found.applied
    assert joint.structure is not None and joint.layers
    # Trials that agree in their channels were trained once.
    plans = [AppliedPlan.model_validate_json(path.read_text()).plan for path in (tmp_path / "cache" / "plans").glob("*.json")]
    structures = {plan.structure.digest() for plan in plans if plan.structure.steps}
    assert {path.stem for path in (tmp_path / "cache" / "structures").glob("*.safetensors")} == structures


def changed(assignment: dict[str, Any]) -> list[str]:
    return [name for name, choice in assignment.items() if choice not in ("whole", "float")]


def test_low_rank(tmp_path: Path) -> None:
    job = spare_job(tmp_path, preset("low-rank"), constraints=LOOSE, objectives=("macs",))
    found = run(tmp_path, job)
    check_delivered(found, job, tmp_path)
    structure = found.applied.structure
    assert structure is not None and structure.splits
    for layer, split in structure.splits.items():
        assert {f"{layer}.0", f"{layer}.1"} <= set(found.best.nodes) and layer not in found.best.nodes
        assert split.method == "svd" and found.best.array(f"{layer}.w.0").size > 0
    assert found.gain("macs") > 1.05


def test_low_rank_and_number_types_together(tmp_path: Path) -> None:
    space = preset("low-rank+int8", calibrations=("minmax",))
    job = spare_job(tmp_path, space, constraints=LOOSE, objectives=("size",), strategy="random")
    found = run(tmp_path, job)
    assert all(trial.state in (TrialState.COMPLETE, TrialState.STOPPED) for trial in found.store.trials(JOB))
    assert found.result.state == "succeeded"


def test_two_of_four(tmp_path: Path) -> None:
    job = spare_job(tmp_path, preset("nm-2:4"), constraints=LOOSE, objectives=("compressed_size",))
    found = run(tmp_path, job)
    check_delivered(found, job, tmp_path)
    for layer in found.applied.plan.layers("sparsify"):
        weight = found.best.array(f"{layer}.w")
        assert set((weight.reshape(len(weight), -1, 4) != 0).sum(axis=2).ravel()) == {2}


def test_speed_counts_what_the_clock_says(tmp_path: Path) -> None:
    """On a network this small no width is faster beyond doubt: the job may find nothing, but it says so and delivers a model."""
    job = spare_job(
        tmp_path, preset("channels"), constraints=LOOSE, objectives=("latency",), budget=Budget(trials=2, seconds=60, threads=1)
    )
    found = run(tmp_path, job)
    assert found.result.state == "succeeded"
    assert (found.folder / "best.onnx").is_file()
    findings = json.loads((tmp_path / "cache" / "findings.json").read_text())
    assert set(findings["latency_ms"]) == {"channels:fc1", "channels:fc2"}


def test_where_no_width_is_faster_the_original_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel takes a millisecond, whatever its width."""

    def times(*models_feed_threads_whole: Any) -> list[dict[str, float]]:
        return [{node.name: 1.0 for node in Model.parse(data).nodes.values()} for data in models_feed_threads_whole[:2]]

    monkeypatch.setattr(structure_table, "paired_kernel_times", times)
    monkeypatch.setenv("ACCUTUNE_CACHE", str(tmp_path / "tables"))
    found = run(tmp_path, spare_job(tmp_path, preset("channels"), objectives=("latency",)))
    assert found.result.summary.startswith("Nothing was gained")
    assert found.best.data == spare_dense().data
    assert found.applied.plan.identity and found.applied.structure is None
    assert not (found.folder / "best.tensors.safetensors").exists()


def lonely() -> bytes:
    """One product to the outputs: there is no channel between two layers."""
    from onnx import helper

    weight = np.random.default_rng(0).standard_normal((FEATURES, 5))
    return net([helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")], {"w": weight}, ["batch", FEATURES], ["batch", 5])


def test_a_model_from_which_nothing_can_go_says_why(tmp_path: Path) -> None:
    model = Model.parse(lonely())
    with pytest.raises(JobError) as error:
        run(tmp_path, spare_job(tmp_path, "channels", model))
    assert str(error.value).startswith(f"model {tmp_path / 'model.onnx'} has no layer that the space 'channels' can compress: ")
    assert "fc" in str(error.value)
    assert error.value.field == "space"


def test_an_operator_that_no_gradient_goes_through_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    grown = Net()
    square = grown.op("Reshape", grown.input(shape=("batch", FEATURES)), grown.constant("shape", [-1, 4, 4], np.int64), name="square")
    hidden = grown.op("Relu", grown.gemm("x", FEATURES, 8, "fc1"), name="relu")
    grown.output(grown.gemm(hidden, 8, 5, "fc2"))
    model = grown.output(grown.op("Det", square, name="volume")).model()
    with pytest.raises(ModelError, match=r"the model has operators that training cannot follow: Det .*volume"):
        run(tmp_path, spare_job(tmp_path, "channels", model))
    assert not (tmp_path / "cache" / "findings.json").exists()


def test_a_criterion_that_nobody_knows_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    space = SpaceSpec(name="mine", channels=ChannelSpec(criterion="tailor"))
    with pytest.raises(JobError, match=r"unknown criterion of channels 'tailor'\. Did you mean 'taylor'\?"):
        run(tmp_path, spare_job(tmp_path, space))
    assert not (tmp_path / "cache").exists()


def test_training_rows_of_the_job_are_those_that_train(tmp_path: Path) -> None:
    job = spare_job(tmp_path, preset("channels", recovery=load_preset("channels").recovery), constraints=LOOSE)
    np.savez(tmp_path / "train.npz", **labelled(spare_dense(), 300, seed=7))  # type: ignore[arg-type]
    train = DataRef(file=str(tmp_path / "train.npz"))
    job = job.model_copy(
        update={"data": job.data.model_copy(update={"training": train}), "budget": Budget(trials=1, seconds=60, threads=1)}
    )
    found = run(tmp_path, job)
    assert found.result.rows["training"] == 300
    # Twenty passes over 300 rows, no more, whatever the budget.
    notes = [note for trial in found.store.trials(JOB) for note in trial.notes if note.startswith("trained on ")]
    assert notes and int(notes[0].split()[2].replace(",", "")) <= 20 * 300


class Stop(KeyboardInterrupt):
    """Ctrl-C in the middle of a training."""


def test_a_job_that_was_stopped_while_it_trained_ends_the_same(tmp_path: Path) -> None:
    def job_in(folder: Path) -> JobSpec:
        space = preset("channels", channels=ChannelSpec(shares=(0.25, 0.5)))
        return spare_job(folder, space, spare_cnn(), constraints=LOOSE, budget=Budget(trials=2, seconds=120, threads=1))

    whole = run(tmp_path / "whole", job_in(tmp_path / "whole"))
    folder, store = tmp_path / "stopped", InMemoryTrialStore()
    training = folder / "cache" / "training"

    def stop() -> None:
        # The first training has written what it learns from: it is under way.
        if (training / "teacher").is_dir() and not any((folder / "cache" / "structures").glob("*.json")):
            stop.calls += 1  # type: ignore[attr-defined]
            if stop.calls == 25:  # type: ignore[attr-defined]
                raise Stop

    stop.calls = 0  # type: ignore[attr-defined]
    job = job_in(folder)
    with pytest.raises(JobCancelled):
        run(folder, job, store, stop)
    assert [trial.state for trial in store.trials(JOB)] == [TrialState.QUEUED]
    assert list(training.glob("*/checkpoint.pt"))
    resumed = run(folder, job, store)
    assert (resumed.folder / "best.onnx").read_bytes() == (whole.folder / "best.onnx").read_bytes()
    assert (resumed.folder / "best.tensors.safetensors").read_bytes() == (whole.folder / "best.tensors.safetensors").read_bytes()
    plans = [[trial.plan_digest for trial in each.store.trials(JOB)] for each in (whole, resumed)]
    assert plans[0] == plans[1]
