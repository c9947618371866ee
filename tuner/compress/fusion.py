"""Graph clean-up before compression: what leaves outputs equal and gives every layer one weight and one bias."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

from tuner.errors import ModelError
from tuner.model.graph import Model, attribute, inner_reads, name_nodes, seal

LEAST_OPSET = 13
"""The first in which a scale per channel can be written."""
_LEAST_IR = 4
"""The first in which initializers need not be graph inputs."""


def prepare(model: Model) -> Model:
    """Older opsets are raised to 13, constants become initializers, BatchNormalization after a Conv is folded into it, what
    nothing reads is dropped.

    Deterministic: the same model gives the same bytes, which is what lets a plan be replayed on the original file.
    ModelError where an older model cannot be raised."""
    return _cleaned(model, fold=True)


def unfold(model: Model) -> Model:
    """The same, but BatchNormalization stays apart, so that it can be trained and cut."""
    return _cleaned(model, fold=False)


def _cleaned(model: Model, fold: bool) -> Model:
    proto = model.copy()
    _fix_initializers(proto)
    if model.opset < LEAST_OPSET:
        proto = _raise_opset(proto, model.opset)
    _lift_constants(proto.graph)
    if fold:
        _fold_batch_norms(proto.graph)
    _drop_unread(proto.graph)
    del proto.graph.value_info[:]
    return seal(proto)


def _fix_initializers(proto: onnx.ModelProto) -> None:
    """Initializers that are inputs too could be fed, so that no runtime may fold them: they become constants."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    fed = [value for value in proto.graph.input if value.name not in constant]
    if len(fed) == len(proto.graph.input):
        return
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in fed]
    del proto.graph.input[:]
    proto.graph.input.extend(copies)
    proto.ir_version = max(proto.ir_version, _LEAST_IR)


def _raise_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        raised = version_converter.convert_version(proto, LEAST_OPSET)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the model has opset {opset}; a scale per channel needs {LEAST_OPSET} or more, and raising it failed: {reason}. "
            f"Export it with opset {LEAST_OPSET} or later"
        ) from error
    name_nodes(raised.graph)
    return raised


def _lift_constants(graph: onnx.GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        value = _constant(node) if node.op_type == "Constant" and not node.domain and node.output[0] not in outputs else None
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(value)
    _replace_nodes(graph, kept)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds; None for texts and sparse tensors."""
    tensor: onnx.TensorProto | None = attribute(node, "value")
    if tensor is not None:
        tensor.name = node.output[0]
        return tensor
    for kind, dtype in (("float", np.float32), ("int", np.int64)):
        for name in (f"value_{kind}", f"value_{kind}s"):
            values = attribute(node, name)
            if values is not None:
                return numpy_helper.from_array(np.array(values, dtype), node.output[0])
    return None


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Conv(x, W) then BatchNormalization is Conv(x, W·γ/√(σ²+ε)) with bias (b-μ)·γ/√(σ²+ε)+β (Jacob et al., 2018,
    arXiv:1712.05877, section 3.2)."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    readers.update(inner_reads(graph))
    producers = {name: node for node in graph.node for name in node.output}
    folded = set()
    for norm in graph.node:
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" and not norm.domain else None
        if conv is None or conv.op_type != "Conv" or conv.domain or not _can_fold(conv, norm, constants, readers):
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
    while name in constants or name in readers:
        name += "_"
    graph.initializer.append(numpy_helper.from_array(array, name))
    constants[name] = graph.initializer[-1]
    readers[name] = 1
    if len(node.input) > position:
        node.input[position] = name
    else:
        node.input.append(name)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output} | inner_reads(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) == len(graph.initializer):
        return
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    if len(nodes) == len(graph.node):
        return
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
