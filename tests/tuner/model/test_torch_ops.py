"""Operators of the torch view that compute with numbers, against onnxruntime, one node at a time."""

from __future__ import annotations

import numpy as np
import pytest
from torch_cases import BOOL, FLOAT, INT64, RANDOM, Case, Const, case, check, held, positive, scalar, x

UNARY = (
    "Abs Neg Sign Floor Ceil Round Exp Erf Sin Cos Atan Sinh Cosh Asinh Relu Sigmoid Tanh Softplus Softsign HardSwish Identity Tan".split()
)
SMALL = "Sqrt Log Reciprocal Asin Acos Atanh".split()
BINARY = "Add Sub Mul Div Max Min".split()
COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual".split()
REDUCTIONS = "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp".split()
TRUTH = RANDOM.integers(0, 2, (2, 3)).astype(np.bool_)
WHOLE = RANDOM.integers(-9, 9, (3, 4))
DIVISORS = np.asarray([2, -3, 5, -2], np.int64)

ELEMENTWISE = [
    *(case(op, x(3, 4)) for op in UNARY),
    *(case(op, positive(3, 4)) for op in SMALL),
    *(case(op, x(3, 4), x(4)) for op in BINARY),
    *(case(op, WHOLE, WHOLE[:1]) for op in COMPARISONS),
    *(case(op, TRUTH, ~TRUTH[:1]) for op in ("And", "Or", "Xor")),
    *(case(op, WHOLE, DIVISORS) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    case("Not", TRUTH),
    case("BitwiseNot", WHOLE),
    case("Acosh", positive(5) + 1),
    case("Round", np.asarray([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32), note="halves"),
    case("Div", WHOLE, DIVISORS, note="whole"),
    case("Mod", WHOLE, DIVISORS),
    case("Mod", WHOLE, DIVISORS, fmod=1),
    case("Mod", x(3, 4), x(4), fmod=1, note="float"),
    case("Pow", positive(3, 4), x(4)),
    case("Pow", x(3, 4), scalar(2)),
    case("Pow", WHOLE, scalar(2.0), note="whole"),
    *(case(op, x(3, 4), x(1, 4), x(3, 1)) for op in ("Sum", "Mean", "Max", "Min")),
    case("Sum", x(3), note="one"),
    case("Clip", x(3, 4), scalar(-0.5), scalar(0.5)),
    case("Clip", x(3, 4), None, scalar(0.2), note="upper"),
    case("Clip", x(3, 4), note="open"),
    case("Clip", x(3, 4), np.asarray(-0.1, np.float32), np.asarray(0.1, np.float32), opset=11, note="fed"),
    case("Clip", WHOLE, scalar(-2, np.int64), scalar(3, np.int64), note="whole"),
    case("IsNaN", np.asarray([1, np.nan, np.inf], np.float32)),
    *(case("IsInf", np.asarray([1, -np.inf, np.inf, np.nan], np.float32), opset=20, detect_negative=n) for n in (0, 1)),
    case("IsInf", np.asarray([1, -np.inf, np.inf], np.float32), detect_positive=0),
    case("Where", TRUTH, x(2, 3), x(3)),
    case("Cast", x(3, 4) * 5, to=INT64),
    case("Cast", WHOLE, to=FLOAT),
    case("Cast", WHOLE, to=BOOL),
    case("Cast", WHOLE, to=FLOAT, opset=19, saturate=1),
    case("CastLike", x(3, 4), held(1), opset=19),
    case("Erf", x(3, 4), opset=11),
]

ACTIVATIONS = [
    *(case("LeakyRelu", x(3, 4), **given) for given in ({}, {"alpha": 0.3})),
    *(case("Elu", x(3, 4), **given) for given in ({}, {"alpha": 0.3})),
    *(case("Selu", x(3, 4), **given) for given in ({}, {"alpha": 1.2, "gamma": 0.7})),
    *(case("Celu", x(3, 4), **given) for given in ({}, {"alpha": 2.0})),
    *(case("HardSigmoid", x(3, 4) * 3, **given) for given in ({}, {"alpha": 0.1, "beta": 0.6})),
    *(case("ThresholdedRelu", x(3, 4), **given) for given in ({}, {"alpha": 0.3})),
    *(case("Shrink", x(3, 4), **given) for given in ({}, {"bias": 0.2, "lambd": 0.3})),
    case("PRelu", x(2, 3, 4, 4), x(3, 1, 1)),
    case("PRelu", x(2, 3, 4, 4), Const(x(3, 1, 1)), note="held"),
    case("HardSwish", x(3, 4) * 4, opset=14),
    case("Mish", x(3, 4)),
    *(case("Gelu", x(3, 4), opset=20, approximate=how) for how in ("none", "tanh")),
    case("Swish", x(3, 4), opset=24),
    case("Swish", x(3, 4), opset=24, alpha=1.7),
    *(case(op, x(2, 3, 4), axis=axis) for op in ("Softmax", "LogSoftmax", "Hardmax") for axis in (-1, 1)),
    *(case(op, x(2, 3, 4), opset=11, axis=axis) for op in ("Softmax", "LogSoftmax", "Hardmax") for axis in (1, 2, -2)),
    case("Softmax", x(2, 3, 4), opset=11),
    case("Softmax", x(2, 3, 4), opset=13),
]

IMAGE, LINE, VOLUME = x(2, 3, 7, 6), x(2, 3, 9), x(2, 2, 5, 6, 4)
POOLS = [
    *(
        case(op, image, kernel_shape=[3] * rank, strides=[2] * rank, pads=pads, ceil_mode=ceil, note=f"{rank}d-{pads[0]}{pads[-1]}")
        for op in ("MaxPool", "AveragePool", "LpPool")
        for rank, image in ((1, LINE), (2, IMAGE), (3, VOLUME))
        for ceil in (0, 1)
        for pads in ([1] * (2 * rank), [0] * rank + [1] * rank, [0] * (2 * rank))
    ),
    *(
        case(op, IMAGE, kernel_shape=[3, 2], strides=[2, 2], auto_pad=pad)
        for op in ("MaxPool", "AveragePool")
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    *(
        case(
            "AveragePool",
            IMAGE,
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=pads,
            count_include_pad=1,
            ceil_mode=ceil,
            opset=19,
            note=str(pads),
        )
        for pads in ([1, 1, 1, 1], [0, 1, 2, 0])
        for ceil in (0, 1)
    ),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3], pads=[1, 0, 1, 1], opset=19, note="dilated"),
    case("MaxPool", IMAGE, kernel_shape=[2, 3], dilations=[2, 2], pads=[0, 1, 1, 2], note="dilated"),
    case("MaxPool", x(1, 1, 4, 4), kernel_shape=[3, 3], pads=[2, 2, 2, 2], strides=[3, 3], note="wide"),
    case("LpPool", IMAGE, kernel_shape=[2, 2], p=3),
    *(case(op, IMAGE) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    case("GlobalAveragePool", LINE, note="1d"),
    *(case("LRN", x(2, 7, 3, 3), size=size, alpha=0.5, beta=0.6, bias=1.5) for size in (1, 3, 5)),
    case("LpNormalization", x(3, 4), p=1),
    case("LpNormalization", x(3, 4), axis=0),
    case("MeanVarianceNormalization", IMAGE),
    case("Dropout", x(3, 4), outputs=2),
    case("Dropout", x(3, 4), opset=11, ratio=0.3),
]

LAYERS = [
    *(
        case("Conv", IMAGE, x(4, 3, 3, 2), x(4), auto_pad=pad, strides=[2, 1], note="computed")
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("Conv", IMAGE, x(6, 1, 3, 3), group=3, dilations=[2, 1], pads=[2, 0, 1, 1], note="computed"),
    case("ConvTranspose", IMAGE, x(3, 4, 3, 2), x(4), strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0], note="computed"),
    *(
        case("ConvTranspose", IMAGE, x(3, 4, 3, 3), x(4), strides=[2, 3], auto_pad=pad, note="computed")
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("ConvTranspose", IMAGE, x(3, 2, 3, 3), strides=[2, 2], output_shape=[14, 12], note="computed"),
    case("ConvTranspose", IMAGE, x(3, 2, 3, 3), strides=[2, 2], output_shape=[14, 11], auto_pad="SAME_UPPER", note="computed"),
    case("Gemm", x(3, 4), x(5, 4), x(5), transB=1, alpha=0.5, beta=2.0),
    case("Gemm", x(4, 3), x(4, 5), transA=1),
    case("MatMul", x(2, 1, 3, 4), x(5, 4, 2)),
    case("MatMul", x(4), x(4, 2), note="vector"),
    case("Einsum", x(2, 3, 4), x(2, 5, 4), equation="bij,bkj->bik"),
    case("Einsum", x(2, 3, 3), equation="...ii->...i"),
    case("BatchNormalization", IMAGE, x(3), x(3), x(3), positive(3), epsilon=1e-3),
    case("InstanceNormalization", IMAGE, x(3), x(3), epsilon=1e-3),
    case("LayerNormalization", x(2, 3, 4), x(3, 4), x(3, 4), axis=1, outputs=3, tolerance=1e-4),
    case("LayerNormalization", x(2, 3, 4), x(4), epsilon=1e-3),
    case("GroupNormalization", x(2, 4, 3), x(4), x(4), num_groups=2, opset=21),
    case("RMSNormalization", x(2, 3, 4), x(4), opset=23),
]


@pytest.mark.parametrize("one", [*ELEMENTWISE, *ACTIVATIONS, *POOLS, *LAYERS], ids=lambda one: one.id)
def test_an_operator_of_numbers_agrees_with_onnxruntime(one: Case) -> None:
    check(one)
