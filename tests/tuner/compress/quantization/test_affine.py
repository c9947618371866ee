from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

from tuner.compress.quantization.affine import STORAGE, choose_scale, dequantize, integer_limits, quantize, weight_scale
from tuner.errors import ModelError

ONNX_TYPES = {
    "u8": onnx.TensorProto.UINT8,
    "s8": onnx.TensorProto.INT8,
    "u16": onnx.TensorProto.UINT16,
    "s16": onnx.TensorProto.INT16,
}
DTYPES = tuple(STORAGE)
BOUND = st.floats(-1e6, 1e6, width=32)
HUGE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_zero_point_agree_with_onnxruntime(dtype: str, symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    ends = np.sort(rng.normal(size=(200, 2)) * 10.0 ** rng.integers(-6, 6, size=(200, 1)), axis=1).astype(np.float32)
    scale, zero_point = choose_scale(ends[:, 0], ends[:, 1], dtype, symmetric)
    assert scale.dtype == np.float32 and zero_point.dtype == STORAGE[dtype]
    limits = get_qmin_qmax_for_qType(ONNX_TYPES[dtype], symmetric=symmetric)
    for i, (low, high) in enumerate(ends):
        theirs = compute_scale_zp(np.array(low), np.array(high), *limits, symmetric)
        assert (int(zero_point[i]), float(scale[i])) == (int(theirs[0]), float(theirs[1]))


@given(a=BOUND, b=BOUND, dtype=st.sampled_from(DTYPES), symmetric=st.booleans(), parts=st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_a_value_in_range_comes_back_within_half_a_step(a: float, b: float, dtype: str, symmetric: bool, parts: list[float]) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    x = np.clip(np.array([low + (high - low) * part for part in [0.0, 1.0, *parts]], np.float32), np.float32(low), np.float32(high))
    scale, zero_point = choose_scale(low, high, dtype, symmetric)
    back = dequantize(quantize(x, scale, zero_point, dtype), scale, zero_point)
    # float32 arithmetic on up to 2**16 steps loses at most a few units in the last place of the largest value.
    rounding = 4 * np.finfo(np.float32).eps * max(-low, high)
    assert np.all(np.abs(x.astype(np.float64) - back) <= float(scale) / 2 + rounding)


@given(a=HUGE, b=HUGE, dtype=st.sampled_from(DTYPES), symmetric=st.booleans())
@settings(max_examples=300, deadline=None)
def test_zero_is_exact_and_the_scale_is_a_normal_number(a: float, b: float, dtype: str, symmetric: bool) -> None:
    scale, zero_point = choose_scale(min(a, b), max(a, b), dtype, symmetric)
    assert np.finfo(np.float32).tiny <= scale < np.inf
    qmin, qmax = integer_limits(dtype)
    assert qmin <= int(zero_point) <= qmax
    stored = quantize(np.zeros(1, np.float32), scale, zero_point, dtype)
    assert dequantize(stored, scale, zero_point)[0] == 0.0


@pytest.mark.parametrize(("dtype", "middle"), [("u8", 128), ("s8", 0), ("u16", 32768), ("s16", 0)])
def test_symmetric_has_one_zero_point_for_every_range_and_degenerate_ranges_get_scale_one(dtype: str, middle: int) -> None:
    scale, zero_point = choose_scale([-3.0, 0.0, 1e-42], [1.0, 0.0, 1e-42], dtype, True)
    assert zero_point.tolist() == [middle] * 3
    assert scale[1:].tolist() == [1.0, 1.0]
    free = choose_scale(0.0, 0.0, dtype, False)
    assert (float(free[0]), int(free[1])) == (1.0, 0)


def test_symmetric_s8_spreads_over_127_levels_a_side_but_stores_the_whole_type() -> None:
    scale, zero_point = choose_scale(-1.27, 0.5, "s8", True)
    assert float(scale) == pytest.approx(0.01)
    assert quantize(np.array([-1.27, 1.27, -9.0, 9.0], np.float32), scale, zero_point, "s8").tolist() == [-127, 127, -128, 127]


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_equals_the_onnx_operator_ties_included(dtype: str) -> None:
    scale, zero_point = np.float32(0.25), STORAGE[dtype](3)
    ties, others = np.arange(-200, 200) * 0.125, np.random.default_rng(1).normal(size=500) * 40
    x = np.concatenate((ties, others, [-1e30, 1e30])).astype(np.float32)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [onnx.helper.make_tensor_value_info("y", ONNX_TYPES[dtype], ["n"])],
        [onnx.numpy_helper.from_array(np.array(scale), "s"), onnx.numpy_helper.from_array(np.array(zero_point), "z")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (theirs,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(quantize(x, scale, zero_point, dtype), theirs)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(("dtype", "symmetric"), [("s8", True), ("u8", False)])
def test_per_channel_equals_each_channel_alone(axis: int, dtype: str, symmetric: bool) -> None:
    weight = np.random.default_rng(2).normal(size=(4, 5, 3)).astype(np.float32)
    scale, zero_point = weight_scale(weight, axis, dtype, symmetric)
    stored = quantize(weight, scale, zero_point, dtype, axis)
    back = dequantize(stored, scale, zero_point, axis)
    assert scale.shape == (weight.shape[axis],)
    for i in range(weight.shape[axis]):
        alone = np.take(weight, i, axis)
        s, z = weight_scale(alone, None, dtype, symmetric)
        assert (float(s), int(z)) == (float(scale[i]), int(zero_point[i]))
        np.testing.assert_array_equal(np.take(stored, i, axis), quantize(alone, s, z, dtype))
        np.testing.assert_array_equal(np.take(back, i, axis), dequantize(np.take(stored, i, axis), s, z))


def test_quantize_leaves_its_input_alone() -> None:
    x = np.array([1.0, 2.0], np.float32)
    quantize(x, 0.5, 0, "s8")
    assert x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("low", "high", "shown"), [(0.0, np.nan, "[0.0, nan]"), (-np.inf, 1.0, "[-inf, 1.0]"), (2.0, 1.0, "[2.0, 1.0]")])
def test_a_range_that_is_none_is_refused(low: float, high: float, shown: str) -> None:
    with pytest.raises(ModelError) as error:
        choose_scale([-1.0, low], [1.0, high], "u8", False)
    assert f"finite in float32 with low <= high, got {shown}. Look for NaN" in str(error.value)


def test_an_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown quantized type 's7'\. .*Known: s16, s8, u16, u8\."):
        integer_limits("s7")
