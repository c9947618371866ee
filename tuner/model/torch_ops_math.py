"""Operators on numbers, one by one: arithmetic, comparison, logic, rounding, conversion; and products of matrices."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from tuner.model.torch_table import DTYPES, Numbers, operator


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    return x


@operator("Add")
def add(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x, y)


@operator("Sub")
def subtract(x: Tensor, y: Tensor) -> Tensor:
    return torch.sub(x, y)


@operator("Mul")
def multiply(x: Tensor, y: Tensor) -> Tensor:
    return torch.mul(x, y)


@operator("Div")
def divide(x: Tensor, y: Tensor) -> Tensor:
    """Whole numbers are cut towards zero."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@operator("Mod")
def modulo(x: Tensor, y: Tensor, *, fmod: int = 0) -> Tensor:
    """fmod: the result has the dividend's sign, else the divisor's."""
    return torch.fmod(x, y) if fmod else torch.remainder(x, y)


@operator("Pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y).to(x.dtype)


@operator("Sum")
def total(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors)


@operator("Mean")
def mean(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


@operator("Max")
def maximum(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


@operator("Min")
def minimum(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


@operator("Clip", host=(1, 2))
def clip(x: Tensor, low: Numbers | None = None, high: Numbers | None = None) -> Tensor:
    """low, high: single numbers; where low is above high, high wins."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return x if low is None and high is None else torch.clamp(x, _single(low), _single(high))
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


def _single(number: Numbers | None) -> float | None:
    """Some exporters write a limit as a list of one."""
    return number[0] if isinstance(number, (list, tuple)) else number  # type: ignore[return-value]


@operator("Neg")
def negate(x: Tensor) -> Tensor:
    return torch.neg(x)


@operator("Abs")
def absolute(x: Tensor) -> Tensor:
    return torch.abs(x)


@operator("Sign")
def sign(x: Tensor) -> Tensor:
    return torch.sign(x)


@operator("Floor")
def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


@operator("Ceil")
def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


@operator("Round")
def round_half_even(x: Tensor) -> Tensor:
    return torch.round(x)


@operator("Reciprocal")
def reciprocal(x: Tensor) -> Tensor:
    return torch.reciprocal(x)


@operator("Sqrt")
def square_root(x: Tensor) -> Tensor:
    return torch.sqrt(x)


@operator("Exp")
def exponential(x: Tensor) -> Tensor:
    return torch.exp(x)


@operator("Log")
def logarithm(x: Tensor) -> Tensor:
    return torch.log(x)


@operator("Erf")
def error_function(x: Tensor) -> Tensor:
    return torch.erf(x)


@operator("Sin")
def sine(x: Tensor) -> Tensor:
    return torch.sin(x)


@operator("Cos")
def cosine(x: Tensor) -> Tensor:
    return torch.cos(x)


@operator("Tan")
def tangent(x: Tensor) -> Tensor:
    return torch.tan(x)


@operator("Asin")
def arc_sine(x: Tensor) -> Tensor:
    return torch.asin(x)


@operator("Acos")
def arc_cosine(x: Tensor) -> Tensor:
    return torch.acos(x)


@operator("Atan")
def arc_tangent(x: Tensor) -> Tensor:
    return torch.atan(x)


@operator("Sinh")
def hyperbolic_sine(x: Tensor) -> Tensor:
    return torch.sinh(x)


@operator("Cosh")
def hyperbolic_cosine(x: Tensor) -> Tensor:
    return torch.cosh(x)


@operator("Asinh")
def area_hyperbolic_sine(x: Tensor) -> Tensor:
    return torch.asinh(x)


@operator("Acosh")
def area_hyperbolic_cosine(x: Tensor) -> Tensor:
    return torch.acosh(x)


@operator("Atanh")
def area_hyperbolic_tangent(x: Tensor) -> Tensor:
    return torch.atanh(x)


@operator("Equal")
def equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.eq(x, y)


@operator("Greater")
def greater(x: Tensor, y: Tensor) -> Tensor:
    return torch.gt(x, y)


@operator("GreaterOrEqual")
def greater_or_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.ge(x, y)


@operator("Less")
def less(x: Tensor, y: Tensor) -> Tensor:
    return torch.lt(x, y)


@operator("LessOrEqual")
def less_or_equal(x: Tensor, y: Tensor) -> Tensor:
    return torch.le(x, y)


@operator("And")
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y)


@operator("Or")
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y)


@operator("Xor")
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_xor(x, y)


@operator("Not")
def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operator("BitwiseAnd")
def bitwise_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_and(x, y)


@operator("BitwiseOr")
def bitwise_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_or(x, y)


@operator("BitwiseXor")
def bitwise_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_xor(x, y)


@operator("BitwiseNot")
def bitwise_not(x: Tensor) -> Tensor:
    return torch.bitwise_not(x)


@operator("IsNaN")
def is_nan(x: Tensor) -> Tensor:
    return torch.isnan(x)


@operator("IsInf")
def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return torch.logical_or(torch.isposinf(x) & bool(detect_positive), torch.isneginf(x) & bool(detect_negative))


@operator("Where")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@operator("Cast", only={"to": DTYPES})
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:  # noqa: ARG001 - both concern 8-bit floats alone
    return x.to(DTYPES[to])


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:  # noqa: ARG001
    return x.to(like.dtype)


@operator("MatMul")
def matrix_product(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


@operator("Gemm")
def general_product(
    x: Tensor, y: Tensor, bias: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    product = torch.matmul(x.t() if transA else x, y.t() if transB else y)
    product = product if alpha == 1 else product * alpha
    return product if bias is None else product + (bias if beta == 1 else bias * beta)


@operator("Einsum")
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)
