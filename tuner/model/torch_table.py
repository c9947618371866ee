"""The table of operators that the torch view computes with functions, and the decorator that fills it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor

from tuner.registry import load_plugins

Function = TypeVar("Function", bound=Callable[..., Any])
Numbers = Tensor | Sequence[Any] | float
"""A host operand: numbers where the graph holds them as a constant, a tensor where it computes them."""

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
}
"""The element types that a tensor of the view can have."""


@dataclass(frozen=True)
class Operator:
    """One ONNX operator, from one opset on, as a function of torch."""

    name: str
    since: int
    function: Callable[..., Any]
    host: frozenset[int]
    """Positions of operands that are shapes, axes or other plain numbers: read on the CPU, not computed with."""
    many: bool
    """Does the function return a tuple of outputs?"""
    only: Mapping[str, Container[Any]] = field(default_factory=dict)
    """Attributes of which the function knows some values alone."""

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    def asks(self, name: str) -> bool:
        """Does the function take a keyword of that name?"""
        return name in self.parameters

    def objection(self, node: onnx.NodeProto) -> str | None:
        """What of a node the function does not know; None where it can compute it."""
        for name, value in attributes(node).items():
            if not self.asks(name):
                return f"with the attribute '{name}'"
            if name in self.only and value not in self.only[name]:
                return f"with {name}={value!r}"
        if not self.many and any(node.output[1:]):
            return f"with {len(node.output)} outputs"
        return None


_OPERATORS: dict[str, list[Operator]] = {}


def operator(
    name: str, *, since: int = 1, host: Collection[int] = (), many: bool = False, only: Mapping[str, Container[Any]] | None = None
) -> Callable[[Function], Function]:
    """Decorator: the function computes the ONNX operator `name` from opset `since` on.

    Its positional parameters are the operands (None where one is left out; an operand that older opsets give as an attribute bears the
    attribute's name), its keywords the attributes. It may ask for `opset` and for `outputs`, how many the node has.
    ValueError if the same opset's operator is registered twice."""

    def enter(function: Function) -> Function:
        versions = _OPERATORS.setdefault(name, [])
        if any(known.since == since and known.function is not function for known in versions):
            raise ValueError(f"operator '{name}' from opset {since} is registered twice; give one of them another opset")
        versions.append(Operator(name, since, function, frozenset(host), many, only or {}))
        versions.sort(key=lambda known: known.since)
        return function

    return enter


def find_operator(name: str, opset: int) -> Operator | None:
    """The newest function for an operator that `opset` reaches."""
    if name not in _OPERATORS:
        load_plugins()
    return next((known for known in reversed(_OPERATORS.get(name, [])) if known.since <= opset), None)


def known_operators() -> tuple[str, ...]:
    """Every operator that has a function."""
    load_plugins()
    return tuple(sorted(_OPERATORS))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values: texts are str, a tensor is (its numbers, its dtype)."""
    return {item.name: _value(onnx.helper.get_attribute_value(item)) for item in node.attribute}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value).tolist(), DTYPES.get(value.data_type)
    if isinstance(value, (int, float, str)):
        return value
    return [_value(item) for item in value] if isinstance(value, Sequence) else value


def ints(numbers: Numbers) -> list[int]:
    """The whole numbers of a host operand."""
    values = numbers.tolist() if isinstance(numbers, Tensor) else numbers
    return [int(value) for value in values] if isinstance(values, Sequence) else [int(values)]


def floats(numbers: Numbers) -> list[float]:
    """The numbers of a host operand."""
    values = numbers.tolist() if isinstance(numbers, Tensor) else numbers
    return [float(value) for value in values] if isinstance(values, Sequence) else [float(values)]


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis
