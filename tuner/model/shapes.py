"""Shapes of tensors, inferred from a graph without its weights; and how much room a tensor takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import onnx

from tuner.errors import ModelError

_NARROW = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_BITS = {onnx.TensorProto.DataType.Value(name): bits for name, bits in _NARROW.items() if name in onnx.TensorProto.DataType.keys()}
SMALL = 1024
"""Constants with more numbers than this say nothing about shapes."""
MAX_FOLLOWED = 1 << 21
"""Following values, not only shapes, tells more, but takes memory for each number of a tensor with one dimension, whatever it is for."""


def inferred_graph(proto: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> onnx.GraphProto:
    """The graph without its big weights, every tensor with the shape that inference can tell for concrete input shapes.

    What the file itself says of inner shapes is not believed. ModelError where inference breaks."""
    skeleton = _without_big_weights(proto)
    for value in skeleton.graph.input:
        if value.name not in input_shapes:
            continue
        for dim, size in zip(value.type.tensor_type.shape.dim, input_shapes[value.name], strict=False):
            dim.dim_value = size
    for value in skeleton.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        plain = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False).graph
        if _longest(plain) > MAX_FOLLOWED:
            return plain
        return onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the shapes of the model's tensors cannot be inferred: {reason}. Export it again") from error


def inferred_shapes(proto: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int | None, ...]]:
    """Shape of every tensor of the outermost graph that inference can tell (None where a dimension stays unknown)."""
    inferred = inferred_graph(proto, input_shapes)
    found: dict[str, tuple[int | None, ...]] = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
    return found


def one_row(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes with every dynamic dimension, the batch among them, at 1."""
    return {value.name: tuple(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim) for value in graph.input}


def graphs_of(outermost: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """The graph and all graphs nested in attributes, with how deep each lies."""
    pending = [(outermost, 0)]
    while pending:
        graph, depth = pending.pop()
        yield graph, depth
        for node in graph.node:
            for item in node.attribute:
                inner = [item.g] if item.HasField("g") else []
                pending.extend((each, depth + 1) for each in (*inner, *item.graphs))


def bits_of(kind: int) -> int:
    """Bits of one number of an element type; a text counts as a pointer. KeyError for a type that does not exist."""
    return _BITS[kind] if kind in _BITS else int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize) * 8


def _longest(outermost: onnx.GraphProto) -> int:
    """The size of the largest tensor of one dimension."""
    values = (value for graph, _ in graphs_of(outermost) for value in (*graph.input, *graph.value_info, *graph.output))
    shapes = (value.type.tensor_type.shape.dim for value in values)
    return max((shape[0].dim_value for shape in shapes if len(shape) == 1), default=0)


def _without_big_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with weights turned into inputs, so that inference does not copy them; shape constants stay."""
    skeleton = onnx.ModelProto(ir_version=proto.ir_version)
    skeleton.opset_import.extend(proto.opset_import)
    skeleton.functions.extend(proto.functions)
    skeleton.graph.name = "shapes"
    skeleton.graph.node.extend(proto.graph.node)
    skeleton.graph.input.extend(proto.graph.input)
    skeleton.graph.output.extend(proto.graph.output)
    declared = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) <= SMALL:
            skeleton.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return skeleton
