"""The constants of a graph as the torch view sees them: their tensors, which of them are trained, and how they are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from tuner.errors import ModelError
from tuner.model.graph import Model
from tuner.model.torch_table import DTYPES

Layout = Literal["same", "transposed", "flat"]
"""How a parameter of torch lies against its initializer: as it is, as its transpose, or without the sizes of 1."""

STANDARD = ("", "ai.onnx")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1, 2),
    "Gather": (0,),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Operands that are trained where they are float initializers."""
CARRIES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Cast")
"""Operators behind which a weight is still that weight."""
MEASURES = ("Shape", "Size")
PICKS = ("Gather", "Identity", "ReduceProd", "Slice", "Squeeze", "Unsqueeze")
ARITHMETIC = ("Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Max", "Min", "Mul", "Sub")
"""Operators that make sizes out of sizes: a vector that sizes are multiplied with is not a weight."""
LARGEST_ADDEND = 1e4
"""What is added is not trained if it reaches this: it is a mask."""

_FORMS: Mapping[str, Any] = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


class Constants:
    """Initializers and the outputs of Constant nodes, by name."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.tensors: dict[str, onnx.TensorProto] = dict(model.initializers)
        self._aliases: dict[str, str] = {}
        for node in model.nodes.values():
            if node.op_type == "Constant" and (tensor := constant_tensor(node)) is not None:
                self.tensors[node.output[0]] = tensor
            elif node.op_type == "Identity" and (origin := self.origin(node.input[0])) is not None:
                self._aliases[node.output[0]] = origin

    def origin(self, name: str) -> str | None:
        """The constant that a tensor is, through any Identity; None for a computed one."""
        return name if name in self.tensors else self._aliases.get(name)

    def array(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.tensors[name])

    def dims(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].dims)

    @cached_property
    def trained(self) -> frozenset[str]:
        """The initializers that are trained: float weights of layers, and vectors or tables that are added or multiplied with."""
        found = {
            name
            for node in self._model.nodes.values()
            if node.domain in STANDARD
            for position in WEIGHTS.get(node.op_type, ())
            if position < len(node.input) and not self._sizes.intersection(node.input)
            for name in self._made_of.get(node.input[position], ())
            if self._trains(node.op_type, name)
        }
        return frozenset(found)

    @cached_property
    def _sizes(self) -> frozenset[str]:
        """Tensors computed from shapes and constants alone."""
        found: set[str] = set()
        for node in self._model.nodes.values():
            sources = node.input[:1] if node.op_type in PICKS else node.input
            computed = {name for name in sources if name and self.origin(name) is None}
            if node.op_type in MEASURES or (node.op_type in (*PICKS, *ARITHMETIC) and computed and computed <= found):
                found.update(node.output)
        return frozenset(found)

    @cached_property
    def _made_of(self) -> dict[str, frozenset[str]]:
        """For tensors that are float initializers, maybe turned, reshaped or joined, and nothing else: which."""
        found = {name: frozenset([name]) for name, tensor in self._model.initializers.items() if tensor.data_type in FLOATS}
        for node in self._model.nodes.values():
            if node.op_type not in (*CARRIES, "Concat"):
                continue
            parts = [found.get(name) for name in (node.input if node.op_type == "Concat" else node.input[:1])]
            if all(parts):
                found[node.output[0]] = frozenset().union(*(part for part in parts if part))
        return found

    def _trains(self, op: str, name: str) -> bool:
        dims = self.dims(name)
        if op in ("Gather", "Einsum"):
            return len(dims) > 1
        if op == "Mul":
            # More than one long axis: a table, such as the sines of a rotary embedding.
            return sum(size > 1 for size in dims) == 1
        if op == "Add":
            return int(np.prod(dims)) > 1 and bool((np.abs(self.array(name).astype(np.float32)) < LARGEST_ADDEND).all())
        return True


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node holds; None for texts and sparse tensors."""
    item = node.attribute[0]
    if item.name == "value":
        tensor: onnx.TensorProto = item.t
        return tensor
    if item.name not in _FORMS:
        return None
    values = np.asarray(onnx.helper.get_attribute_value(item), _FORMS[item.name])
    return numpy_helper.from_array(values, node.output[0])


def torch_tensor(proto: onnx.TensorProto) -> Tensor:
    """A tensor of its own with a constant's values."""
    array = numpy_helper.to_array(proto)
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if proto.data_type not in DTYPES:
        kind = onnx.TensorProto.DataType.Name(proto.data_type)
        raise ModelError(f"constant '{proto.name}' is of the type {kind}, which the torch view does not have; use float or whole numbers")
    return torch.from_numpy(np.array(array))


def onnx_tensor(values: Tensor, like: onnx.TensorProto) -> onnx.TensorProto:
    """The initializer `like` with other values."""
    plain = values.detach().to("cpu", DTYPES[like.data_type]).contiguous()
    if like.data_type == onnx.TensorProto.BFLOAT16:
        array = plain.view(torch.int16).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(like.data_type))
    else:
        array = plain.numpy()
    return numpy_helper.from_array(array, like.name)


def same_values(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    """Bit for bit, so that NaN is itself and -0 is not 0."""
    a, b = (numpy_helper.to_array(tensor) for tensor in (one, other))
    return a.shape == b.shape and np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def laid_out(values: Tensor, layout: Layout) -> Tensor:
    """An initializer's tensor as the parameter of torch holds it."""
    if layout == "same":
        return values
    return values.t().contiguous() if layout == "transposed" else values.reshape(-1)


def onnx_view(parameter: Tensor, layout: Layout, dims: tuple[int, ...]) -> Tensor:
    """A parameter in the initializer's layout, in the same storage."""
    if layout == "same":
        return parameter
    return parameter.t() if layout == "transposed" else parameter.view(dims)
