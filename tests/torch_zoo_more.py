"""More small networks for tests of the torch view: images, sequences, shapes that are computed, several inputs and outputs."""

from __future__ import annotations

import numpy as np
from builders import Net
from onnx import TensorProto
from torch_zoo import member, whole

from tuner.model.graph import Model


@member
def norms() -> Model:
    """Instance, layer and root-mean-square normalization over several axes; then by group, after which inference of shapes gives up."""
    net = Net(20, 23, 10)
    x = net.conv(net.input(shape=("batch", 3, 5, 4)), 3, 4, "conv")
    x = net.op("InstanceNormalization", x, net.weight("in.g", (4,), 1), net.weight("in.b", (4,), 1), name="in")
    x = net.op("LayerNormalization", x, net.weight("ln.g", (4, 5, 4), 1), name="ln", axis=1)
    x = net.op("RMSNormalization", x, net.weight("rms.g", (5, 4), 1), name="rms", axis=2)
    x = net.op("GroupNormalization", x, net.weight("gn.g", (4,), 1), net.weight("gn.b", (4,), 1), name="gn", num_groups=2)
    return net.output(net.norm(x, 4, "bn"), shape=("batch", 4, 5, 4)).model()


@member
def traced_group_norm() -> Model:
    """GroupNorm as tracing writes it: InstanceNormalization of a reshaped tensor, then scale and shift."""
    net = Net(21, 17)
    x = net.conv(net.input(shape=("batch", 3, 4, 4)), 3, 6, "conv")
    flat = net.op("Reshape", x, whole(net, "groups", 0, 2, -1))
    flat = net.op("InstanceNormalization", flat, net.constant("ones", np.ones(2)), net.constant("zeros", np.zeros(2)), name="in")
    x = net.op("Reshape", flat, net.op("Shape", x))
    return net.output(net.op("Add", net.op("Mul", x, net.weight("g", (6, 1, 1), 1)), net.weight("b", (6, 1, 1), 1))).model()


@member
def unet() -> Model:
    """Down, up to the size of the skip connection, and joined."""
    net = Net(22, 13)
    skip = net.op("Relu", net.conv(net.input(shape=("batch", 3, "h", "w")), 3, 4, "c1"))
    inner = net.op("Relu", net.conv(net.op("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 4, 6, "c2"))
    shape = net.op("Shape", skip)
    size = net.op("Slice", shape, whole(net, "two", 2), whole(net, "four", 4))
    front = net.op("Slice", net.op("Shape", inner), whole(net, "zero", 0), whole(net, "two_", 2))
    up = net.op("Resize", inner, "", "", net.op("Concat", front, size, axis=0), mode="linear", coordinate_transformation_mode="half_pixel")
    return net.output(net.conv(net.op("Concat", up, skip, axis=1), 10, 2, "c3")).model()


@member
def larger_images() -> Model:
    """Pixel shuffle, nearest and cubic enlargement of borders that reflect."""
    net = Net(23, 18)
    pads = whole(net, "pads", 0, 0, 1, 1, 0, 0, 1, 1)
    x = net.op("Pad", net.input(shape=("batch", 2, 5, 4)), pads, mode="reflect")
    x = net.op("DepthToSpace", net.conv(x, 2, 8, "conv"), blocksize=2, mode="CRD")
    near = net.op(
        "Resize",
        x,
        "",
        net.constant("twice", [1, 1, 2, 2]),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    cubic = net.op("Resize", x, "", "twice", mode="cubic", coordinate_transformation_mode="align_corners")
    return net.output(net.op("SpaceToDepth", net.op("Sub", near, cubic), blocksize=2)).model()


@member
def lstm_tagger() -> Model:
    """Bidirectional, its outputs put beside each other."""
    net = Net(24, 14)
    x = net.op("Transpose", net.input(shape=("batch", 5, 4)), perm=[1, 0, 2])
    net.nodes[-1].name = "steps_first"
    weights = [net.weight("l.w", (2, 12, 4), 8), net.weight("l.r", (2, 12, 3), 6), net.weight("l.b", (2, 24), 2)]
    x = net.op("LSTM", x, *weights, name="lstm", hidden_size=3, direction="bidirectional")
    x = net.op("Reshape", net.op("Transpose", x, perm=[2, 0, 1, 3]), whole(net, "wide", 0, 0, 6))
    return net.output(net.matmul(x, 6, 4, "fc")).model()


@member
def gru_classifier() -> Model:
    net = Net(25, 18)
    x = net.op("Transpose", net.input(shape=("batch", 5, 4)), perm=[1, 0, 2])
    weights = [net.weight("g.w", (1, 9, 4), 4), net.weight("g.r", (1, 9, 3), 3), net.weight("g.b", (1, 18), 1)]
    net.op("GRU", x, *weights, name="gru", hidden_size=3, linear_before_reset=1)
    net.nodes[-1].output[:] = ["", "last"]
    return net.output(net.gemm(net.op("Squeeze", "last", whole(net, "front", 0)), 3, 2, "fc")).model()


@member
def shuffle() -> Model:
    """Halves, one of them convolved, and channels shuffled, as in ShuffleNetV2."""
    net = Net(26, 13)
    first = net.op("Split", net.input(shape=("batch", 6, 4, 4)), axis=1, name="split")
    net.nodes[-1].output[:] = [first, "second"]
    x = net.op("Concat", first, net.op("Relu", net.norm(net.conv("second", 3, 3, "conv", bias=False), 3, "bn")), axis=1)
    x = net.op("Transpose", net.op("Reshape", x, whole(net, "pairs", 0, 2, 3, 4, 4)), perm=[0, 2, 1, 3, 4])
    return net.output(net.op("Reshape", x, whole(net, "flat", 0, -1, 4, 4))).model()


@member
def two_inputs_and_outputs() -> Model:
    net = Net(27, 18)
    image, extra = net.input("image", ("batch", 3, 4, 4)), net.input("extra", ("batch", 2))
    x = net.op("Flatten", net.conv(image, 3, 2, "conv"))
    joined = net.op("Concat", x, extra, axis=1)
    logits = net.gemm(joined, 34, 3, "fc")
    best = net.op("ArgMax", logits, axis=1, keepdims=0)
    return net.output(logits).output(best, TensorProto.INT64).output(net.op("Softmax", logits, axis=1)).model()


@member
def einsum_attention() -> Model:
    net = Net(28, 12)
    x = net.input(shape=("batch", 4, 6))
    q, k, v = (net.op("Einsum", x, net.weight(f"{name}.w", (6, 2, 3), 6), name=name, equation="bsd,dhe->bshe") for name in "qkv")
    shares = net.op("Softmax", net.op("Einsum", q, k, equation="bqhe,bkhe->bhqk"), axis=3)
    return net.output(net.op("Einsum", shares, v, equation="bhqk,bkhe->bqhe")).model()


@member
def vision_transformer() -> Model:
    """Patches, a class token for every row, and places."""
    net = Net(29, 18)
    image = net.input(shape=("batch", 3, 8, 8))
    patches = net.op("Conv", image, net.weight("patch.w", (6, 3, 4, 4), 48), name="patch", strides=[4, 4])
    x = net.op("Transpose", net.op("Reshape", patches, whole(net, "row", 0, 6, -1)), perm=[0, 2, 1])
    size = net.op("Concat", net.op("Shape", x, start=0, end=1), whole(net, "rest", 1, 6), axis=0)
    x = net.op("Concat", net.op("Expand", net.weight("token", (1, 1, 6), 1), size), x, axis=1)
    x = net.op("Add", x, net.weight("places", (1, 5, 6), 1))
    first = net.op("Slice", x, whole(net, "zero", 0), whole(net, "one", 1), whole(net, "axis", 1))
    return net.output(net.matmul(net.op("Squeeze", first, "axis"), 6, 2, "head")).model()


@member
def inception() -> Model:
    net = Net(30, 12)
    x = net.op("LRN", net.input(shape=("batch", 3, 7, 7)), size=3, alpha=0.1)
    pool = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], auto_pad="SAME_UPPER")
    mean = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4, count_include_pad=1)
    x = net.op("Concat", net.conv(pool, 3, 2, "a", kernel=1), net.conv(mean, 3, 2, "b", kernel=1), net.conv(x, 3, 2, "c"), axis=1)
    return net.output(net.op("LpPool", x, kernel_shape=[2, 2], strides=[2, 2])).model()


@member
def sentence_mean() -> Model:
    """The mean over the steps that a mask leaves, normalised."""
    net = Net(31, 13)
    x = net.matmul(net.input("x", ("batch", "steps", 6)), 6, 6, "fc")
    mask = net.op("Cast", net.input("mask", ("batch", "steps"), TensorProto.INT64), to=TensorProto.FLOAT)
    wide = net.op("Expand", net.op("Unsqueeze", mask, whole(net, "last", -1)), net.op("Shape", x))
    sums = net.op("ReduceSum", net.op("Mul", x, wide), whole(net, "axis", 1), keepdims=0)
    count = net.op("Clip", net.op("ReduceSum", wide, "axis", keepdims=0), net.constant("least", 1e-9))
    return net.output(net.op("LpNormalization", net.op("Div", sums, count), axis=1)).model()


@member
def dropped() -> Model:
    net = Net(32, 13)
    x = net.op("Dropout", net.gemm(net.input(shape=("batch", 5)), 5, 6, "fc1"), net.constant("ratio", 0.5), name="drop")
    return net.output(net.gemm(net.op("Relu", x), 6, 2, "fc2")).model()


@member
def best_of_many() -> Model:
    """The three strongest places of each row, and which they are."""
    net = Net(33, 16)
    x = net.input(shape=("batch", 7, 4))
    scores = net.op("Squeeze", net.matmul(x, 4, 1, "score"), whole(net, "last", 2))
    values = net.op("TopK", scores, whole(net, "three", 3), name="top")
    net.nodes[-1].output.append("places")
    wide = net.op(
        "Expand", net.op("Unsqueeze", "places", "last"), net.op("Concat", net.op("Shape", "places"), whole(net, "four", 4), axis=0)
    )
    return net.output(net.op("GatherElements", x, wide, axis=1)).output(values).model()


@member
def counted_classes() -> Model:
    """Arithmetic on whole numbers, comparison, one-hot and scattering."""
    net = Net(34, 18)
    ids = net.input("ids", ("batch", 4), TensorProto.INT64)
    halves = net.op("Mod", net.op("Div", ids, net.constant("two", 2, np.int64)), net.constant("five", 5, np.int64))
    hot = net.op("OneHot", halves, "five", net.constant("values", [0.0, 1.0]), axis=-1)
    x = net.matmul(net.op("CumSum", hot, net.constant("along", 1, np.int64)), 5, 3, "fc")
    zeros = net.op("ConstantOfShape", net.op("Shape", x))
    kept = net.op("Where", net.op("Greater", x, zeros), x, zeros)
    first = net.op("Slice", halves, whole(net, "zero", 0), whole(net, "one", 1), whole(net, "axis", 1))
    place = net.op("Clip", first, net.constant("none", 0, np.int64), net.constant("most", 2, np.int64))
    sums = net.op("ReduceSum", kept, "axis", keepdims=0)
    return net.output(net.op("ScatterElements", sums, place, net.op("Cast", first, to=TensorProto.FLOAT), axis=1)).model()


@member
def scaled_sizes() -> Model:
    """Sizes multiplied with a vector, which is not a weight."""
    net = Net(35, 17)
    x = net.conv(net.input(shape=("batch", 3, "h", "w")), 3, 2, "c")
    shape = net.op("Shape", x)
    front = net.op("Slice", shape, whole(net, "zero", 0), whole(net, "two", 2))
    size = net.op("Cast", net.op("Slice", shape, "two", whole(net, "four", 4)), to=TensorProto.FLOAT)
    larger = net.op("Cast", net.op("Floor", net.op("Mul", size, net.constant("factors", [1.5, 2.0]))), to=TensorProto.INT64)
    return net.output(net.op("Resize", x, "", "", net.op("Concat", front, larger, axis=0), mode="nearest")).model()


@member
def joined_weights() -> Model:
    """The weights of both directions are initializers of their own, as some exporters leave them."""
    net = Net(36, 18)
    x = net.op("Transpose", net.input(shape=("batch", 5, 4)), perm=[1, 0, 2])
    front = whole(net, "front", 0)
    sides = [
        [net.op("Unsqueeze", net.weight(f"{part}{side}", shape, 4), front) for side in (0, 1)]
        for part, shape in (("w", (6, 4)), ("r", (6, 6)), ("b", (12,)))
    ]
    weights = [net.op("Concat", *pair, axis=0) for pair in sides]
    y = net.op("RNN", x, *weights, name="rnn", hidden_size=6, direction="bidirectional")
    return net.output(net.op("ReduceMean", y, whole(net, "axes", 0, 1), keepdims=0)).model()
