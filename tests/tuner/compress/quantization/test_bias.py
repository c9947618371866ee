"""Biases as 32-bit integers: exact at the scale of the products, and in a channel whose scale would not fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import S8_CHANNEL, U8_CHANNEL, U8_TENSOR, Net, agreement, in_float, quantize, small_cnn
from numpy.typing import NDArray
from onnx import numpy_helper

from tuner.compress.quantization.qdq import QuantizedWeight
from tuner.model.graph import Model


def arrays(data: bytes) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}


@pytest.mark.parametrize("choice", [U8_CHANNEL, U8_TENSOR, S8_CHANNEL])
def test_a_bias_is_stored_at_the_scale_of_the_products(choice: str) -> None:
    model = small_cnn()
    applied, data = quantize(model, dict.fromkeys(("conv1", "conv2", "fc"), choice))
    found = arrays(data)
    for name, source in {"conv1": "x", "conv2": "relu1_out", "fc": "flatten_out"}.items():
        step = np.float32(applied.tensors[source].scale) * found[f"{name}.w_s"]
        stored = found[f"{name}.bias_q"]
        assert stored.dtype == np.int32
        np.testing.assert_array_equal(found[f"{name}.bias_s"], step)
        np.testing.assert_array_equal(stored, np.rint(model.array(f"{name}.b").astype(np.float64) / step))


def conv_with(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Model:
    """x → conv → Relu → fc, where conv has this weight and bias."""
    net = Net()
    y = net.conv(net.input(), 3, len(weight), "conv")
    net.initializers.clear()
    net.constant("conv.w", weight)
    net.constant("conv.b", bias)
    return net.output(net.gemm(net.op("Flatten", net.op("Relu", y)), len(weight) * 64, 5, "fc")).model()


@pytest.mark.parametrize("choice", [U8_CHANNEL, U8_TENSOR, "u8-asym-minmax/u8-asym-tensor"])
def test_a_bias_too_large_for_32_bits_raises_the_weights_scale(choice: str) -> None:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(4, 3, 3, 3)) * 1e-9, np.array([1.0, -2.0, 3.0, 0.5])
    if choice == U8_CHANNEL:
        weight[2:] *= 1e8
    model = conv_with(weight.astype(np.float32), bias.astype(np.float32))
    applied, data = quantize(model, {"conv": choice, "fc": U8_CHANNEL})
    found = arrays(data)
    assert np.abs(found["conv.bias_q"].astype(np.int64)).max() <= 2**30 * (1 + 1e-6)
    back = found["conv.bias_q"].astype(np.float64) * found["conv.bias_s"]
    np.testing.assert_allclose(back, bias, rtol=1e-4)
    if choice == U8_CHANNEL:
        unraised = QuantizedWeight(model.array("conv.w"), applied.layers["conv"].weight or pytest.fail())
        assert np.all(found["conv.w_s"][:2] > unraised.scale[:2])
        np.testing.assert_array_equal(found["conv.w_s"][2:], unraised.scale[2:])
    assert agreement(model, data) > 0.999
    assert in_float(applied, data) == set()


def test_a_channel_without_weights_keeps_its_bias() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[1:3] = 0
    bias = np.array([0.1, 0.01234567, 0.0, -0.2], np.float32)
    model = conv_with(weight, bias)
    _, data = quantize(model, {"conv": U8_CHANNEL})
    found = arrays(data)
    back = found["conv.bias_q"].astype(np.float64) * found["conv.bias_s"]
    np.testing.assert_allclose(back[1:3], bias[1:3], rtol=1e-6)
    assert not found["conv.w_q"][1:3].any() and np.isfinite(found["conv.w_s"]).all()
    nothing = conv_with(np.zeros_like(weight), bias)
    for choice in (U8_CHANNEL, U8_TENSOR):
        assert agreement(nothing, quantize(nothing, {"conv": choice})[1]) > 0.999


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), (), (1, 1)])
def test_a_bias_that_is_one_vector_goes_into_the_integer_kernel(shape: tuple[int, ...]) -> None:
    net = Net()
    weight, bias = net.weight("w", (8, 5), 8), net.constant("b", net.random.normal(size=shape))
    model = net.output(net.op("Gemm", net.input("x", (4, 8)), weight, bias, name="fc")).model()
    for choice in (U8_CHANNEL, U8_TENSOR):
        applied, data = quantize(model, {"fc": choice})
        assert arrays(data)["fc.bias_q"].shape == (5,)
        assert in_float(applied, data) == set() and agreement(model, data) > 0.999


@pytest.mark.parametrize("shape", [(4, 5), (4, 1)])
def test_a_bias_with_a_value_per_row_stays_float(shape: tuple[int, ...]) -> None:
    net = Net()
    weight, bias = net.weight("w", (8, 5), 8), net.constant("b", net.random.normal(size=shape))
    model = net.output(net.op("Gemm", net.input("x", (4, 8)), weight, bias, name="fc")).model()
    applied, data = quantize(model, {"fc": U8_CHANNEL})
    assert not any("bias" in name for name in arrays(data))
    assert in_float(applied, data) == {"fc"} and agreement(model, data) > 0.999
