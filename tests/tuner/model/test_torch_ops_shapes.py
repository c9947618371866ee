"""Operators of the torch view that move, pick, reduce, resize, recur and attend, against onnxruntime, one node at a time."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from torch_cases import INT64, RANDOM, Case, Const, case, check, held, positive, scalar, whole, x

CUBE = x(2, 3, 4)
WHOLE = RANDOM.integers(-9, 9, (3, 4))
FIVES = Const(np.full(1, 5, np.int64))

SHAPES = [
    case("Shape", CUBE),
    case("Shape", CUBE, start=1, end=-1),
    case("Shape", CUBE, start=-2),
    case("Size", CUBE),
    case("ConstantOfShape", held(2, 3)),
    case("ConstantOfShape", whole(2, 3), value=helper.make_tensor("v", INT64, [1], [7]), note="fed"),
    case("Range", scalar(1, np.int64), np.asarray(9, np.int64), scalar(2, np.int64)),
    case("Range", scalar(3), np.asarray(-1, np.float32), scalar(-0.5)),
    case("Reshape", CUBE, held(0, -1)),
    case("Reshape", CUBE, whole(4, 0, -1), note="fed"),
    case("Reshape", x(0, 3), held(0, 5, 0), allowzero=1),
    *(case("Flatten", CUBE, axis=axis) for axis in (0, 1, 2, -1, 3)),
    case("Squeeze", x(1, 3, 1), held(0, -1)),
    case("Squeeze", x(1, 3, 1)),
    case("Squeeze", x(1, 3, 1), opset=11, axes=[0]),
    case("Unsqueeze", x(3, 4), held(0, -1)),
    case("Unsqueeze", x(3, 4), opset=11, axes=[2, 0]),
    case("Transpose", CUBE),
    case("Transpose", CUBE, perm=[1, 0, 2]),
    case("Expand", x(3, 1), held(2, 1, 4)),
    case("Expand", x(2, 3, 1), held(1, 4), note="lower rank"),
    case("Tile", x(2, 3), held(2, 3)),
    *(case("Concat", CUBE, x(2, 1, 4), x(2, 2, 4), axis=axis) for axis in (1, -2)),
    case("Split", x(6, 2), opset=11, outputs=3),
    case("Split", x(2, 6), opset=11, outputs=2, axis=1, split=[2, 4]),
    case("Split", x(2, 6), held(1, 5), opset=13, outputs=2, axis=-1),
    case("Split", x(2, 6), opset=13, outputs=2, axis=1),
    case("Split", x(7, 2), opset=18, outputs=3, num_outputs=3),
    case("Slice", CUBE, held(1), held(3), note="no axes"),
    case("Slice", CUBE, held(-2, 0), held(99, -1), held(2, 1), note="ends"),
    case("Slice", CUBE, held(-1, 2), held(-99, 0), held(2, 1), held(-2, -1), note="back"),
    case("Slice", CUBE, held(3), held(1), held(2), note="empty"),
    case("Slice", CUBE, whole(0, 1), whole(4, 3), whole(2, 1), whole(3, 1), note="fed"),
    *(case("Pad", CUBE, held(0, 2, 1, 1, 0, 3), mode=mode) for mode in ("constant", "reflect", "edge")),
    case("Pad", CUBE, held(0, 2, 1, 1, 0, 9), opset=19, mode="wrap"),
    case("Pad", CUBE, held(0, 1, -1, 1, 0, -2), scalar(0.5), note="cut"),
    case("Pad", CUBE, held(1, 2), scalar(2.0), held(-1), note="axes"),
    case("Pad", CUBE, whole(1, 0, 0, 0, 2, 0), np.asarray(1.5, np.float32), opset=11, note="fed"),
    *(case("DepthToSpace", x(2, 8, 3, 2), blocksize=2, mode=mode) for mode in ("DCR", "CRD")),
    case("SpaceToDepth", x(2, 3, 4, 6), blocksize=2),
]

PLACES = np.asarray([[0, -1], [2, 1]])
INDICES = [
    *(case("Gather", CUBE, PLACES % 2 - 1, axis=axis) for axis in (0, 1, -1)),
    case("Gather", CUBE, scalar(-1, np.int64), axis=1),
    case("Gather", CUBE, np.asarray([1, 0], np.int32), note="int32"),
    case("Gather", Const(x(5, 3)), PLACES, note="embedding"),
    case("Gather", Const(x(5, 3, 2)), PLACES, note="table"),
    case("GatherElements", x(3, 4), PLACES, axis=1),
    case("GatherElements", x(3, 4), PLACES, axis=-2),
    case("GatherND", CUBE, whole([0, 1], [1, -1])),
    case("GatherND", CUBE, whole([[0]], [[-1]]), batch_dims=1),
    case("GatherND", CUBE, whole([0, 1, 2], [1, 0, 3]), note="numbers"),
    *(case("ScatterElements", x(3, 4), PLACES, x(2, 2), axis=1, reduction=how) for how in ("none", "add", "mul", "max", "min")),
    case("ScatterElements", x(3, 4), whole([0, -1, 0]), x(1, 3), opset=16, reduction="add", note="twice"),
    *(case("ScatterND", CUBE, whole([0, 1], [1, -1]), x(2, 4), reduction=how) for how in ("none", "add", "mul", "max", "min")),
    case("ScatterND", CUBE, whole([1], [0]), x(2, 3, 4), opset=11),
    *(case("OneHot", PLACES, FIVES, Const(np.asarray([0.5, 2], np.float32)), axis=axis) for axis in (-1, 0, 1)),
    case("OneHot", whole(-9, -1, 9), FIVES, Const(whole(0, 1)), note="outside"),
    case("NonZero", np.asarray([[1, 0], [0, 2]], np.float32)),
    case("Compress", x(3, 4), np.asarray([True, False, True]), axis=1),
    case("Compress", x(3, 4), np.asarray([True, False, True])),
    *(case("Trilu", x(2, 4, 5), scalar(k, np.int64), upper=upper, note=f"k{k}") for k in (-1, 0, 2) for upper in (0, 1)),
    case("EyeLike", x(3, 4), k=1),
    case("EyeLike", x(3, 4), dtype=INT64, k=-1),
]

NAMES = "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp".split()
REDUCTIONS = [
    *(case(op, positive(2, 3, 4), held(0, -1), keepdims=keep) for op in NAMES for keep in (0, 1)),
    *(case(op, positive(2, 3, 4), opset=11, axes=[1]) for op in NAMES),
    *(case(op, positive(2, 3, 4)) for op in NAMES),
    *(case(op, CUBE, noop_with_empty_axes=1) for op in ("ReduceSum", "ReduceMean", "ReduceMax")),
    case("ReduceMean", CUBE, opset=13, axes=[-1], keepdims=0),
    case("ReduceSum", WHOLE, held(1), note="whole"),
    case("ReduceMax", WHOLE, held(1), note="whole"),
    case("ReduceMean", WHOLE, held(1), note="whole"),
    *(case(op, WHOLE // 4, axis=1, select_last_index=last, keepdims=last) for op in ("ArgMax", "ArgMin") for last in (0, 1)),
    case("ArgMax", CUBE),
    *(case("TopK", WHOLE // 3, held(2), outputs=2, largest=largest, axis=1) for largest in (0, 1)),
    case("TopK", CUBE, whole(2), outputs=2, axis=-2, note="fed"),
    *(case("CumSum", CUBE, scalar(1, np.int64), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
]

IMAGE = x(2, 3, 5, 6)
UP, DOWN = Const(np.asarray([1, 1, 2.3, 1.7], np.float32)), Const(np.asarray([1, 1, 0.6, 0.45], np.float32))
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
RESIZES = [
    *(
        case("Resize", IMAGE, None, scales, mode=mode, coordinate_transformation_mode=how, note="up" if scales is UP else "down")
        for mode in ("nearest", "linear", "cubic")
        for how in COORDINATES
        for scales in (UP, DOWN)
    ),
    *(
        case("Resize", IMAGE, None, None, held(2, 3, 7, 4), mode=mode, coordinate_transformation_mode=how, note="sizes")
        for mode in ("nearest", "linear", "cubic")
        for how in COORDINATES
    ),
    *(
        case(
            "Resize",
            IMAGE,
            None,
            Const(np.asarray([1, 1, 2, 2], np.float32)),
            coordinate_transformation_mode=how,
            nearest_mode=near,
            note="2x",
        )
        for how in COORDINATES
        for near in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        case("Resize", IMAGE, None, scales, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5, note=str(n))
        for n, scales in enumerate((UP, DOWN))
    ),
    *(case("Resize", IMAGE, None, DOWN, mode=mode, antialias=1, tolerance=1e-4) for mode in ("linear", "cubic")),
    case("Resize", IMAGE, None, UP, opset=19, mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    case(
        "Resize",
        IMAGE,
        Const(np.asarray([0, 0, 0.1, -0.2, 1, 1, 0.9, 1.1], np.float32)),
        None,
        held(2, 3, 4, 7),
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=0.7,
    ),
    case("Resize", IMAGE, None, None, held(9, 9), axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    case("Resize", IMAGE, None, None, held(9, 9), axes=[2, 3], keep_aspect_ratio_policy="not_smaller", mode="linear"),
    case(
        "Resize",
        IMAGE,
        Const(np.asarray([], np.float32)),
        Const(np.asarray([], np.float32)),
        held(2, 3, 9, 9),
        opset=11,
        mode="linear",
        note="empty scales",
    ),
    *(
        case("GridSample", IMAGE, x(2, 4, 3, 2), opset=16, mode=mode, padding_mode=pad)
        for mode in ("bilinear", "nearest")
        for pad in ("zeros", "border")
    ),
    case("GridSample", IMAGE, x(2, 4, 3, 2), opset=20, align_corners=1),
]


def recurrent(op: str, gates: int, *rest: object, direction: str = "forward", outputs: int = 2, **attributes: object) -> Case:
    """5 steps, 3 rows, 4 inputs, 6 hidden numbers."""
    sides = 2 if direction == "bidirectional" else 1
    weights = (Const(x(sides, gates * 6, 4) / 2), Const(x(sides, gates * 6, 6) / 2), Const(x(sides, 2 * gates * 6)))
    return case(op, x(5, 3, 4), *weights, *rest, outputs=outputs, direction=direction, hidden_size=6, **attributes)  # type: ignore[arg-type]


LENGTHS = np.asarray([5, 2, 4], np.int32)
DIRECTIONS = ("forward", "reverse", "bidirectional")
RECURRENT = [
    *(recurrent("LSTM", 4, direction=side, outputs=3) for side in DIRECTIONS),
    *(recurrent("LSTM", 4, LENGTHS, direction=side, outputs=3, note="lengths") for side in DIRECTIONS),
    recurrent("LSTM", 4, None, x(1, 3, 6), x(1, 3, 6), outputs=3, note="states"),
    recurrent("LSTM", 4, None, x(1, 3, 6), x(1, 3, 6), Const(x(1, 18)), outputs=3, note="peepholes"),
    *(recurrent("GRU", 3, direction=side, linear_before_reset=before) for side in DIRECTIONS for before in (0, 1)),
    *(recurrent("GRU", 3, LENGTHS, x(1, 3, 6), linear_before_reset=before, note="lengths") for before in (0, 1)),
    *(recurrent("RNN", 1, direction=side) for side in DIRECTIONS),
    recurrent("RNN", 1, None, x(1, 3, 6), activations=["Relu"]),
    case("LSTM", x(5, 3, 4), x(1, 24, 4), x(1, 24, 6), outputs=3, hidden_size=6, note="no bias"),
]

HEADS = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 8)
FLAT = x(2, 3, 32), x(2, 5, 16), x(2, 5, 16)
ATTENTION = [
    case("Attention", *HEADS, opset=23),
    case("Attention", *FLAT, opset=23, q_num_heads=4, kv_num_heads=2, scale=0.3, softcap=2.0),
    case("Attention", x(2, 4, 3, 8), x(2, 4, 3, 8), x(2, 4, 3, 8), opset=23, is_causal=1),
    case("Attention", *HEADS, x(3, 5), opset=23, note="bias"),
    case("Attention", *HEADS, RANDOM.integers(0, 2, (3, 5)).astype(bool) | np.eye(3, 5, dtype=bool), opset=23, note="mask"),
    case("Attention", *HEADS, None, x(2, 2, 4, 8), x(2, 2, 4, 8), opset=23, outputs=3, note="past"),
    *(case("Attention", *HEADS[:1], *HEADS[:1], *HEADS[:1], x(3, 3), opset=23, outputs=1, qk_matmul_output_mode=mode) for mode in range(4)),
    *(case("RotaryEmbedding", x(2, 4, 3, 8), x(9, 4), x(9, 4), RANDOM.integers(0, 9, (2, 3)), opset=23, interleaved=i) for i in (0, 1)),
    case("RotaryEmbedding", x(2, 3, 32), x(2, 3, 2), x(2, 3, 2), opset=23, num_heads=4, rotary_embedding_dim=4),
]


@pytest.mark.parametrize("one", [*SHAPES, *INDICES, *REDUCTIONS, *RESIZES, *RECURRENT, *ATTENTION], ids=lambda one: one.id)
def test_an_operator_of_shapes_agrees_with_onnxruntime(one: Case) -> None:
    check(one)
