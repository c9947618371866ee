"""What operators that compute do with labels: they use some up, make new ones, tie some together, or freeze them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from tuner.compress.pruning.labels import Axes, Indices
from tuner.compress.pruning.tracing import ONE, NotFollowed, Rule, Size, Trace, axis_of, has_input, present, without
from tuner.model.graph import attribute


def convolution(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """Input channels are summed, output channels are new. With groups, every group loses the same of its channels, so that they stay
    equal; where each channel is its own group, what goes in comes out."""
    x, weight = trace.read(node, 0), trace.read(node, 1)
    dims, groups, channels = _convolved(trace, node)
    trace.stop(node, x[2:], "moves a window over them")
    if groups > 1 and groups == channels:
        out = _depthwise(trace, node, x[1], weight, dims)
    elif node.op_type == "Conv":
        _contract(trace, node, _columns(trace, x[1], groups), weight[1], node.input[1])
        out = _columns(trace, weight[0], groups, restore=True)
        _role(trace, weight[0], node)
    else:
        _contract(trace, node, _columns(trace, x[1], groups, restore=True), weight[0], node.input[1])
        out = None if weight[1] is None else np.tile(weight[1], groups)
        _role(trace, weight[1], node)
    _tie(trace, node, out, 2)
    return [(x[0], out, *[None] * (len(x) - 2))]


def _convolved(trace: Trace, node: onnx.NodeProto) -> tuple[list[int], int, int]:
    """The weight's dims, the number of groups and of input channels."""
    dims = [size[0] for size in trace.dims(node.input[1]) if size]
    if node.input[1] not in trace.weights or len(dims) < 3:
        raise NotFollowed("has a weight that is computed")
    groups = int(attribute(node, "group", 1))
    return dims, groups, dims[1] * groups if node.op_type == "Conv" else dims[0]


def _depthwise(trace: Trace, node: onnx.NodeProto, data: Indices | None, weight: Axes, dims: list[int]) -> Indices | None:
    """Output channel c·m + j is made of input channel c alone, with m outputs to each input."""
    if data is None or weight[0] is None:
        trace.stop(node, (data, weight[0]), "")
        return None
    if node.op_type == "Conv":
        trace.labels.unite(np.repeat(data, dims[0] // len(data)), weight[0])
        return weight[0]
    trace.labels.unite(data, weight[0])
    return np.repeat(weight[0], dims[1])


def _columns(trace: Trace, labels: Indices | None, groups: int, restore: bool = False) -> Indices | None:
    """Channel c of every group goes with channel c of the others: the labels of the first group, or of all."""
    if labels is None or groups == 1:
        return labels
    table = labels.reshape(groups, -1)
    trace.labels.unite(table, table[:1])
    return labels if restore else table[0]


def _contract(trace: Trace, node: onnx.NodeProto, data: Indices | None, weight: Indices | None, name: str) -> None:
    """The node sums over this axis of the data and of the weight: a channel that goes takes its slice of the weight along."""
    if name not in trace.weights:
        trace.stop(node, (data, weight), "sums over them, and both its factors are computed")
    elif data is None or weight is None:
        trace.stop(node, (data, weight), "")
    else:
        trace.labels.unite(data, weight)
        trace.labels.role(weight, "in", node.name)


def _role(trace: Trace, labels: Indices | None, node: onnx.NodeProto) -> None:
    if labels is not None:
        trace.labels.role(labels, "out", node.name)


def _tie(trace: Trace, node: onnx.NodeProto, labels: Indices | None, position: int) -> None:
    """A parameter at an input with one number for each channel on its last axis."""
    own = trace.optional(node, position)
    if labels is None or not own or trace.dims(node.input[position])[-1] == ONE:
        return
    if own[-1] is None or len(own[-1]) != len(labels):
        trace.stop(node, (labels,), "has a parameter that is computed")
    else:
        trace.labels.unite(labels, own[-1])


def gemm(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x, weight = trace.read(node, 0), trace.read(node, 1)
    if attribute(node, "transA", 0):
        raise NotFollowed("reads its input transposed")
    summed, made = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    _contract(trace, node, x[1], weight[summed], node.input[1])
    if node.input[1] in trace.weights:
        _role(trace, weight[made], node)
    _tie(trace, node, weight[made], 2)
    return [(x[0], weight[made])]


def matmul(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """[…, M, K] times […, K, N]: K is summed, the leading axes go together."""
    a, b = trace.read(node, 0), trace.read(node, 1)
    if len(a) < 2 or len(b) < 2:
        raise NotFollowed("multiplies by a vector")
    batch = _join(trace, node, [a[:-2], b[:-2]], [trace.dims(node.input[0])[:-2], trace.dims(node.input[1])[:-2]])
    if node.input[1] in trace.weights:
        _contract(trace, node, a[-1], b[-2], node.input[1])
        _role(trace, b[-1], node)
    else:
        _contract(trace, node, b[-2], a[-1], node.input[0])
        if node.input[0] in trace.weights:
            _role(trace, a[-2], node)
    return [(*batch, a[-2], b[-1])]


def elementwise(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    used = [position for position in range(len(node.input)) if has_input(node, position)]
    return [_join(trace, node, [trace.read(node, p) for p in used], [trace.dims(node.input[p]) for p in used])]


def _join(trace: Trace, node: onnx.NodeProto, operands: Sequence[Axes], sizes: Sequence[tuple[Size, ...]]) -> Axes:
    """Labels of operands that are broadcast against each other: those at one index go together."""
    rank = max(len(axes) for axes in operands)
    joined: list[Indices | None] = []
    for back in range(rank, 0, -1):
        here = [(axes[-back], dims[-back]) for axes, dims in zip(operands, sizes, strict=True) if len(axes) >= back]
        found = present([labels for labels, _ in here])
        if len({len(labels) for labels in found}) > 1:
            raise NotFollowed("has operands that do not fit each other")
        if any(labels is None and size != ONE for labels, size in here):
            trace.stop(node, tuple(found), "combines them with a tensor that is not made of channels")
        for labels in found[1:]:
            trace.labels.unite(found[0], labels)
        joined.append(found[0] if found else None)
    return tuple(joined)


def same(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """Each number of the output is made of the one in its place; other inputs are settings."""
    if node.op_type in ("Identity", "Cast") and node.input[0] in trace.weights:
        trace.weights.add(node.output[0])
    return [trace.read(node, 0)] * min(len(node.output), 2 if node.op_type == "Dropout" else 1)


def per_channel(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """A normalization of each channel by itself, with parameters for each."""
    x = trace.read(node, 0)
    for position in range(1, len(node.input)):
        _tie(trace, node, x[1], position)
    if node.op_type == "InstanceNormalization":
        trace.stop(node, x[2:], "normalizes over them")
    return [x]


def normalized(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """A normalization over the channels: it would give other numbers with fewer of them."""
    x = trace.read(node, 0)
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        first = axis_of(node, len(x), -1)
    elif node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and trace.model.opset < 13:
        first = axis_of(node, len(x), 1)
    else:
        first = 1
    trace.stop(node, x[first:], "normalizes over them")
    return [x]


def along(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """What mixes the numbers along one axis and keeps their places."""
    if node.op_type != "CumSum" and trace.model.opset < 13:
        return normalized(trace, node)
    x = trace.read(node, 0)
    given = trace.ints(node, 1, "axis") if node.op_type == "CumSum" else [axis_of(node, len(x), -1)]
    if given is None:
        raise NotFollowed("works along an axis that is computed")
    axis = given[0] % len(x)
    trace.stop(node, x[axis : axis + 1], "takes all of them into account")
    return [x]


def pool(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x = trace.read(node, 0)
    if len(node.output) > 1 and node.output[1]:
        raise NotFollowed("returns places within all channels")
    trace.stop(node, x[2:], "moves a window over them")
    return [without(x, range(2, len(x)))]


def reduction(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x = trace.read(node, 0)
    axes = trace.ints(node, 1, "axes")
    if axes is None and has_input(node, 1):
        raise NotFollowed("reduces over axes that are computed")
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return [x]
    reduced = {axis % len(x) for axis in axes} if axes else set(range(len(x)))
    trace.stop(node, tuple(x[axis] for axis in sorted(reduced)), "reduces over them")
    kept = without(x, sorted(reduced))
    return [kept if attribute(node, "keepdims", 1) else tuple(labels for axis, labels in enumerate(kept) if axis not in reduced)]


_ELEMENTWISE = """Add Sub Mul Div Pow Mod Max Min Mean Sum Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Where PRelu
BitShift BitwiseAnd BitwiseOr BitwiseXor"""
_SAME = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu
HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""
_POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"
_REDUCTIONS = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare"""

COMPUTING: dict[str, Rule] = {
    "Conv": convolution,
    "ConvTranspose": convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), per_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "GroupNormalization", "LRN", "MeanVarianceNormalization"), normalized),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum"), along),
    **dict.fromkeys(_POOLS.split(), pool),
    **dict.fromkeys(_REDUCTIONS.split(), reduction),
}
