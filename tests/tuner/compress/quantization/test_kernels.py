"""What onnxruntime makes of our graphs: every layer that should be an integer kernel is one, and where one is not, it is found."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from builders import S8_CHANNEL, TARGET, U8, U8_CHANNEL, Net, agreement, in_float, quantize, resnet20, rows, small_cnn

from search_spaces.schemes import QuantScheme
from tuner.compress.fusion import prepare
from tuner.compress.quantization.placement import candidates
from tuner.compress.quantization.qdq import stored_weights
from tuner.model.graph import Model


def kernels(data: bytes, folder: Path) -> Counter[str]:
    """How often each operator stands in the graph that onnxruntime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node)


def everything(model: Model, choice: str) -> dict[str, str]:
    return {c.name: choice if c.has_weight else choice.split("/")[0] for c in candidates(prepare(model), TARGET)}


@pytest.mark.parametrize("choice", [U8_CHANNEL, "u8-asym-minmax/s8-sym-tensor", "u8-asym-minmax/u8-asym-tensor"])
def test_a_small_network_becomes_integer_kernels_only(choice: str, tmp_path: Path) -> None:
    model = small_cnn()
    applied, data = quantize(model, everything(model, choice))
    assert in_float(applied, data) == set()
    found = kernels(data, tmp_path)
    assert found["QLinearConv"] == 2 and found["QLinearAdd"] == 1 and found["QGemm"] == 1
    # One conversion at the entrance; the classifier writes float itself, and the Relus are gone.
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] == 0 and found["Relu"] == 0
    assert agreement(model, data) > 0.999


def test_a_resnet_becomes_integer_kernels_only(tmp_path: Path) -> None:
    model = resnet20()
    feed = rows(model, 8)
    applied, data = quantize(model, everything(model, U8_CHANNEL), feed)
    assert in_float(applied, data) == set()
    found = kernels(data, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QLinearGlobalAveragePool"], found["QGemm"]) == (19, 9, 1, 1)
    assert found["FusedConv"] == found["Conv"] == found["Relu"] == 0
    assert agreement(model, data, feed) > 0.99


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere signed activations have kernels of their own")
def test_symmetric_signed_activations_leave_a_layer_in_float_and_it_is_named() -> None:
    model = small_cnn()
    applied, data = quantize(model, everything(model, S8_CHANNEL))
    left = in_float(applied, data)
    assert left and left < set(applied.layers)
    assert agreement(model, data) > 0.999


@pytest.mark.parametrize("choice", ["u16-asym-minmax/s8-sym-channel", "s16-sym-minmax/s8-sym-channel"])
def test_what_has_no_kernel_is_left_in_float_and_named(choice: str) -> None:
    model = small_cnn()
    layers = {"conv1": choice, "conv2": choice, "fc": choice}
    assert not any(TARGET.has_kernel(op, QuantScheme.parse(choice)) for op in ("Conv", "Gemm"))
    applied, data = quantize(model, layers)
    assert in_float(applied, data) == set(layers)
    assert agreement(model, data) > 0.999


def test_products_become_integer_kernels(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Relu", net.matmul(net.input("x", ("batch", 6, 16)), 16, 16, "one"))
    model = net.output(net.matmul(y, 16, 4, "two")).model()
    applied, data = quantize(model, {"one": U8_CHANNEL, "two": U8_CHANNEL})
    assert in_float(applied, data) == set()
    found = kernels(data, tmp_path)
    # The first one's output is wanted quantized, the second one's is not.
    assert (found["QLinearMatMul"], found["MatMulIntegerToFloat"]) == (1, 1)
    assert agreement(model, data) > 0.999


def test_depthwise_convolutions_and_activations_become_integer_kernels(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input(shape=("batch", 8, 8, 8)), 8, 8, "wise", group=8)
    y = net.op("Mul", x, net.op("Sigmoid", x, name="sigmoid"), name="swish")
    model = net.output(net.conv(y, 8, 4, "point", kernel=1)).model()
    applied, data = quantize(model, {"wise": U8_CHANNEL, "point": U8_CHANNEL, "op:Sigmoid": U8, "op:Mul": U8})
    assert in_float(applied, data) == set()
    found = kernels(data, tmp_path)
    assert (found["QLinearConv"], found["QLinearSigmoid"], found["QLinearMul"]) == (2, 1, 1)
    assert agreement(model, data) > 0.999


def test_stored_weights_are_traced_to_the_layers_that_read_them() -> None:
    """A weight shared by two layers and stored in two forms goes by other names than its own."""
    net = Net()
    x = net.input()
    shared = net.weight("w", (3, 3, 3, 3), 27)
    first = net.op("Conv", x, shared, name="a", pads=[1, 1, 1, 1])
    net.output(net.op("Conv", first, shared, name="b", pads=[1, 1, 1, 1]))
    applied, data = quantize(net.model(), {"a": U8_CHANNEL, "b": "u8-asym-minmax/s8-sym-tensor"})
    graph = onnx.ModelProto.FromString(data).graph
    found = stored_weights(graph, applied.layers)
    assert sorted(found.values()) == [["a"], ["b"]]
    assert set(found) <= {tensor.name for tensor in graph.initializer}
    assert stored_weights(graph, ["b"]) == {name: layers for name, layers in found.items() if layers == ["b"]}
