"""One ONNX node as a model, for tests that compare what it computes with onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from builders import Array, run
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from tuner.model.graph import Model
from tuner.model.torch_view import torch_view

RANDOM = np.random.default_rng(0)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Const:
    """An operand that the graph holds."""

    values: Array


@dataclass(frozen=True)
class Case:
    op: str
    operands: tuple[Any, ...]
    attributes: dict[str, Any]
    opset: int
    outputs: int
    tolerance: float
    note: str = field(default="")

    @property
    def id(self) -> str:
        parts = [self.op, str(self.opset), *(f"{k}={v}" for k, v in self.attributes.items() if isinstance(v, str | int)), self.note]
        return "-".join(part for part in parts if part)


def case(op: str, *operands: Any, opset: int = 18, outputs: int = 1, tolerance: float = 1e-5, note: str = "", **attributes: Any) -> Case:
    """operands: arrays are fed, Const is held by the graph, None is left out."""
    return Case(op, operands, attributes, opset, outputs, tolerance, note)


def x(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return RANDOM.uniform(0.1, 0.9, shape).astype(np.float32)


def whole(*values: Any) -> Array:
    return np.asarray(values, np.int64)


def held(*values: Any) -> Const:
    return Const(whole(*values))


def scalar(value: ArrayLike, dtype: Any = np.float32) -> Const:
    return Const(np.asarray(value, dtype))


def model_of(one: Case) -> tuple[Model, dict[str, Array], list[Array]]:
    """The node as a model, what to feed it, and what onnxruntime makes of it."""
    names, inputs, initializers, feed = [], [], [], {}
    for index, operand in enumerate(one.operands):
        name = "" if operand is None else f"in{index}"
        names.append(name)
        if isinstance(operand, Const):
            initializers.append(numpy_helper.from_array(operand.values, name))
        elif operand is not None:
            kind = helper.np_dtype_to_tensor_dtype(operand.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(operand.ndim)]))
            feed[name] = operand
    outputs = [f"out{index}" for index in range(one.outputs)]
    node = helper.make_node(one.op, names, outputs, name="node", **one.attributes)
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", one.opset)], ir_version=8 if one.opset < 21 else 10)
    results = run(proto.SerializeToString(), feed, optimize=False)
    # The rules want the outputs' shapes to be written down, and not every operator's can be inferred.
    for value, array in zip(proto.graph.output, results, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [f"{value.name}_{axis}" for axis in range(array.ndim)]))
    return Model.parse(proto.SerializeToString()), feed, results


def check(one: Case) -> None:
    model, feed, expected = model_of(one)
    found = torch_view(model)({name: torch.from_numpy(array) for name, array in feed.items()})
    assert len(found) == one.outputs
    for (name, tensor), array in zip(found.items(), expected, strict=True):
        result = tensor.detach().numpy()
        assert (result.dtype, result.shape) == (array.dtype, array.shape), name
        np.testing.assert_allclose(result, array, rtol=one.tolerance, atol=one.tolerance, err_msg=name)
