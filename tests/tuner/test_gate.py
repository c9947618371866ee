from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import U8_CHANNEL, quantize, small_cnn
from onnx import TensorProto, helper
from tiny_jobs import CLASSES, FEATURES, dense, dense_data, net, save_data, tiny_job

from tuner.errors import DataError, InputError, JobError, ModelError, PlanError, UnknownName, WrongKind
from tuner.gate import Gate
from tuner.job import Constraint, DataRef
from tuner.measure.latency import alone
from tuner.model.graph import serialize
from tuner.preview import JobPreview
from tuner.worker import serve

ROWS = 300


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "scratch", 1 << 30)


def refusal(kind: type[InputError], call: Callable[[], object]) -> InputError:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return caught.value


def looked_at(gate: Gate, folder: Path, data: bytes, kind: type[InputError]) -> str:
    (folder / "blob").write_bytes(data)
    text = str(refusal(kind, lambda: gate.inspect_model(str(folder / "blob"), "net.onnx")))
    assert str(folder) not in text, "nobody need know where the server keeps its files"
    return text


def test_a_model_is_described(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(small_cnn().data)
    facts = gate.inspect_model(str(tmp_path / "blob"), "net.onnx")
    assert (facts.opset, facts.parameters) == (17, small_cnn().parameters)
    assert facts.inputs[0].model_dump() == {"name": "x", "dtype": "float32", "shape": (None, 3, 8, 8)}
    fc = next(layer for layer in facts.layers if layer.name == "fc")
    assert (fc.op, fc.weight_shape, fc.output_shape, fc.params, fc.macs, fc.quantizable) == ("Gemm", (5, 128), (1, 5), 645, 640, True)
    assert facts.macs == sum(layer.macs or 0 for layer in facts.layers)


def zipped_module() -> bytes:
    stream = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2).state_dict(), stream)
    return stream.getvalue()


def external(location: str) -> bytes:
    proto = onnx.ModelProto()
    proto.CopyFrom(small_cnn().proto)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return serialize(proto)


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = onnx.ModelProto()
    proto.CopyFrom(small_cnn().proto)
    change(proto)
    return serialize(proto)


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (
            small_cnn().data[:2000],
            ModelError,
            "model net.onnx (2000 bytes) is not an ONNX file, or it is truncated; export or copy it again",
        ),
        (external("../../etc/passwd"), ModelError, "keeps tensor 'conv1.w' in another file (external data), which is refused"),
        (
            changed(lambda p: setattr(p.graph.node[0], "domain", "my.ops")),
            ModelError,
            "is of the operator domain 'my.ops', which onnxruntime",
        ),
        (changed(lambda p: setattr(p.opset_import[0], "version", 99)), ModelError, "has opset 99; opsets 11 to 24 are supported"),
        (
            zipped_module(),
            WrongKind,
            "model net.onnx is a PyTorch file (a zip archive with pickles or TorchScript inside), whose loading can",
        ),
        (
            b"\x80\x04\x95pickle",
            WrongKind,
            "model net.onnx is a Python pickle, perhaps an old PyTorch checkpoint, whose loading can execute",
        ),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), WrongKind, "an HDF5 file, perhaps of Keras; convert it with tf2onnx and give the .onnx file"),
        (b"\x1c\0\0\0TFL3" + bytes(9), WrongKind, "a TensorFlow Lite file; convert it with tf2onnx and give the .onnx file"),
        (
            net([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.ones(3)}, ["n", 4], ["n", 4]),
            ModelError,
            "model net.onnx cannot be used: onnxruntime",
        ),
    ],
)
def test_hostile_models_are_refused(gate: Gate, tmp_path: Path, data: bytes, kind: type[InputError], text: str) -> None:
    assert text in looked_at(gate, tmp_path, data, kind)


def test_a_missing_file_is_called_as_its_sender_calls_it(gate: Gate, tmp_path: Path) -> None:
    error = refusal(ModelError, lambda: gate.inspect_model(str(tmp_path / "gone"), "net.onnx"))
    assert str(error) == "model net.onnx cannot be read (No such file or directory); give the path of an .onnx file"
    error = refusal(DataError, lambda: gate.inspect_data(str(tmp_path / "gone"), "rows.npz"))
    assert str(error) == "rows.npz cannot be read (No such file or directory); check the file and its permissions"


def test_a_data_file_is_described_and_limited(tmp_path: Path) -> None:
    path = save_data(tmp_path / "blob.npz", {"x": np.zeros((1000, 4), np.float32)}).rename(tmp_path / "blob")
    facts = Gate(tmp_path / "scratch", 20_000).inspect_data(str(path), "rows.npz")
    assert facts.model_dump() == {"format": "npz", "arrays": ({"name": "x", "dtype": "float32", "shape": (1000, 4)},)}
    error = refusal(DataError, lambda: Gate(tmp_path / "scratch", 10_000).inspect_data(str(path), "rows.npz"))
    assert "rows.npz would unpack to" in str(error)
    assert not (tmp_path / "scratch").exists()


def job_of(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, **changes: Any) -> dict[str, Any]:
    data = dense_data(dense(), ROWS)
    change(data)
    return tiny_job(folder, changes.pop("model", None), data).model_copy(update=changes).model_dump(mode="json")


def told(preview: JobPreview) -> list[str]:
    """Its notes, but for what depends on the processor."""
    return [note for note in preview.notes if not note.startswith("processor:")]


def test_a_good_job_passes_and_leaves_nothing(gate: Gate, tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert told(gate.check_job(job)) == []
    np.savez_compressed(tmp_path / "data.npz", **dense_data(dense(), ROWS))
    job["data"]["holdout"] = None
    (note,) = told(gate.check_job(job))
    assert note == "holdout: 67 of the 135 validation rows were set aside, with seed 0"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_relative_names_count_from_the_folder(gate: Gate, tmp_path: Path) -> None:
    job, before = job_of(tmp_path), os.getcwd()
    job["model"] = "model.onnx"
    for role in ("calibration", "validation", "holdout"):
        job["data"][role]["file"] = "data.npz"
    assert told(gate.check_job(job, str(tmp_path))) == []
    job["data"]["holdout"]["file"] = "gone.npz"
    error = refusal(DataError, lambda: gate.check_job(job, str(tmp_path)))
    assert str(error).startswith("the data file gone.npz does not exist")
    assert error.field == "data.holdout"
    assert os.getcwd() == before


def scores(data: dict[str, Any]) -> None:
    data["labels"] = data["labels"].astype(np.float32)
    data["labels"][20] = np.nan


def halves(data: dict[str, Any]) -> None:
    data["labels"] = data["labels"] + 0.5


def bad_value(data: dict[str, Any]) -> None:
    data["x"][250, 3] = np.inf


def out_of_range(data: dict[str, Any]) -> None:
    data["labels"][-1] = CLASSES


def unlabelled(data: dict[str, Any]) -> None:
    del data["labels"]


def wide(data: dict[str, Any]) -> None:
    data["x"] = np.concatenate([data["x"], data["x"]], axis=1)


def wrong_dtype(data: dict[str, Any]) -> None:
    data["x"] = data["x"].astype(np.float64)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (scores, "labels must be finite, got NaN or infinite values in 1 row of data.npz, first in row 20"),
        (halves, "labels must be whole numbers in 0..4, the model's classes, got"),
        (bad_value, "must be finite, got NaN or infinite values in 1 row of data.npz, first in row 250"),
        (out_of_range, "label 5 in row 299 of data.npz must be a whole number in 0..4, the model's classes."),
        (unlabelled, "metric 'top1' needs labels, and the validation data has no array 'labels'."),
        (wide, "input 'x' expects rows of shape [16], got [32] in data.npz"),
        (wrong_dtype, "input 'x' takes float32, got float64 in data.npz, which does not convert without loss"),
    ],
)
def test_data_that_does_not_fit_is_refused(gate: Gate, tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str) -> None:
    job = job_of(tmp_path, change)
    with pytest.raises(InputError) as caught:
        gate.check_job(job)
    assert text in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


def ref(folder: Path, first: int, end: int) -> DataRef:
    return DataRef(file=str(folder / "data.npz"), rows=(first, end))


def test_jobs_that_cannot_be_done_are_refused(gate: Gate, tmp_path: Path) -> None:
    def told(kind: type[InputError], **changes: Any) -> str:
        return str(refusal(kind, lambda: gate.check_job(job_of(tmp_path, **changes))))

    data = tiny_job(tmp_path, None, dense_data(dense(), ROWS)).data
    assert "unknown metric 'top-1'. Did you mean 'top1'?" in told(UnknownName, metrics=("top-1",))
    assert "top1 can be at most 1, got at_least 90" in told(JobError, constraints=(Constraint(metric="top1", at_least=90),))
    overlap = data.model_copy(update={"validation": ref(tmp_path, 100, 200), "holdout": ref(tmp_path, 150, 250)})
    assert "validation and holdout must not share rows, got 50 shared rows [150, 200) of data.npz" in told(DataError, data=overlap)
    outside = overlap.model_copy(update={"holdout": ref(tmp_path, 250, 999)})
    assert "rows [250, 999) lie outside data.npz, which has 300 rows" in told(DataError, data=outside)
    relu = net([helper.make_node("Relu", ["x"], ["y"], name="relu")], {}, ["b", FEATURES], ["b", FEATURES])
    assert "has no layer that the space 'small' can compress" in told(JobError, model=relu)
    assert "labels must have the outputs' shape" in told(DataError, metrics=("mse",), constraints=(Constraint(metric="mse", max_drop=1),))
    assert "labels must have the outputs' shape" in told(DataError, metrics=("r2",), constraints=(Constraint(metric="r2", max_drop=1),))


def test_models_that_give_no_rows_or_nonsense_are_refused(gate: Gate, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((FEATURES, CLASSES))

    def told(*nodes: onnx.NodeProto, y: list[int | str]) -> str:
        first = helper.make_node("Gemm", ["x", "w"], ["h"], name="fc")
        model = net([first, *nodes], {"w": weight}, ["batch", FEATURES], y)
        return str(refusal(DataError, lambda: gate.check_job(job_of(tmp_path, model=model))))

    mean = helper.make_node("ReduceMean", ["h"], ["y"], axes=[0], keepdims=0)
    assert "must have one row per input row, got shape (5,) for 64 rows" in told(mean, y=[CLASSES])
    noise = helper.make_node("RandomNormalLike", ["h"], ["n"])
    assert "gives different outputs for the same rows" in told(noise, helper.make_node("Add", ["h", "n"], ["y"]), y=["batch", CLASSES])
    log = helper.make_node("Log", ["h"], ["y"])
    assert "the original model gives NaN or infinite outputs, first for row" in told(log, y=["batch", CLASSES])


def test_a_plan_is_applied_again(gate: Gate, tmp_path: Path) -> None:
    applied, data = quantize(small_cnn(), {"conv1": U8_CHANNEL})
    sealed = applied.model_copy(update={"result_sha256": hashlib.sha256(data).hexdigest()})
    paths = {name: str(tmp_path / name) for name in ("plan", "model", "out")}
    Path(paths["plan"]).write_text(sealed.model_dump_json())
    Path(paths["model"]).write_bytes(small_cnn().data)
    assert gate.rebuild(**paths) == {"sha256": sealed.result_sha256}
    assert Path(paths["out"]).read_bytes() == data
    Path(paths["model"]).write_bytes(small_cnn(seed=1).data)
    Path(paths["out"]).unlink()
    assert "the plan was made for the model with SHA-256" in str(refusal(PlanError, lambda: gate.rebuild(**paths)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "plan"]


def test_a_lack_of_memory_is_told_in_one_word(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(error: Exception) -> Callable[..., None]:
        def broken(*_: object) -> None:
            raise error

        return broken

    for error in (ModelError("onnxruntime cannot load it: std::bad_alloc"), OSError(12, "Cannot allocate memory")):
        monkeypatch.setattr("tuner.gate.read_limited", breaks(error))
        with pytest.raises(MemoryError):
            gate.inspect_model("blob", "net.onnx")
    monkeypatch.setattr("tuner.gate.read_limited", breaks(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        gate.inspect_model("blob", "net.onnx")


def test_everything_passes_through_the_worker_protocol(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(small_cnn().data)
    with zipfile.ZipFile(tmp_path / "rows", "w") as archive:
        archive.writestr("a.txt", b"")
    paths = {"path": str(tmp_path / "blob"), "name": "net.onnx"}
    requests = [
        {"call": "inspect_model", "args": paths},
        {"call": "inspect_data", "args": {"path": str(tmp_path / "rows"), "name": "rows.npz"}},
        {"call": "check_job", "args": {"job": job_of(tmp_path)}},
        {"call": "rebuild", "args": {"plan": paths["path"], "model": paths["path"], "out": str(tmp_path / "out")}},
    ]
    sent: list[dict[str, Any]] = []
    lines = io.StringIO("".join(json.dumps(line) + "\n" for line in [{}, *requests]))
    serve(
        lambda _settings, _progress: Gate(tmp_path / "scratch", 1 << 30),
        lines,
        lambda message: sent.append(json.loads(json.dumps(message))),
    )
    assert sent[0]["result"]["parameters"] == small_cnn().parameters
    assert sent[1]["input_error"]["type"] == "WrongKind"
    assert JobPreview.model_validate(sent[2]["result"]).rows == {"calibration": 75, "training": 0, "validation": 135, "holdout": 90}
    assert sent[3]["input_error"]["type"] == "JobError"


def test_the_gate_waits_while_a_latency_is_measured(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Locks of this test alone.
    job = tiny_job(tmp_path / "job")
    calls = (lambda: gate.inspect_model(job.model, "m"), lambda: gate.check_job(job.model_dump(mode="json")))
    with ThreadPoolExecutor() as pool:
        with alone():
            asked = [pool.submit(call) for call in calls]
            assert wait(asked, timeout=0.5).done == set()
        assert wait(asked, timeout=60).not_done == set()
    assert [future.exception() for future in asked] == [None, None]
