"""Tiny networks, data and jobs: everything seeded, so that a whole job takes a few seconds and repeats exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from search_spaces.space import SpaceSpec
from tuner.data.dataset import Dataset, InputInfo, open_dataset
from tuner.job import Budget, Constraint, DataRef, DataSpec, JobSpec

FEATURES, CLASSES = 16, 5
SMALL_SPACE = SpaceSpec(name="small", calibrations=("minmax", "mse"), operators=False)
PER_TENSOR = SpaceSpec(name="per tensor", granularities=("tensor",), calibrations=("minmax",), operators=False)


def net(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    x: Sequence[int | str],
    y: Sequence[int | str],
    inputs: Mapping[str, int] | None = None,
) -> bytes:
    """The bytes of a graph from input `x` to output `y`; `inputs` gives names and element types where `x` is not one float."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, kind, x) for name, kind in (inputs or {"x": onnx.TensorProto.FLOAT}).items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)],
        [numpy_helper.from_array(_stored(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString(deterministic=True))


def _stored(value: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(value, np.int64 if value.dtype.kind == "i" else np.float32)


def conv(seed: int = 0) -> bytes:
    """Two Conv side by side on 4 × 4 images, their sum, pooling and a Gemm: an operator between quantized layers."""
    random = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {
        "shape": np.array([-1, 1, 4, 4]),
        "w1": random.standard_normal((6, 1, 3, 3)),
        "w2": random.standard_normal((6, 1, 3, 3)),
        "w3": random.standard_normal((6, CLASSES)),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"], name="reshape"),
        helper.make_node("Conv", ["image", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["image", "w2"], ["b"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "b"], ["sum"], name="add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3"], ["y"], name="fc"),
    ]
    return net(nodes, weights, ["batch", FEATURES], ["batch", CLASSES])


def dense(seed: int = 0, hidden: int = 32, batch: int | str = "batch", spoil: bool = False) -> bytes:
    """Three Gemm layers fc1, fc2 and fc3 with Relu between. spoil: one output channel of fc2 has weights 1000 times as large
    and a bias that keeps it dark, so that only a scale for the whole tensor suffers."""
    random = np.random.default_rng(seed)
    sizes = (FEATURES, hidden, hidden, CLASSES)
    weights: dict[str, NDArray[Any]] = {}
    nodes = []
    source = "x"
    for index, (rows, columns) in enumerate(pairwise(sizes), start=1):
        weights[f"w{index}"] = random.standard_normal((rows, columns)) * np.sqrt(2 / rows)
        weights[f"b{index}"] = random.standard_normal(columns) * 0.1
        output = f"h{index}" if index < 3 else "y"
        nodes.append(helper.make_node("Gemm", [source, f"w{index}", f"b{index}"], [output], name=f"fc{index}"))
        if index < 3:
            nodes.append(helper.make_node("Relu", [output], [f"r{index}"], name=f"relu{index}"))
            source = f"r{index}"
    if spoil:
        weights["w2"][:, 0] *= 1000
        weights["b2"][0] = -1e5
    return net(nodes, weights, [batch, FEATURES], [batch, CLASSES])


def dense_data(model: bytes, rows: int, seed: int = 1, noise: float = 0.1) -> dict[str, NDArray[Any]]:
    """Random rows whose labels are what the model says, but for a share `noise` of them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, FEATURES)).astype(np.float32)
    truth = reference(model, x).argmax(axis=1)
    labels = np.where(random.random(rows) < noise, random.integers(0, CLASSES, rows), truth)
    return {"x": x, "labels": labels}


def reference(model: bytes, x: NDArray[Any]) -> NDArray[np.float32]:
    """The model's outputs as the reference implementation of ONNX has them, a row at a time where the batch is fixed."""
    proto = onnx.load_from_string(model)
    evaluator = ReferenceEvaluator(proto)

    def run(rows: NDArray[Any]) -> NDArray[np.float32]:
        outputs: list[Any] = list(evaluator.run(None, {"x": rows}))
        return np.asarray(outputs[0], np.float32)

    fixed = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if not fixed:
        return run(x)
    blocks = [np.resize(x[first : first + fixed], (fixed, *x.shape[1:])) for first in range(0, len(x), fixed)]
    return np.concatenate([run(block) for block in blocks])[: len(x)]


def save_data(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def dataset(path: Path, cache: Path, features: int = FEATURES) -> Dataset:
    """All rows of a file with one float input `x`."""
    return open_dataset(DataRef(file=str(path)), [InputInfo("x", "float32", (None, features))], cache)


def tiny_job(folder: Path, model: bytes | None = None, data: Mapping[str, NDArray[Any]] | None = None, **changes: Any) -> JobSpec:
    """A job over `folder`/model.onnx and `folder`/data.npz: 128 rows calibrate, then 60 % of the rest validate and 40 % are held
    out."""
    folder.mkdir(parents=True, exist_ok=True)
    model = dense() if model is None else model
    data = dense_data(model, 1128) if data is None else data
    (folder / "model.onnx").write_bytes(model)
    file = str(save_data(folder / "data.npz", data))
    rows = len(next(iter(data.values())))
    calibrate = min(128, rows // 4)
    middle = calibrate + round((rows - calibrate) * 0.6)
    spec = JobSpec(
        model=str(folder / "model.onnx"),
        data=DataSpec(
            calibration=DataRef(file=file, rows=(0, calibrate)),
            validation=DataRef(file=file, rows=(calibrate, middle)),
            holdout=DataRef(file=file, rows=(middle, rows)),
        ),
        metrics=("top1",),
        constraints=(Constraint(metric="top1", max_drop=0.02),),
        objectives=("size",),
        space=SMALL_SPACE,
        budget=Budget(trials=5, seconds=120, threads=1),
    )
    return spec.model_copy(update=changes)
