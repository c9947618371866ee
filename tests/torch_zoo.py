"""Small networks of every kind that exporters write, for tests of the torch view: {name: model}. All have a dynamic batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from builders import Net, resnet20, small_cnn
from onnx import TensorProto

from tuner.model.graph import Model

ZOO: dict[str, Callable[[], Model]] = {
    "small_cnn_11": lambda: small_cnn(opset=11),
    "small_cnn_20": lambda: small_cnn(opset=20),
    "resnet20": resnet20,
}


def member(build: Callable[[], Model]) -> Callable[[], Model]:
    ZOO[build.__name__] = build
    return build


def whole(net: Net, name: str, *values: int) -> str:
    return net.constant(name, list(values), np.int64)


@member
def squeeze_excite() -> Model:
    """Depthwise convolution, SiLU and a gate of two 1×1 convolutions, as in MobileNetV3."""
    net = Net(1, 18)
    x = net.norm(net.conv(net.input(), 3, 6, "expand", kernel=1, bias=False), 6, "bn")
    x = net.op("Mul", x, net.op("Sigmoid", x))
    x = net.conv(x, 6, 6, "depthwise", group=6, stride=2)
    pooled = net.op("ReduceMean", x, whole(net, "axes", 2, 3), keepdims=1)
    gate = net.op("HardSigmoid", net.conv(net.op("HardSwish", net.conv(pooled, 6, 2, "down", kernel=1)), 2, 6, "up", kernel=1))
    return net.output(net.op("Mul", x, gate)).model()


@member
def uneven_padding() -> Model:
    net = Net(2, 13)
    x = net.op("Conv", net.input(shape=("batch", 3, 9, 8)), net.weight("a.w", (4, 3, 3, 3), 27), name="a", pads=[0, 1, 2, 0])
    x = net.op("LeakyRelu", x, alpha=0.2)
    x = net.op("Conv", x, net.weight("b.w", (4, 2, 3, 2), 12), name="b", auto_pad="SAME_UPPER", strides=[2, 2], group=2)
    x = net.op("Conv", x, net.weight("c.w", (4, 4, 2, 2), 16), name="c", auto_pad="SAME_LOWER")
    x = net.op("Conv", x, net.weight("d.w", (4, 4, 1, 1), 4), name="d", auto_pad="VALID")
    return net.output(net.op("Elu", x)).model()


@member
def sound() -> Model:
    net = Net(3, 17)
    x = net.op("Conv", net.input(shape=("batch", 2, 21)), net.weight("c.w", (4, 2, 5), 10), name="c", dilations=[2], pads=[4, 4])
    x = net.op("PRelu", net.norm(x, 4, "bn"), net.constant("slope", [[0.1], [0.2], [0.3], [0.4]]))
    x = net.op("AveragePool", x, kernel_shape=[3], strides=[2], ceil_mode=1, pads=[1, 1])
    return net.output(net.op("LogSoftmax", net.op("GlobalMaxPool", x), axis=1)).model()


@member
def volume() -> Model:
    net = Net(4, 18)
    x = net.op("Conv", net.input(shape=("batch", 1, 5, 6, 4)), net.weight("c.w", (3, 1, 3, 3, 3), 27), name="c", pads=[1] * 6)
    x = net.op("MaxPool", net.op("Mish", net.norm(x, 3, "bn")), kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    return net.output(net.gemm(net.op("Flatten", x), 36, 4, "fc")).model()


@member
def decoder_of_images() -> Model:
    """Transposed convolutions: plain, cut unevenly, and with an asked shape."""
    net = Net(5, 11)
    x = net.gemm(net.input(shape=("batch", 6)), 6, 32, "fc", transposed=False)
    x = net.op("Reshape", x, whole(net, "image", -1, 8, 2, 2))
    x = net.op(
        "ConvTranspose", x, net.weight("a.w", (8, 3, 3, 3), 72), net.constant("a.b", np.ones(6)), name="a",
        strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1], group=2,
    )  # fmt: skip
    x = net.op("ConvTranspose", net.op("Selu", x), net.weight("b.w", (6, 4, 3, 3), 54), name="b", strides=[2, 1], pads=[1, 0, 0, 1])
    x = net.op("ConvTranspose", net.op("Elu", x), net.weight("c.w", (4, 2, 3, 3), 36), name="c", strides=[2, 2], output_shape=[15, 10])
    return net.output(net.op("Tanh", x), shape=("batch", 2, 15, 10)).model()


@member
def perceptron() -> Model:
    net = Net(6, 13)
    x = net.op("Softplus", net.gemm(net.input(shape=("batch", 5)), 5, 7, "fc1"))
    x = net.op("Softsign", net.op("Add", net.matmul(x, 7, 6, "fc2"), net.constant("fc2.b", np.linspace(-1, 1, 6))))
    x = net.op("Gemm", x, net.weight("fc3.w", (6, 4), 6), net.constant("fc3.b", np.ones((1, 4))), name="fc3")
    x = net.op("Gemm", net.op("Sigmoid", x), net.weight("fc4.w", (4, 4), 4), net.constant("fc4.b", [0.5]), name="fc4", alpha=0.5, beta=2.0)
    return net.output(net.op("Mul", x, net.constant("scale", [1.0, 2.0, 3.0, 4.0]))).model()


def heads(net: Net, x: str, name: str, width: int, count: int, key: bool = False) -> str:
    """[n, steps, width] to [n, count, steps, width / count], for keys with the last two turned; the shape is computed, as if traced."""
    added = net.op("Add", net.matmul(x, width, width, name), net.constant(f"{name}.b", net.random.normal(size=width)))
    shape = net.op("Shape", added)
    parts = [
        net.op("Unsqueeze", net.op("Gather", shape, net.constant(f"{name}.i{i}", i, np.int64)), whole(net, f"{name}.u{i}", 0))
        for i in (0, 1)
    ]
    sizes = net.op("Concat", *parts, whole(net, f"{name}.h", count), whole(net, f"{name}.w4", width // count), axis=0)
    return net.op("Transpose", net.op("Reshape", added, sizes), perm=[0, 2, 3, 1] if key else [0, 2, 1, 3])


def attended(net: Net, x: str, memory: str, name: str, width: int, mask: str = "") -> str:
    """A block of attention with two heads, without what follows it."""
    q, k = heads(net, x, f"{name}.q", width, 2), heads(net, memory, f"{name}.k", width, 2, key=True)
    v = heads(net, memory, f"{name}.v", width, 2)
    scores = net.op("Div", net.op("MatMul", q, k), net.constant(f"{name}.root", np.sqrt(width / 2)))
    shares = net.op("Softmax", net.op("Add", scores, mask) if mask else scores, axis=-1 if net.opset >= 13 else 3)
    mixed = net.op("Transpose", net.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    return net.matmul(net.op("Reshape", mixed, whole(net, f"{name}.back", 0, -1, width)), width, width, f"{name}.o")


def norm_layer(net: Net, x: str, width: int, name: str) -> str:
    parameters = [net.constant(f"{name}.g", net.random.uniform(0.5, 1.5, width)), net.constant(f"{name}.b", net.random.normal(size=width))]
    return net.op("LayerNormalization", x, *parameters, name=name, axis=-1)


def gelu(net: Net, x: str, name: str) -> str:
    """As exporters before opset 20 write it."""
    root, one, half = (net.constant(f"{name}.{part}", value) for part, value in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)))
    return net.op("Mul", net.op("Mul", x, net.op("Add", net.op("Erf", net.op("Div", x, root)), one)), half)


def masked(net: Net) -> str:
    """0 where the attention mask [n, steps] is 1, else a large negative number; shape [n, 1, 1, steps]."""
    mask = net.op("Unsqueeze", net.input("mask", ("batch", "steps"), TensorProto.INT64), whole(net, "mask_axes", 1, 2))
    other = net.op("Sub", net.constant("one", 1.0), net.op("Cast", mask, to=TensorProto.FLOAT))
    return net.op("Mul", other, net.constant("low", -1e4))


@member
def encoder() -> Model:
    """A block of a BERT: embeddings of words and places, attention with a mask, GELU."""
    net = Net(7, 17)
    ids = net.input("ids", ("batch", "steps"), TensorProto.INT64)
    words = net.op("Gather", net.weight("words", (10, 8), 1), ids, name="embedding")
    steps = net.op("Slice", net.op("Shape", ids), whole(net, "one_", 1), whole(net, "two_", 2))
    places = net.op("Slice", net.weight("places", (1, 12, 8), 1), whole(net, "zero", 0), steps, whole(net, "axis1", 1))
    x = norm_layer(net, net.op("Add", words, places), 8, "ln0")
    x = norm_layer(net, net.op("Add", x, attended(net, x, x, "att", 8, masked(net))), 8, "ln1")
    inner = gelu(net, net.op("Add", net.matmul(x, 8, 16, "up"), net.constant("up.b", net.random.normal(size=16))), "gelu")
    x = norm_layer(net, net.op("Add", x, net.matmul(inner, 16, 8, "down")), 8, "ln2")
    first = net.op("Gather", x, net.constant("first", 0, np.int64), axis=1)
    return net.output(net.gemm(first, 8, 3, "head")).model()


@member
def old_encoder() -> Model:
    """LayerNormalization in its parts and axes as attributes, as opset 11 has them."""
    net = Net(8, 11)
    x = net.input(shape=("batch", 4, 8))
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", centred, net.constant("two", 2.0)), axes=[-1])
    x = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.constant("eps", 1e-5))))
    x = net.op("Add", net.op("Mul", x, net.weight("ln.g", (8,), 1)), net.weight("ln.b", (8,), 1))
    q, k, v = (net.matmul(x, 8, 8, name) for name in "qkv")
    shares = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), axis=2)
    pooled = net.op("ReduceSum", net.op("MatMul", shares, v), axes=[1], keepdims=0)
    return net.output(net.op("Squeeze", net.op("Unsqueeze", pooled, axes=[1, 3]), axes=[3])).model()


@member
def decoder() -> Model:
    """A causal mask computed from the shape, and attention to an encoder's memory."""
    net = Net(9, 18)
    x, memory = net.input("x", ("batch", "steps", 8)), net.input("memory", ("batch", "places", 8))
    steps = net.op("Gather", net.op("Shape", x), net.constant("at", 1, np.int64))
    line = net.op("Range", net.constant("zero", 0, np.int64), steps, net.constant("one", 1, np.int64))
    row = net.op("Unsqueeze", line, whole(net, "axis0", 0))
    later = net.op("Greater", row, net.op("Unsqueeze", line, whole(net, "axis1", 1)))
    mask = net.op("Where", later, net.constant("low", -np.inf), net.constant("nothing", 0.0))
    x = norm_layer(net, net.op("Add", x, attended(net, x, x, "self", 8, mask)), 8, "ln1")
    return net.output(norm_layer(net, net.op("Add", x, attended(net, x, memory, "cross", 8)), 8, "ln2")).model()


@member
def modern_decoder() -> Model:
    """RMSNormalization, rotary embedding, grouped heads and SwiGLU with the operators of opset 24."""
    net = Net(10, 24, 10)
    x = net.input("x", ("batch", 5, 16))
    y = net.op("RMSNormalization", x, net.weight("rms.g", (16,), 1), name="rms")
    angles = np.outer(np.arange(5), [1.0, 0.1])
    tables = [net.constant(name, np.tile(table, (1, 1, 1))) for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles)))]
    shape = net.op("Shape", x, end=1)
    spread = [net.op("Expand", table, net.op("Concat", shape, whole(net, f"{table}_size", 5, 2), axis=0)) for table in tables]
    q = net.op("RotaryEmbedding", net.matmul(y, 16, 16, "q"), *spread, num_heads=4)
    k = net.op("RotaryEmbedding", net.matmul(y, 16, 8, "k"), *spread, num_heads=2)
    y = net.op("Attention", q, k, net.matmul(y, 16, 8, "v"), q_num_heads=4, kv_num_heads=2, is_causal=1)
    x = net.op("Add", x, net.matmul(y, 16, 16, "o"))
    gate = net.op("Swish", net.matmul(x, 16, 12, "gate"))
    return net.output(net.matmul(net.op("Mul", gate, net.matmul(x, 16, 12, "up")), 12, 16, "down"), shape=("batch", 5, 16)).model()


@member
def tied_embedding() -> Model:
    """The table of words is also the weight of the last layer."""
    net = Net(11, 18)
    table = net.weight("table", (9, 4), 1)
    x = net.op("Gather", table, net.input("ids", ("batch", "steps"), TensorProto.INT64), name="embedding")
    x = net.op("Tanh", net.matmul(x, 4, 4, "inner"))
    return net.output(net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0]), name="head")).model()


@member
def twins() -> Model:
    """Two convolutions and two products with the same weights, one of them through Identity."""
    net = Net(12, 17)
    x = net.input(shape=("batch", 3, 6, 6))
    w, b = net.weight("w", (3, 3, 3, 3), 27), net.constant("b", [0.1, 0.2, 0.3])
    same = net.op("Identity", w, name="alias")
    x = net.op("Conv", net.op("Relu", net.op("Conv", x, w, b, name="first", pads=[1] * 4)), same, b, name="second", pads=[1] * 4)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    v = net.weight("v", (3, 3), 3)
    both = net.op("Add", net.op("MatMul", x, v, name="plain"), net.op("Gemm", x, v, name="turned", transB=1))
    return net.output(both).model()
