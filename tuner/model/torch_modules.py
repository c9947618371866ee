"""Which nodes become modules of torch.nn, and how. A node that no module expresses exactly is left to the functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tuner.errors import ModelError
from tuner.model.graph import Model
from tuner.model.torch_constants import Constants, Layout
from tuner.model.torch_ops_index import wrapped
from tuner.model.torch_padding import pad_last, pad_same, window_of
from tuner.model.torch_table import attributes

Call = tuple[Callable[..., Tensor], tuple[Any, ...]]
"""A function and what it takes after the tensor."""

CONVOLUTIONS: Mapping[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Mapping[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: Mapping[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS: Mapping[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


@dataclass(frozen=True)
class Plan:
    """A module without numbers (on the meta device) and what belongs into it."""

    module: nn.Module
    input: str
    """The tensor that it reads."""
    weights: Mapping[str, tuple[str, Layout]] = field(default_factory=dict)
    """Attribute of the module: (initializer, layout)."""
    statistics: Mapping[str, str] = field(default_factory=dict)
    """Buffer of the module: initializer."""
    before: Call | None = None
    after: Call | None = None


class BatchNormAnyRank(_BatchNorm):
    """BatchNormalization of an input whose rank is not known before it runs."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Facts:
    """What a plan asks about the graph."""

    def __init__(self, model: Model, constants: Constants) -> None:
        self.model = model
        self.constants = constants

    def weight(self, node: onnx.NodeProto, position: int) -> str:
        """The trained initializer that an operand is; empty where it is left out. KeyError where it is anything else."""
        if position >= len(node.input) or not node.input[position]:
            return ""
        origin = self.constants.origin(node.input[position])
        if origin not in self.constants.trained:
            raise KeyError(node.input[position])
        return str(origin)

    def statistic(self, node: onnx.NodeProto, position: int) -> str:
        """The initializer that an operand is and that nothing trains. KeyError where it is anything else."""
        origin = self.constants.origin(node.input[position])
        if origin not in self.model.initializers or origin in self.constants.trained:
            raise KeyError(node.input[position])
        return str(origin)

    def dims(self, name: str) -> tuple[int, ...]:
        return self.constants.dims(name)

    def rank(self, tensor: str) -> int | None:
        """How many axes a tensor has, where that can be told."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """The shape of a tensor for one row, where that can be told."""
        return self._shapes.get(tensor)

    @cached_property
    def read(self) -> frozenset[str]:
        """The tensors that somebody asks for: other nodes or the user."""
        return frozenset(self.model.consumers) | {value.name for value in self.model.outputs}

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        try:
            return self.model.shapes({value.name: tuple(size or 1 for size in value.shape) for value in self.model.inputs})
        except ModelError:
            return {}


Planner = Callable[[onnx.NodeProto, Facts], Plan | None]
_PLANNERS: dict[str, Planner] = {}


def planner(op: str) -> Callable[[Planner], Planner]:
    """Decorator: the function makes modules of nodes of this operator."""

    def enter(function: Planner) -> Planner:
        _PLANNERS[op] = function
        return function

    return enter


def plan_module(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    """The module that computes exactly what the node does; None where there is none."""
    make = _PLANNERS.get(node.op_type)
    if make is None or any(name in facts.read for name in node.output[1:]):
        return None
    try:
        return make(node, facts)
    except KeyError:
        # A weight is computed, or a constant that is not trained.
        return None


def _named(weight: str, bias: str, layout: Layout = "same", bias_layout: Layout = "same") -> dict[str, tuple[str, Layout]]:
    return {"weight": (weight, layout)} | ({"bias": (bias, bias_layout)} if bias else {})


@planner("Conv")
def _conv(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    given = attributes(node)
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    out, inner, *kernel = facts.dims(weight)
    if len(kernel) not in CONVOLUTIONS:
        return None
    group = given.get("group", 1)
    window = window_of(kernel, given.get("strides"), given.get("dilations"), given.get("pads"), given.get("auto_pad", "NOTSET"))
    inside = window.symmetric and min(window.begin) >= 0
    module = CONVOLUTIONS[len(kernel)](
        inner * group,
        out,
        window.kernel,
        window.stride,
        window.begin if inside else 0,
        window.dilation,
        group,
        bias=bool(bias),
        device="meta",
    )
    before: Call | None = None
    if window.same:
        before = pad_same, (list(window.kernel), list(window.stride), list(window.dilation), window.same)
    elif not inside:
        before = pad_last, (list(window.begin), list(window.end))
    return Plan(module, node.input[0], _named(weight, bias), before=before)


@planner("ConvTranspose")
def _conv_transpose(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    given = attributes(node)
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    inner, out, *kernel = facts.dims(weight)
    if len(kernel) not in TRANSPOSED or given.get("output_shape") or given.get("auto_pad", "NOTSET").startswith("SAME"):
        return None
    group, extra = given.get("group", 1), tuple(given.get("output_padding") or [0] * len(kernel))
    window = window_of(kernel, given.get("strides"), given.get("dilations"), given.get("pads"), given.get("auto_pad", "NOTSET"))
    if any(more >= max(step, spread) for more, step, spread in zip(extra, window.stride, window.dilation, strict=True)):
        return None
    inside = window.symmetric and min(window.begin) >= 0
    module = TRANSPOSED[len(kernel)](
        inner,
        out * group,
        window.kernel,
        window.stride,
        window.begin if inside else 0,
        extra,
        group,
        bool(bias),
        window.dilation,
        device="meta",
    )
    cut: Call = pad_last, ([-low for low in window.begin], [-high for high in window.end])
    return Plan(module, node.input[0], _named(weight, bias), after=None if inside else cut)


@planner("Gemm")
def _gemm(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    given = attributes(node)
    if given.get("transA") or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
        return None
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    turned = not given.get("transB")
    inner, out = facts.dims(weight) if turned else reversed(facts.dims(weight))
    if bias and facts.dims(bias) not in ((out,), (1, out)):
        return None
    module = nn.Linear(inner, out, bias=bool(bias), device="meta")
    flat: Layout = "flat" if bias and len(facts.dims(bias)) == 2 else "same"
    return Plan(module, node.input[0], _named(weight, bias, "transposed" if turned else "same", flat))


@planner("MatMul")
def _matmul(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    weight = facts.weight(node, 1)
    if len(facts.dims(weight)) != 2:
        return None
    inner, out = facts.dims(weight)
    return Plan(nn.Linear(inner, out, bias=False, device="meta"), node.input[0], _named(weight, "", "transposed"))


@planner("Gather")
def _embedding(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    weight = facts.weight(node, 0)
    if len(facts.dims(weight)) != 2 or attributes(node).get("axis", 0) not in (0, -2):
        return None
    count, width = facts.dims(weight)
    # With a weight of its own the module draws no first one.
    module = nn.Embedding(count, width, _weight=torch.empty(count, width, device="meta"))
    return Plan(module, node.input[1], _named(weight, ""), before=(wrapped, (count,)))


@planner("BatchNormalization")
def _batch_norm(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    given = attributes(node)
    if given.get("training_mode"):
        return None
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    kind: Callable[..., nn.Module] = BATCH_NORMS.get(facts.rank(node.input[0]) or 0, BatchNormAnyRank)
    # The share that a new batch has in torch is what is left of the share that ONNX gives to the old ones.
    momentum = 1 - given.get("momentum", 0.9)
    module = kind(facts.dims(weight)[0], eps=given.get("epsilon", 1e-5), momentum=momentum, device="meta")
    statistics = {"running_mean": facts.statistic(node, 3), "running_var": facts.statistic(node, 4)}
    module.register_buffer("num_batches_tracked", torch.tensor(0))
    return Plan(module, node.input[0], _named(weight, bias), statistics)


@planner("LayerNormalization")
def _layer_norm(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    shape = facts.dims(weight)
    if not _covers(node, facts, shape) or (bias and facts.dims(bias) != shape):
        return None
    module = nn.LayerNorm(shape, eps=attributes(node).get("epsilon", 1e-5), bias=bool(bias), device="meta")
    return Plan(module, node.input[0], _named(weight, bias))


@planner("RMSNormalization")
def _rms_norm(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    weight = facts.weight(node, 1)
    shape = facts.dims(weight)
    if not _covers(node, facts, shape):
        return None
    return Plan(nn.RMSNorm(shape, eps=attributes(node).get("epsilon", 1e-5), device="meta"), node.input[0], _named(weight, ""))


def _covers(node: onnx.NodeProto, facts: Facts, shape: tuple[int, ...]) -> bool:
    """Is the scale of a normalization exactly as wide as what it normalizes? It could be broadcast, along sizes of 1."""
    axis, known = attributes(node).get("axis", -1), facts.shape(node.input[0])
    if axis >= 0 and known is None:
        return False
    front = axis if axis < 0 else axis - len(known or ())
    return -front == len(shape) and (min(shape) > 1 or (known is not None and known[front:] == shape))


@planner("GroupNormalization")
def _group_norm(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    given = attributes(node)
    if facts.model.opset < 21:
        return None
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    module = nn.GroupNorm(given["num_groups"], facts.dims(weight)[0], eps=given.get("epsilon", 1e-5), device="meta")
    return Plan(module, node.input[0], _named(weight, bias))


@planner("InstanceNormalization")
def _instance_norm(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    weight, bias = facts.weight(node, 1), facts.weight(node, 2)
    kind: Callable[..., nn.Module] | None = INSTANCE_NORMS.get(facts.rank(node.input[0]) or 0)
    if kind is None:
        return None
    module = kind(facts.dims(weight)[0], eps=attributes(node).get("epsilon", 1e-5), affine=True, device="meta")
    return Plan(module, node.input[0], _named(weight, bias))


@planner("Dropout")
def _dropout(node: onnx.NodeProto, facts: Facts) -> Plan | None:
    """Drops in training; without effect in evaluation, as onnxruntime has it."""
    ratio = attributes(node).get("ratio", 0.5)
    if len(node.input) > 1 and node.input[1]:
        ratio = float(facts.constants.array(facts.constants.origin(node.input[1]) or ""))
    return Plan(nn.Dropout(ratio), node.input[0])
