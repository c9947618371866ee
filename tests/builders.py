"""Small networks, written node by node and seeded, and what tests do with them: run, calibrate, quantize, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search_spaces.capability import RuntimeTarget, load_target
from search_spaces.schemes import QuantScheme
from tuner.compress.fusion import prepare
from tuner.compress.pipeline import Compressor
from tuner.compress.quantization.collect import collect, exposing
from tuner.compress.quantization.placement import observed_tensors
from tuner.measure.runtime import float_weights
from tuner.model.graph import Model
from tuner.plan import AppliedPlan, CompressionPlan, make_plan

TARGET: RuntimeTarget = load_target("onnxruntime-cpu")
U8 = "u8-asym-minmax"
U8_CHANNEL, U8_TENSOR = f"{U8}/s8-sym-channel", f"{U8}/s8-sym-tensor"
S8_CHANNEL = "s8-sym-minmax/s8-sym-channel"

Array = NDArray[Any]
Feed = Mapping[str, Array]


class Net:
    """A graph that grows node by node. Every method returns the name of the tensor that it made."""

    def __init__(self, seed: int = 0, opset: int = 17, ir_version: int = 8) -> None:
        self.random = np.random.default_rng(seed)
        self.opset, self.ir_version = opset, ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str = "x", shape: Sequence[int | str | None] = ("batch", 3, 8, 8), kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int | str | None] | None = None) -> Net:
        """shape: only where it cannot be inferred."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return self

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        return self.constant(name, self.random.normal(size=shape) * np.sqrt(2 / fan_in))

    def op(self, kind: str, *inputs: str, name: str | None = None, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Any node; its output is called `out`, or after the node."""
        label = f"{kind.lower()}{len(self.nodes)}" if name is None else name
        result = out or f"{label}_out"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], name=label, domain=domain, **attributes))
        return result

    def conv(self, x: str, i: int, o: int, name: str, *, kernel: int = 3, bias: bool = True, group: int = 1, stride: int = 1) -> str:
        """i, o: channels in and out. The weight is called `<name>.w`, the bias `<name>.b`."""
        fan_in = i // group * kernel * kernel
        parameters = [self.weight(f"{name}.w", (o, i // group, kernel, kernel), fan_in)]
        parameters += [self.constant(f"{name}.b", self.random.normal(size=o) * 0.1)] if bias else []
        pad = [kernel // 2] * 4
        return self.op("Conv", x, *parameters, name=name, pads=pad, group=group, strides=[stride, stride], kernel_shape=[kernel, kernel])

    def norm(self, x: str, channels: int, name: str) -> str:
        values = [
            self.random.uniform(0.5, 1.5, channels),
            self.random.normal(size=channels) * 0.1,
            self.random.normal(size=channels) * 0.1,
            self.random.uniform(0.5, 1.5, channels),
        ]
        parameters = [self.constant(f"{name}.{part}", v) for part, v in zip("gbmv", values, strict=True)]
        return self.op("BatchNormalization", x, *parameters, name=name)

    def gemm(self, x: str, i: int, o: int, name: str, *, transposed: bool = True, **attributes: Any) -> str:
        parameters = [self.weight(f"{name}.w", (o, i) if transposed else (i, o), i), self.constant(f"{name}.b", self.random.normal(size=o))]
        return self.op("Gemm", x, *parameters, name=name, transB=int(transposed), **attributes)

    def matmul(self, x: str, i: int, o: int, name: str) -> str:
        return self.op("MatMul", x, self.weight(f"{name}.w", (i, o), i), name=name)

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.initializers)
        imports = [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in self.nodes} - {""})]
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset), *imports], ir_version=self.ir_version)
        # The rules want the outputs' shapes to be written down.
        for value, inferred in zip(model.graph.output, onnx.shape_inference.infer_shapes(model).graph.output, strict=True):
            value.CopyFrom(inferred)
        return model

    def data(self) -> bytes:
        return bytes(self.proto().SerializeToString(deterministic=True))

    def model(self) -> Model:
        return Model.parse(self.data())


def small_cnn(seed: int = 0, opset: int = 17) -> Model:
    """conv1 → Relu → conv2 (a residual of conv1's) → Relu → MaxPool → Flatten → fc: [batch, 3, 8, 8] to [batch, 5]."""
    net = Net(seed, opset)
    first = net.op("Relu", net.conv(net.input(), 3, 8, "conv1"), name="relu1")
    both = net.op("Add", net.conv(first, 8, 8, "conv2"), first, name="add")
    pooled = net.op("MaxPool", net.op("Relu", both, name="relu2"), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    return net.output(net.gemm(net.op("Flatten", pooled, name="flatten"), 128, 5, "fc")).model()


def resnet20(seed: int = 0) -> Model:
    """ResNet-20 for CIFAR-10 with option-A shortcuts (He et al., 2016, arXiv:1512.03385, section 4.2), BatchNormalization apart."""
    net = Net(seed)
    net.constant("starts", [0, 0], np.int64)
    net.constant("ends", [99, 99], np.int64)
    net.constant("axes", [2, 3], np.int64)
    net.constant("steps", [2, 2], np.int64)
    x = net.op("Relu", net.norm(net.conv(net.input(shape=("batch", 3, 32, 32)), 3, 16, "stem", bias=False), 16, "stem_bn"))
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            inner = net.norm(net.conv(x, channels, width, f"{name}c1", bias=False, stride=stride), width, f"{name}n1")
            inner = net.norm(net.conv(net.op("Relu", inner), width, width, f"{name}c2", bias=False), width, f"{name}n2")
            if stride == 2:
                side = (width - channels) // 2
                net.constant(f"{name}pads", [0, side, 0, 0, 0, side, 0, 0], np.int64)
                x = net.op("Pad", net.op("Slice", x, "starts", "ends", "axes", "steps"), f"{name}pads")
            x, channels = net.op("Relu", net.op("Add", inner, x)), width
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.output(net.gemm(pooled, 64, 10, "fc")).model()


def run(data: bytes | Model, feed: Feed, names: Sequence[str] | None = None, optimize: bool = True, precise: bool = True) -> list[Array]:
    """All outputs in onnxruntime. optimize=False: as the graph is written, without the runtime's fusions. precise: graphs are compared and
    not processors, of which those without VNNI let sums of u8 × s8 saturate at 16 bits otherwise."""
    options = ort.SessionOptions()
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = data.data if isinstance(data, Model) else data
    return list(ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(names, dict(feed)))


def rows(model: Model, count: int = 32, seed: int = 1, high: int = 10) -> dict[str, Array]:
    """A batch of normally distributed numbers (whole numbers below `high` for integer inputs)."""
    random = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in model.inputs:
        shape = tuple(count if size is None else size for size in value.shape)
        whole = value.dtype.startswith("int")
        feed[value.name] = (random.integers(0, high, shape) if whole else random.normal(size=shape)).astype(value.dtype)
    return feed


def compressor(model: Model, feed: Feed | None = None, target: RuntimeTarget = TARGET) -> Compressor:
    """A Compressor calibrated on one batch."""
    prepared = prepare(model)
    names = observed_tensors(prepared, target)
    data = exposing(prepared, names)
    statistics = collect(prepared, names, [feed or rows(model)], lambda batch, asked: run(data, batch, asked, optimize=False))
    return Compressor(model, prepared, statistics, target)


def plan_of(choices: Mapping[str, str]) -> CompressionPlan:
    return make_plan({layer: {"quantize": choice} for layer, choice in choices.items()}, seed=0)


def quantize(model: Model, choices: Mapping[str, str], feed: Feed | None = None) -> tuple[AppliedPlan, bytes]:
    """Calibrate on `feed` (default: `rows(model)`), apply the choices, and build."""
    made = compressor(model, feed)
    applied = made.resolve(plan_of(choices))
    return applied, made.build(applied)


def schemes(choices: Mapping[str, str]) -> dict[str, QuantScheme]:
    return {name: QuantScheme.parse(choice) for name, choice in choices.items()}


def in_float(applied: AppliedPlan, data: bytes) -> set[str]:
    """The layers of a quantized model that no integer kernel took."""
    stored = {f"{layer.weight.initializer}_q": name for name, layer in applied.layers.items() if layer.weight}
    return {stored[name] for name in float_weights(data, list(stored), 1)[1]}


def cosine(a: Array, b: Array) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def agreement(model: Model, data: bytes, feed: Feed | None = None, precise: bool = True) -> float:
    """The least cosine between an output of the original and that of a compressed model."""
    batch = feed or rows(model)
    return min(cosine(a, b) for a, b in zip(run(model, batch), run(data, batch, precise=precise), strict=True))
