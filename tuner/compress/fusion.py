"""Graph clean-up before compression: what leaves outputs equal and gives every layer one weight and one bias."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tuner.model.graph import Model, attribute, seal


def prepare(model: Model) -> Model:
    """Constants become initializers, BatchNormalization after a Conv is folded into it, what nothing reads is dropped.

    Deterministic: the same model gives the same bytes, which is what lets a plan be replayed on the original file."""
    proto = model.copy()
    _lift_constants(proto.graph)
    _fold_batch_norms(proto.graph)
    _drop_unread(proto.graph)
    del proto.graph.value_info[:]
    return seal(proto)


def _lift_constants(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" and not node.domain else None
        if value is None:
            kept.append(node)
            continue
        value.name = node.output[0]
        graph.initializer.append(value)
    _replace_nodes(graph, kept)


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Conv(x, W) then BatchNormalization is Conv(x, W·γ/√(σ²+ε)) with bias (b-μ)·γ/√(σ²+ε)+β (Jacob et al., 2018,
    arXiv:1712.05877, section 3.2)."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    producers = {name: node for node in graph.node for name in node.output}
    folded = set()
    for norm in graph.node:
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" and not norm.domain else None
        if conv is None or conv.op_type != "Conv" or not _can_fold(conv, norm, constants, readers):
            continue
        gamma, beta, mean, variance = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:5])
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weight = numpy_helper.to_array(constants[conv.input[1]])
        bias = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 and conv.input[2] else np.zeros(len(weight))
        _set_constant(graph, constants, conv, 1, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), readers)
        _set_constant(graph, constants, conv, 2, (bias - mean) * factor + beta, readers)
        conv.output[0] = norm.output[0]
        folded.add(norm.name)
    _replace_nodes(graph, [node for node in graph.node if node.name not in folded])


def _can_fold(conv: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto], readers: Counter[str]) -> bool:
    parameters = [conv.input[1], *conv.input[2:3], *norm.input[1:5]]
    used = [name for name in parameters if name]
    if readers[conv.output[0]] != 1 or len([o for o in norm.output if o]) != 1 or attribute(norm, "training_mode", 0):
        return False
    return all(name in constants and constants[name].data_type == onnx.TensorProto.FLOAT for name in used)


def _set_constant(
    graph: onnx.GraphProto,
    constants: dict[str, onnx.TensorProto],
    node: onnx.NodeProto,
    position: int,
    values: NDArray[np.float64],
    readers: Counter[str],
) -> None:
    """Give the node its own constant at an input: the old one in place where nobody else reads it, else a new one."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    old = node.input[position] if len(node.input) > position else ""
    if old and readers[old] == 1:
        constants[old].CopyFrom(numpy_helper.from_array(array, old))
        return
    name = f"{node.name}.{'weight' if position == 1 else 'bias'}"
    graph.initializer.append(numpy_helper.from_array(array, name))
    constants[name] = graph.initializer[-1]
    readers[name] = 1
    if len(node.input) > position:
        node.input[position] = name
    else:
        node.input.append(name)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output} | _read_inside(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) == len(graph.initializer):
        return
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _read_inside(graph: onnx.GraphProto) -> set[str]:
    """Names that graphs nested in attributes (If, Loop) read."""
    found: set[str] = set()
    for node in graph.node:
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                found.update(name for n in inner.node for name in n.input)
                found.update(_read_inside(inner))
    return found


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    if len(nodes) == len(graph.node):
        return
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
