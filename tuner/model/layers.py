"""The layer table: which nodes can be compressed, how big they are and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx

from tuner.model.graph import Model, attribute

WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
"""Operators that can hold a weight, and which input holds it (MatMul: either)."""


@dataclass(frozen=True)
class LayerInfo:
    """One node that computes: its sizes are those of one row (batch 1)."""

    name: str
    op: str
    input: str
    """The activation it reads."""
    output: str
    weight: str | None
    """The initializer that holds its weight; None for Add, Softmax and other operators without one."""
    bias: str | None
    weight_shape: tuple[int, ...]
    output_shape: tuple[int | None, ...]
    params: int
    macs: int | None
    """Multiply-accumulates; None where the output's shape is not known."""


def layer_table(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[LayerInfo]:
    """Every node with a weight, in topological order. Shapes are inferred for `input_shapes` (default: batch 1, and 1 for
    every other dynamic dimension)."""
    shapes = model.shapes(input_shapes or {i.name: tuple(d or 1 for d in i.shape) for i in model.inputs})
    return [layer for node in model.nodes.values() if (layer := _layer(model, node, shapes)) is not None]


def total_macs(layers: list[LayerInfo]) -> int:
    return sum(layer.macs or 0 for layer in layers)


def weight_of(model: Model, node: onnx.NodeProto) -> str | None:
    """The initializer that is the node's float weight, if it has one."""
    if node.domain or node.op_type not in WEIGHT_INPUT:
        return None
    position = WEIGHT_INPUT[node.op_type]
    candidates = node.input[:2] if node.op_type == "MatMul" else node.input[position : position + 1]
    for name in reversed(candidates):
        tensor = model.initializers.get(name)
        if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2:
            return str(name)
    return None


def prunable_layers(model: Model) -> list[str]:
    """The layers whose weights can be set to zero, in topological order: convolutions and products with their weight as second input."""
    return [name for name, node in model.nodes.items() if node.op_type != "Gather" and weight_of(model, node) in (*node.input[1:2],)]


def _layer(model: Model, node: onnx.NodeProto, shapes: Mapping[str, tuple[int | None, ...]]) -> LayerInfo | None:
    weight = weight_of(model, node)
    if weight is None:
        return None
    weight_shape = tuple(model.initializers[weight].dims)
    output_shape = shapes.get(node.output[0], ())
    bias = node.input[2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2 and node.input[2] else None
    bias_size = prod(model.initializers[bias].dims) if bias in model.initializers else 0
    return LayerInfo(
        name=node.name,
        op=node.op_type,
        input=next((name for name in node.input if name != weight), ""),
        output=node.output[0],
        weight=weight,
        bias=bias,
        weight_shape=weight_shape,
        output_shape=output_shape,
        params=prod(weight_shape) + bias_size,
        macs=_macs(node, weight_shape, output_shape, shapes, node.input[0] == weight),
    )


def _macs(
    node: onnx.NodeProto,
    weight: tuple[int, ...],
    output: tuple[int | None, ...],
    shapes: Mapping[str, tuple[int | None, ...]],
    weight_on_left: bool,
) -> int | None:
    """Each output number of Conv costs in_channels/group × kernel MACs, of a product its reduced dimension, of Gather none."""
    if node.op_type == "Gather":
        return 0
    positions = output if node.op_type != "ConvTranspose" else shapes.get(node.input[0], ())
    if not positions or any(size is None for size in positions):
        return None
    count = prod(size for size in positions if size is not None)
    if node.op_type in ("Conv", "ConvTranspose"):
        return count * prod(weight[1:])
    if node.op_type == "Gemm":
        return count * weight[1 if attribute(node, "transB", 0) else 0]
    # The weight of a product is mostly on its right; on its left, the reduced dimension is its last.
    return count * (weight[-1] if weight_on_left else weight[-2])
