from __future__ import annotations

import numpy as np
import pytest
from builders import Net, resnet20, small_cnn
from onnx import TensorProto

from tuner.compress.fusion import prepare
from tuner.model.layers import LayerInfo, layer_table, total_macs, weight_of


def only(net: Net, **shapes: tuple[int, ...]) -> LayerInfo:
    (layer,) = layer_table(net.model(), shapes or None)
    return layer


def test_resnet20_has_the_published_size() -> None:
    # He et al., 2016, arXiv:1512.03385, table 6: 0.27 M parameters; 41 M multiply-accumulates of convolutions and the classifier.
    model = resnet20()
    layers = layer_table(model)
    assert model.parameters == 269_722
    assert total_macs(layers) == 40_551_040
    assert len(layers) == 20
    assert (layers[0].name, layers[0].macs, layers[0].params) == ("stem", 32 * 32 * 16 * 3 * 9, 432)
    assert (layers[-1].name, layers[-1].macs, layers[-1].params) == ("fc", 640, 650)
    assert total_macs(layer_table(model, {"x": (4, 3, 32, 32)})) == 4 * 40_551_040


def test_folding_changes_no_macs() -> None:
    prepared = prepare(resnet20())
    layers = layer_table(prepared)
    assert total_macs(layers) == 40_551_040
    # Every convolution has now a bias of its own.
    assert sum(layer.params for layer in layers) == 269_722 - sum(o for o in (16,) * 7 + (32,) * 6 + (64,) * 6)


@pytest.mark.parametrize(("group", "inner"), [(1, 8), (2, 4), (8, 1)])
def test_grouped_and_depthwise_convolutions(group: int, inner: int) -> None:
    net = Net()
    net.output(net.conv(net.input(shape=("batch", 8, 10, 12)), 8, 16, "conv", group=group, stride=2))
    layer = only(net)
    assert layer.weight_shape == (16, inner, 3, 3) and layer.output_shape == (1, 16, 5, 6)
    assert layer.macs == 16 * 5 * 6 * inner * 9
    assert layer.params == 16 * inner * 9 + 16
    assert (layer.input, layer.output, layer.weight, layer.bias) == ("x", "conv_out", "conv.w", "conv.b")


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolutions_cost_by_what_they_read(group: int) -> None:
    net = Net()
    weight = net.weight("w", (8, 6 // group, 2, 2), 8)
    net.output(net.op("ConvTranspose", net.input(shape=(1, 8, 5, 7)), weight, strides=[2, 2], group=group))
    layer = only(net)
    assert layer.output_shape == (1, 6, 10, 14)
    assert layer.macs == 8 * 5 * 7 * (6 // group) * 4
    assert (layer.params, layer.bias) == (8 * 6 // group * 4, None)


@pytest.mark.parametrize("transposed", [True, False])
def test_gemm(transposed: bool) -> None:
    net = Net()
    net.output(net.gemm(net.input(shape=("batch", 30)), 30, 20, "fc", transposed=transposed))
    assert (only(net).macs, only(net).params) == (600, 620)


def test_products_of_three_dimensions() -> None:
    net = Net()
    net.output(net.matmul(net.input(shape=("batch", "length", 30)), 30, 20, "mm"))
    assert only(net, x=(2, 7, 30)).macs == 2 * 7 * 30 * 20
    assert only(net).macs == 600


def test_a_weight_on_the_left_of_a_product() -> None:
    net = Net()
    net.output(net.op("MatMul", net.weight("w", (5, 30), 30), net.input(shape=("batch", 30, 7)), name="left"))
    layer = only(net, x=(2, 30, 7))
    assert (layer.input, layer.weight, layer.macs) == ("x", "w", 2 * 5 * 7 * 30)


def test_a_table_has_parameters_but_costs_no_macs() -> None:
    net = Net()
    net.output(net.op("Gather", net.weight("table", (100, 16), 16), net.input("ids", ("batch", "length"), TensorProto.INT64)))
    layer = only(net, ids=(2, 7))
    assert (layer.input, layer.params, layer.macs, layer.output_shape) == ("ids", 1600, 0, (2, 7, 16))


def test_macs_are_unknown_where_the_shape_is() -> None:
    net = Net()
    x = net.input(shape=(1, 3, 8, 8))
    size = net.op("Cast", net.op("NonZero", x), to=TensorProto.FLOAT)
    net.output(net.op("MatMul", net.weight("w", (5, 4), 4), size, name="odd"))
    layer = only(net)
    assert layer.macs is None and total_macs([layer]) == 0


def test_what_is_no_weight() -> None:
    net = Net()
    x = net.input(shape=(4, 4))
    net.constant("vector", np.ones(4))
    net.constant("whole", np.ones((4, 4)), np.float64)
    y = net.op("MatMul", x, "vector", name="vector")
    wide = net.op("Gemm", net.op("Cast", x, to=TensorProto.DOUBLE), "whole", name="double")
    z = net.op("MatMul", x, net.op("Relu", x), name="both")
    model = net.output(y).output(wide, TensorProto.DOUBLE).output(z).model()
    assert layer_table(model) == []
    assert weight_of(model, model.nodes["vector"]) is None


def test_layers_come_in_topological_order() -> None:
    assert [layer.name for layer in layer_table(small_cnn())] == ["conv1", "conv2", "fc"]
