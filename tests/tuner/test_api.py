from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tuner
from tuner import api
from tuner.api import Tuned, job_id, tune
from tuner.errors import DataError, JobError, ModelError
from tuner.job import DataRef, JobSpec
from tuner.progress import Event
from tuner.results import JobResult
from tuner.study import Study

CLASSES = 4


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[Study]:
    """The studies that `tune` starts, kept from running."""
    started: list[Study] = []

    def run(study: Study) -> JobResult:
        study.open()
        started.append(study)
        return JobResult.model_construct(feasible=True, best=SimpleNamespace(speedup="1.5", size_ratio=0.25))

    monkeypatch.setattr(api, "run_job", run)
    return started


def rows(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points around CLASSES centres in 32 dimensions; easy, but not without errors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(0).normal(size=(CLASSES, 32))
    return (0.6 * centres[labels] + rng.normal(size=(count, 32))).astype(np.float32), labels


class Classifier(nn.Module):
    """The nearest centre, by way of a wide layer that is worth compressing."""

    def __init__(self) -> None:
        super().__init__()
        centres = torch.from_numpy(np.random.default_rng(0).normal(size=(CLASSES, 32)).astype(np.float32))
        self.spread = nn.Linear(32, 512)
        self.join = nn.Linear(512, CLASSES)
        mix = torch.linalg.qr(torch.randn(512, 32, generator=torch.Generator().manual_seed(0)))[0]
        with torch.no_grad():
            self.spread.weight.copy_(mix)
            self.join.weight.copy_(centres @ mix.T)
            self.join.bias.copy_(-0.3 * centres.square().sum(1))

    def forward(self, point: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.join(self.spread(point))
        return scores


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((32, CLASSES), np.float32), "w")
    point = helper.make_tensor_value_info("point", TensorProto.FLOAT, ["n", 32])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph([helper.make_node("MatMul", ["point", "w"], ["scores"], "m")], "g", [point], [scores], [weight])
    path = tmp_path / "my model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_the_job_says_what_the_arguments_say(studies: list[Study], onnx_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", point=rows(9, 1)[0])
    seen: list[Event] = []
    tune(
        onnx_file,
        DataRef(file=str(tmp_path / "test.npz"), rows=(0, 4)),
        holdout=tmp_path / "test.npz",
        training=rows(5, 2),
        metric="cosine",
        max_drop=0.2,
        relative=False,
        confidence=0.9,
        objective=("size", "latency"),
        space="int8",
        trials=3,
        seconds=4,
        batch=5,
        threads=2,
        parallel=2,
        seed=7,
        out=tmp_path / "out",
        progress=seen.append,
    )
    out, test = tmp_path / "out", str(tmp_path / "test.npz")
    assert studies[0].job == JobSpec.model_validate(
        {
            "name": "my model",
            "model": str(onnx_file),
            "data": {
                "validation": {"file": test, "rows": [0, 4]},
                "holdout": {"file": test},
                "training": {"file": str(out / "data/training")},
            },
            "metrics": ["cosine"],
            "constraints": [{"metric": "cosine", "max_drop": 0.2, "relative": False, "confidence": 0.9}],
            "objectives": ["size", "latency"],
            "budget": {"trials": 3, "seconds": 4, "parallel": 2},
            "target": {"batch": 5, "threads": 2},
            "seed": 7,
        }
    )
    assert studies[0].folder == out
    assert studies[0].observer == seen.append
    np.testing.assert_array_equal(np.load(out / "data" / "training" / "point.npy"), rows(5, 2)[0])


def test_what_is_left_out_has_the_defaults_of_a_job_file(studies: list[Study], onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(onnx_file.parent)
    found = tune(onnx_file.name, {"point": rows(9, 1)[0]})
    plain = {"name": "my model", "model": str(onnx_file), "data": {"validation": {"file": str(found.folder / "data" / "validation")}}}
    assert studies[0].job == JobSpec.model_validate(plain | {"constraints": [{"metric": "auto", "max_drop": 0.01, "relative": True}]})
    assert found.folder == onnx_file.parent / "runs" / studies[0].job_id
    assert (found.model_path, found.report_path) == (found.folder / "best.onnx", found.folder / "report.html")
    assert [found.feasible, str(found.speedup), found.size_ratio, len(found.trials)] == [True, "1.5", 0.25, 0]


def test_constraints_replace_max_drop(studies: list[Study], onnx_file: Path, tmp_path: Path) -> None:
    limits = [{"metric": "cosine", "at_least": 0.9}, {"metric": "size_bytes", "at_most": 1e6}]
    tune(onnx_file, rows(9, 1), constraints=limits, out=tmp_path / "out")
    assert [constraint.model_dump(exclude_defaults=True) for constraint in studies[0].job.constraints] == limits


def test_a_module_is_exported_once_from_the_first_rows_of_the_data(studies: list[Study], tmp_path: Path) -> None:
    points, labels = rows(50, 1)
    loader = DataLoader(TensorDataset(torch.from_numpy(points), torch.from_numpy(labels)), batch_size=16)
    found = tune(Classifier(), loader, out=tmp_path / "out")
    graph = onnx.load_model(studies[0].job.model).graph
    assert studies[0].job.model == str(found.folder / "original.onnx")
    assert studies[0].job.name == "Classifier"
    assert [tensor.name for tensor in graph.input] == ["point"]
    np.testing.assert_array_equal(np.load(found.folder / "data" / "validation" / "point.npy"), points)


def test_a_module_takes_its_only_input_under_the_name_that_the_data_has(studies: list[Study], tmp_path: Path) -> None:
    points, labels = rows(50, 1)
    np.savez(tmp_path / "rows.npz", embedding=points, answer=labels)
    tune(Classifier(), DataRef(file=str(tmp_path / "rows.npz"), target="answer", rows=(10, 50)), out=tmp_path / "out")
    assert [tensor.name for tensor in onnx.load_model(studies[0].job.model).graph.input] == ["embedding"]


def test_a_second_run_in_one_folder_inherits_nothing(studies: list[Study], onnx_file: Path, tmp_path: Path) -> None:
    stale = [tmp_path / "out" / "cache" / "statistics.npz", tmp_path / "out" / "result.json"]
    stale[0].parent.mkdir(parents=True)
    for file in stale:
        file.write_text("stale")
    tune(onnx_file, rows(9, 1), out=tmp_path / "out")
    assert len(studies) == 1
    assert not any(file.exists() for file in stale)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": 3}, ModelError, r"model must be the path of an ONNX file or a torch\.nn\.Module, got int"),
        ({"model": "gone.onnx"}, ModelError, r"model .*gone\.onnx cannot be read"),
        ({"data": 3}, DataError, r"validation must be a path, a dict of arrays.*got int"),
        ({"metric": "top_1"}, JobError, r"unknown metric 'top_1'\. Did you mean 'top1'"),
        ({"space": "int9"}, JobError, r"unknown space 'int9'\. Did you mean 'int8'"),
        ({"strategy": "aut"}, JobError, r"unknown strategy 'aut'\. Did you mean 'auto'"),
        ({"max_drop": 2}, JobError, r"a relative max_drop is a fraction below 1 \(0\.01 is one per cent\), got 2"),
        ({"trials": 0}, JobError, r"budget\.trials: .*greater than or equal to 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, studies: list[Study], onnx_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        arguments: dict[str, Any] = {"model": onnx_file, "data": rows(9, 1), "out": tmp_path / "out"}
        tune(**arguments | changes)
    assert studies == []


def test_a_bad_name_is_refused_before_anything_is_written(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="unknown metric"):
        tune(onnx_file, rows(9, 1), metric="top_1", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_job_ids_sort_by_time() -> None:
    assert job_id(lambda: datetime(2026, 11, 21, 10, 15, 30, tzinfo=UTC), lambda count: "3fa9"[: 2 * count]) == "20261121-101530-3fa9"
    assert job_id() != job_id()


def test_tune_is_at_the_top() -> None:
    assert tuner.tune is tune


def test_a_module_and_a_loader_become_a_certified_model(tmp_path: Path) -> None:
    points, labels = rows(600, 1)
    loader = DataLoader(TensorDataset(torch.from_numpy(points), torch.from_numpy(labels)), batch_size=100)
    events: list[Event] = []
    found = tune(
        Classifier(),
        loader,
        holdout=rows(600, 2),
        max_drop=0.05,
        objective="size",
        trials=4,
        seconds=60,
        out=tmp_path / "out",
        progress=events.append,
    )
    assert isinstance(found, Tuned)
    assert found.feasible
    assert found.size_ratio == found.model_path.stat().st_size / (tmp_path / "out" / "original.onnx").stat().st_size < 0.5
    assert [trial.number for trial in found.trials] == list(range(len(found.trials)))
    assert 1 <= len(found.trials) <= 4
    assert JobResult.model_validate_json((found.folder / "result.json").read_bytes()) == found.result
    assert found.report_path.is_file()
    assert {event.phase for event in events} >= {"prepare", "search", "certify"}
    assert not (found.folder / "cache").exists()
