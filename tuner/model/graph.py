"""The model: one immutable ONNX graph with named nodes, and the look-ups that every other part needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tuner.errors import ModelError
from tuner.model.safety import check_safety, read_limited
from tuner.model.shapes import inferred_shapes


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: `shape` holds None where a dimension is dynamic; dimension 0 is the batch."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Model:
    """An ONNX graph that nobody changes. Whatever changes a model makes a copy of `proto` and a new Model."""

    def __init__(self, proto: onnx.ModelProto, data: bytes) -> None:
        self.proto = proto
        self.data = data
        """The bytes of its file."""

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read and check a file. ModelError names what is wrong with it and what to do."""
        return cls.parse(read_limited(Path(path)), name=str(path))

    @classmethod
    def parse(cls, data: bytes, name: str = "the model") -> Model:
        """Check and parse the bytes of an ONNX file."""
        proto = check_safety(data, name)
        name_nodes(proto.graph)
        return cls(proto, data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """Nodes by name, in topological order."""
        return {node.name: node for node in self.proto.graph.node}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {output: node for node in self.proto.graph.node for output in node.output if output}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.graph.node:
            for tensor in dict.fromkeys(node.input):
                found.setdefault(tensor, []).append(node)
        return found

    @cached_property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_tensor_info(value) for value in self.proto.graph.input if value.name not in self.initializers)

    @cached_property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_tensor_info(value) for value in self.proto.graph.output)

    @cached_property
    def opset(self) -> int:
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    @cached_property
    def size_bytes(self) -> int:
        return len(self.data)

    @cached_property
    def parameters(self) -> int:
        """Trained numbers: floating-point initializers, without the running statistics of normalizations."""
        running = {name for node in self.nodes.values() if node.op_type == "BatchNormalization" for name in node.input[3:5]}
        counted = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        return sum(int(np.prod(t.dims)) for t in self.initializers.values() if t.data_type in counted and t.name not in running)

    def array(self, initializer: str) -> NDArray[Any]:
        """The values of an initializer."""
        return numpy_helper.to_array(self.initializers[initializer])

    def copy(self) -> onnx.ModelProto:
        """A copy of the graph that may be changed."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto

    def shapes(self, input_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int | None, ...]]:
        """Shape of every tensor that inference can tell, for concrete input shapes (None where a dimension stays unknown)."""
        return inferred_shapes(self.proto, input_shapes)


def seal(proto: onnx.ModelProto) -> Model:
    """The Model of a changed graph."""
    return Model(proto, serialize(proto))


def serialize(proto: onnx.ModelProto) -> bytes:
    """The same graph always gives the same bytes."""
    return bytes(proto.SerializeToString(deterministic=True))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def inner_reads(graph: onnx.GraphProto) -> set[str]:
    """Names that graphs nested in attributes (If, Loop, Scan) use; tensors of `graph` may be among them."""
    found: set[str] = set()
    for node in graph.node:
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                found.update(name for n in inner.node for name in n.input)
                found.update(value.name for value in inner.output)
                found |= inner_reads(inner)
    return found


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    if not kind.elem_type:
        raise ModelError(f"'{value.name}' of the model is not a tensor; only tensors can be fed and compared")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    # Some exporters write -1 for a dynamic dimension.
    dims = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return TensorInfo(value.name, dtype, dims)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a unique name; a name that is there stays with the first node that has it."""
    given = {node.name for node in graph.node}
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            name = f"{node.name or node.op_type}_{index}"
            while name in given or name in seen:
                name = f"{name}_{index}"
            node.name = name
        seen.add(node.name)
