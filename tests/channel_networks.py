"""Small networks whose channels hang together in different ways, written node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from builders import Net, resnet20, small_cnn
from onnx import TensorProto, helper, numpy_helper

from tuner.model.graph import Model


class Wired(Net):
    """A Net with what networks of channels need besides."""

    def ints(self, name: str, values: Sequence[int] | int) -> str:
        return self.constant(name, values, np.int64)

    def parts(self, kind: str, inputs: Sequence[str], count: int, **attributes: int) -> list[str]:
        """A node with several outputs."""
        name = f"{kind.lower()}{len(self.nodes)}"
        outputs = [f"{name}_{part}" for part in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def linear(self, x: str, i: int, o: int, name: str) -> str:
        """On more than two dimensions: a product and a bias that is added."""
        return self.op("Add", self.matmul(x, i, o, name), self.constant(f"{name}.b", self.random.normal(size=o)), name=f"{name}_bias")

    def close(self, x: str, channels: int) -> Model:
        """Mean over the image, then a Gemm to 5 classes."""
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.output(self.gemm(pooled, channels, 5, "fc")).model()


def plain_chain() -> Model:
    """Two convolutions, each with BatchNormalization, then a pool and a Gemm."""
    net = Wired()
    x = net.op("Relu", net.norm(net.conv(net.input(), 3, 8, "conv1", bias=False), 8, "norm1"))
    x = net.op("PRelu", net.norm(net.conv(x, 8, 6, "conv2"), 6, "norm2"), net.constant("slope", net.random.normal(size=(6, 1, 1))))
    return net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), 6, 5, "fc", transposed=False)).model()


def inverted_residual() -> Model:
    """Expand, depthwise, squeeze and excite, project, add; then a depthwise convolution with two outputs to each input."""
    net = Wired()
    x = net.op("HardSwish", net.norm(net.conv(net.input(), 3, 8, "stem", bias=False), 8, "stem_norm"))
    y = net.op("Relu", net.norm(net.conv(x, 8, 16, "expand", kernel=1, bias=False), 16, "expand_norm"))
    y = net.op("Relu", net.conv(y, 16, 16, "depthwise", group=16))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 16, 4, "squeeze", kernel=1))
    y = net.op("Mul", y, net.op("Sigmoid", net.conv(gate, 4, 16, "excite", kernel=1)))
    x = net.op("Add", net.norm(net.conv(y, 16, 8, "project", kernel=1, bias=False), 8, "project_norm"), x)
    y = net.op("Relu", net.conv(x, 8, 16, "twice", group=8))
    pooled = net.op("ReduceMean", y, axes=[2, 3], keepdims=0)
    return net.output(net.gemm(pooled, 16, 5, "fc")).model()


def joined() -> Model:
    """Concat of two branches, Split in unequal parts, a Slice, and Concat again in another order."""
    net = Wired()
    x = net.input()
    both = net.op("Relu", net.op("Concat", net.conv(x, 3, 8, "left"), net.conv(x, 3, 4, "right"), axis=1))
    first, second = net.parts("Split", [both, net.ints("sizes", [5, 7])], 2, axis=1)
    middle = net.op("Slice", both, net.ints("from", [2]), net.ints("to", [6]), net.ints("axis", [1]))
    return net.close(net.conv(net.op("Concat", second, middle, first, axis=1), 16, 6, "last"), 6)


def gated() -> Model:
    """Halves of one convolution, of which one gates the other; opset 11, where sizes are attributes, and Split without any."""
    net = Wired(opset=11)
    content, gate = net.parts("Split", [net.conv(net.input(), 3, 12, "both")], 2, axis=1)
    y = net.conv(net.op("Mul", content, net.op("Sigmoid", gate)), 6, 8, "middle")
    parts = net.parts("Split", [y], 2, axis=1)
    net.nodes[-1].attribute.append(helper.make_attribute("split", [3, 5]))
    return net.close(net.op("Concat", net.conv(parts[0], 3, 4, "a"), net.conv(parts[1], 5, 4, "b"), axis=1), 8)


def flattened() -> Model:
    """A Gemm behind Flatten reads blocks of 4 × 4 numbers of each channel."""
    net = Wired()
    x = net.op("MaxPool", net.op("Relu", net.conv(net.input(), 3, 8, "conv")), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Reshape", x, net.ints("shape", [-1, 8 * 16]))
    x = net.op("Relu", net.gemm(x, 128, 12, "fc1"))
    return net.output(net.gemm(x, 12, 5, "fc2")).model()


def grouped() -> Model:
    """A convolution in 4 groups, a transposed one in 2, and one to a single channel."""
    net = Wired()
    x = net.op("Relu", net.conv(net.input(), 3, 16, "stem"))
    x = net.op("Relu", net.norm(net.conv(x, 16, 24, "grouped", group=4), 24, "norm"))
    weight = net.weight("up.w", (24, 5, 2, 2), 12)
    x = net.op("ConvTranspose", x, weight, net.constant("up.b", net.random.normal(size=10)), name="up", group=2, strides=[2, 2])
    return net.output(net.conv(x, 10, 1, "single")).model()


def shuffled() -> Model:
    """A channel shuffle by Reshape and Transpose, and one by Gather."""
    net = Wired()
    x = net.op("Relu", net.conv(net.input(), 3, 12, "first"))
    x = net.op("Reshape", x, net.ints("apart", [-1, 3, 4, 8, 8]))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints("together", [-1, 12, 8, 8]))
    x = net.op("Relu", net.conv(x, 12, 10, "second"))
    x = net.op("Gather", x, net.ints("order", [9, 0, 8, 1, 7, 2, -4, 3, 5, 4, 0]), axis=1)
    return net.close(net.conv(x, 11, 6, "third"), 6)


def upsampled() -> Model:
    """An encoder and a decoder: Resize by scales and by sizes, a skip, InstanceNormalization, DepthToSpace in both orders."""
    net = Wired()
    x = net.conv(net.input(), 3, 8, "down")
    parameters = [net.constant(f"instance.{part}", net.random.uniform(0.5, 1.5, 8)) for part in "gb"]
    skip = net.op("Relu", net.op("InstanceNormalization", x, *parameters, name="instance"))
    x = net.op("Relu", net.conv(skip, 8, 12, "deep", stride=2))
    x = net.op("Resize", x, "", net.constant("scales", [1, 1, 2, 2]), mode="nearest")
    x = net.op("Resize", x, "", "", net.ints("sizes", [2, 12, 8, 8]), mode="nearest")
    x = net.op("Relu", net.conv(net.op("Concat", x, skip, axis=1), 20, 16, "fuse"))
    x = net.op("DepthToSpace", x, blocksize=2, mode="CRD")
    x = net.op("DepthToSpace", net.conv(x, 4, 12, "widen"), blocksize=2)
    x = net.op("SpaceToDepth", x, blocksize=4)
    model = net.close(net.conv(x, 48, 6, "last"), 6)
    return fixed_batch(model, 2)


def fixed_batch(model: Model, rows: int) -> Model:
    proto = model.copy()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = rows
    return Model.parse(proto.SerializeToString(deterministic=True))


def attention(shape: str = "constant", fused: bool = False) -> Model:
    """A block of a transformer with 4 heads of 6, on [batch, length, 24], then a feed-forward part.

    shape: how Reshape is told what to do: by a `constant`, or by `arithmetic` (Shape, Gather, Concat), shared by query, key and value.
    fused: query, key and value from one product."""
    net = Wired()
    x = net.op("LayerNormalization", net.linear(net.input(shape=("batch", "length", 10)), 10, 24, "embed"), *_ones(net), name="ln", axis=-1)
    query, key, value = _fused(net, x) if fused else _apart(net, x, shape)
    scores = net.op("MatMul", net.op("Mul", query, net.constant("scale", 6**-0.5)), net.op("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), _wanted(net, x, shape, [24]))
    x = net.op("Add", net.linear(merged, 24, 24, "project"), x)
    wide = net.op("Mul", net.linear(x, 24, 32, "up"), net.op("Erf", net.linear(x, 24, 32, "gate")))
    return net.output(net.op("ReduceMean", net.linear(wide, 32, 7, "down"), axes=[1], keepdims=0), shape=["batch", 7]).model()


def _ones(net: Wired) -> list[str]:
    return [net.constant("ln.w", np.ones(24)), net.constant("ln.b", np.zeros(24))]


def _apart(net: Wired, x: str, shape: str) -> list[str]:
    wanted = _wanted(net, x, shape, [4, 6])
    made = [net.op("Reshape", net.linear(x, 24, 24, name), wanted) for name in ("query", "key", "value")]
    return [net.op("Transpose", part, perm=[0, 2, 1, 3]) for part in made]


def _fused(net: Wired, x: str) -> list[str]:
    apart = net.op("Reshape", net.linear(x, 24, 72, "qkv"), net.ints("apart", [0, 0, 3, 4, 6]))
    turned = net.op("Transpose", apart, perm=[2, 0, 3, 1, 4])
    return [net.op("Gather", turned, net.ints(f"part{part}", part), axis=0) for part in range(3)]


def _wanted(net: Wired, x: str, shape: str, last: list[int]) -> str:
    name = f"{len(net.nodes)}"
    if shape == "constant":
        return net.ints(f"shape{name}", [0, 0, *last])
    whole = net.op("Shape", x)
    axes = net.ints(f"first{name}", [0])
    leading = [net.op("Unsqueeze", net.op("Gather", whole, net.ints(f"axis{name}{axis}", axis), axis=0), axes) for axis in (0, 1)]
    sizes = [net.op("Unsqueeze", net.ints(f"size{name}{place}", size), axes) for place, size in enumerate(last)]
    return net.op("Concat", *leading, *sizes, axis=0)


def merged_heads() -> Model:
    """Attention whose batch and heads are one dimension: [batch · 3, length, 4]."""
    net = Wired()
    x = net.input(shape=("batch", 5, 12))
    heads = []
    for name in ("query", "key", "value"):
        made = net.op("Transpose", net.linear(x, 12, 12, name), perm=[1, 0, 2])
        heads.append(net.op("Transpose", net.op("Reshape", made, net.ints(f"{name}.shape", [5, -1, 4])), perm=[1, 0, 2]))
    scores = net.op("Softmax", net.op("MatMul", heads[0], net.op("Transpose", heads[1], perm=[0, 2, 1])), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, heads[2]), perm=[1, 0, 2])
    out = net.linear(net.op("Reshape", mixed, net.ints("merged", [5, -1, 12])), 12, 7, "project")
    return net.output(net.op("ReduceMean", out, axes=[0], keepdims=0), shape=["batch", 7]).model()


def shared_constants() -> Model:
    """One vector of zeros as the bias of three convolutions; one weight in two; BatchNormalization's scale twice in one node."""
    net = Wired()
    zeros = net.constant("zeros", np.linspace(-1, 1, 8))
    x = net.op("Relu", net.op("Conv", net.input(), net.weight("w1", (8, 3, 3, 3), 27), zeros, name="c1", pads=[1] * 4))
    weight = net.weight("w2", (8, 8, 3, 3), 72)
    x = net.op("Relu", net.op("Conv", x, weight, zeros, name="c2", pads=[1] * 4))
    x = net.op("Relu", net.op("Conv", x, weight, zeros, name="c3", pads=[1] * 4))
    x = net.op("Conv", x, net.weight("w4", (8, 8, 3, 3), 72), zeros, name="c4", pads=[1] * 4)
    x = net.op("BatchNormalization", x, zeros, zeros, zeros, net.constant("variance", np.ones(8)), name="norm")
    return net.close(x, 8)


def padded_constant() -> Model:
    """Option-A shortcut whose Pad reads a Constant node, and a residual bias that is a Constant node too."""
    net = Wired()
    x = net.op("Relu", net.conv(net.input(), 3, 6, "stem"))
    y = net.conv(x, 6, 10, "wide")
    value = numpy_helper.from_array(np.array([0, 1, 0, 0, 0, 3, 0, 0], np.int64), "")
    amounts = net.op("Constant", value=value)
    fill = net.constant("fill", 0.5)
    x = net.op("Relu", net.op("Add", y, net.op("Pad", x, amounts, fill)))
    tensor = helper.make_tensor("", TensorProto.FLOAT, [10, 1, 1], net.random.normal(size=10).astype(np.float32))
    return net.close(net.op("Add", x, net.op("Constant", value=tensor)), 10)


NETWORKS: dict[str, Callable[[], Model]] = {
    "plain chain": plain_chain,
    "residual": small_cnn,
    "padded shortcut": resnet20,
    "inverted residual": inverted_residual,
    "concat, split, slice": joined,
    "gated": gated,
    "flattened": flattened,
    "grouped": grouped,
    "shuffled": shuffled,
    "upsampled": upsampled,
    "attention": attention,
    "attention, shapes computed": lambda: attention("arithmetic"),
    "attention, fused": lambda: attention(fused=True),
    "attention, heads in the batch": merged_heads,
    "shared constants": shared_constants,
    "Constant nodes": padded_constant,
}
