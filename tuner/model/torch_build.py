"""From an ONNX graph to a graph of torch.fx: nodes in order, each a module or a function of the table."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
from torch import Tensor, fx, nn

from tuner.model.graph import Model
from tuner.model.torch_constants import STANDARD, Constants, Layout, constant_tensor, laid_out, onnx_view, torch_tensor
from tuner.model.torch_modules import Call, Facts, Plan, plan_module
from tuner.model.torch_ops import Operator, find_operator
from tuner.model.torch_table import attributes

SHAPES = ("Shape", "Size")
VALUES, HELD = "values", "held"
"""The submodules with the constants that belong to no layer: tensors on the view's device, and numbers that stay on the CPU."""


@dataclass(frozen=True)
class Place:
    """Where a constant lies: the path of its parameter or buffer below the root."""

    path: str
    layout: Layout
    dims: tuple[int, ...]
    trained: bool


@dataclass(frozen=True)
class Parts:
    """What a view is made of."""

    root: nn.Module
    graph: fx.Graph
    """Every node of the model, without an output."""
    tensors: dict[str, fx.Node] = field(default_factory=dict)
    """What computes each tensor of the model."""
    places: dict[str, Place] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    """The path of each node's module, by the node's name."""
    tied: list[tuple[str, str]] = field(default_factory=list)
    """Paths of buffers that are one."""


class Held(nn.Module):
    """Constants for arithmetic on shapes, which stays on the CPU wherever the view is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[Tensor] = []

    def forward(self, index: int) -> Tensor:
        return self.numbers[index]


def to_device(x: Tensor, like: Tensor) -> Tensor:
    """A tensor computed from shapes, brought to the numbers that it meets."""
    return x.to(like.device)


def missing(model: Model) -> list[str]:
    """What of the model the view lacks, each operator once, with the first node that has it."""
    found: dict[str, str] = {}
    for node in model.nodes.values():
        if (lack := _lack(node, model.opset)) is not None:
            found.setdefault(lack, node.name)
    return [f"{lack} (node '{name}')" for lack, name in found.items()]


def _lack(node: onnx.NodeProto, opset: int) -> str | None:
    if node.domain not in STANDARD:
        return f"{node.domain}.{node.op_type}"
    if node.op_type == "Constant":
        return "Constant of text or of a sparse tensor" if constant_tensor(node) is None else None
    known = find_operator(node.op_type, opset)
    if known is None:
        return str(node.op_type)
    objection = known.objection(node)
    return None if objection is None else f"{node.op_type} {objection}"


class Store:
    """Gives every constant one place, the first time somebody reads it."""

    def __init__(self, constants: Constants, parts: Parts) -> None:
        self.constants = constants
        self.parts = parts
        self.held = Held()
        self.values = nn.Module()
        self._tensors: dict[str, Tensor] = {}
        parts.root.add_module(VALUES, self.values)
        parts.root.add_module(HELD, self.held)

    def fits(self, plan: Plan) -> bool:
        """Can the module share each weight with those that read it already? Only in the same layout."""
        places = self.parts.places
        return all(name not in places or places[name].layout == layout for name, layout in plan.weights.values())

    def fill(self, plan: Plan, path: str) -> None:
        """Put the numbers into a module that is on its way to `path`."""
        for attribute, (name, layout) in plan.weights.items():
            setattr(plan.module, attribute, self._tensor(name, layout, f"{path}.{attribute}"))
        for attribute, name in plan.statistics.items():
            first = self.parts.places.get(name)
            setattr(plan.module, attribute, self._tensor(name, "same", f"{path}.{attribute}"))
            if first is not None:
                self.parts.tied.append((first.path, f"{path}.{attribute}"))

    def place(self, name: str) -> Place:
        """Where a constant lies that a function reads."""
        if name not in self.parts.places:
            key = f"c{len(self.parts.places)}"
            tensor = self._tensor(name, "same", f"{VALUES}.{key}")
            if isinstance(tensor, nn.Parameter):
                self.values.register_parameter(key, tensor)
            else:
                self.values.register_buffer(key, tensor)
        return self.parts.places[name]

    def hold(self, name: str) -> int:
        """The number under which a constant is kept on the CPU."""
        self.held.numbers.append(torch_tensor(self.constants.tensors[name]))
        return len(self.held.numbers) - 1

    def _tensor(self, name: str, layout: Layout, path: str) -> Tensor:
        if name not in self._tensors:
            trained = name in self.constants.trained
            values = laid_out(torch_tensor(self.constants.tensors[name]), layout)
            self._tensors[name] = nn.Parameter(values) if trained else values
            self.parts.places[name] = Place(path, layout, self.constants.dims(name), trained)
        return self._tensors[name]


class Builder:
    """Goes through the model once, node by node."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.constants = Constants(model)
        self.facts = Facts(model, self.constants)
        self.parts = Parts(nn.Module(), fx.Graph())
        self.store = Store(self.constants, self.parts)
        self._on_device: set[str] = set()
        self._taken = {VALUES, HELD}
        self._cache: dict[tuple[str, str], fx.Node] = {}

    def build(self) -> Parts:
        for value in self.model.inputs:
            name = self._free(value.name)
            self.parts.tensors[value.name] = self.parts.graph.create_node("placeholder", name, name=name)
            self._on_device.add(value.name)
        for node in self.model.nodes.values():
            if node.op_type != "Constant":
                self._node(node)
        for value in self.model.outputs:
            if value.name not in self.parts.tensors:
                self.parts.tensors[value.name] = self._stored(str(self.constants.origin(value.name)))
        return self.parts

    def _node(self, node: onnx.NodeProto) -> None:
        plan = plan_module(node, self.facts)
        if plan is not None and self.store.fits(plan):
            self._module(node, plan)
            return
        known = find_operator(node.op_type, self.model.opset)
        assert known is not None, "checked by `missing`"
        self._function(node, known)

    def _module(self, node: onnx.NodeProto, plan: Plan) -> None:
        path = self._free(node.name)
        self.parts.root.add_module(path, plan.module)
        self.store.fill(plan, path)
        self.parts.modules[node.name] = path
        x = self._wrapped(plan.before, self._read(plan.input), f"{path}_before")
        y = self.parts.graph.create_node("call_module", path, (x,), name=path)
        self.parts.tensors[node.output[0]] = self._wrapped(plan.after, y, f"{path}_after")
        self._on_device.add(node.output[0])

    def _wrapped(self, call: Call | None, x: fx.Node, name: str) -> fx.Node:
        if call is None:
            return x
        function, rest = call
        return self.parts.graph.create_node("call_function", function, (x, *rest), name=name)

    def _function(self, node: onnx.NodeProto, known: Operator) -> None:
        data = [name for position, name in enumerate(node.input) if name and position not in known.host]
        device = [name for name in data if self._is_on_device(name)]
        on_cpu = node.op_type in SHAPES or not device
        operands = [self._operand(name, position in known.host, device, on_cpu) for position, name in enumerate(node.input)]
        keywords: dict[str, Any] = attributes(node)
        if known.asks("opset"):
            keywords["opset"] = self.model.opset
        if known.asks("outputs"):
            keywords["outputs"] = len(node.output)
        name = self._free(node.name)
        result = self.parts.graph.create_node("call_function", known.function, tuple(operands), keywords, name=name)
        for index, output in enumerate(node.output):
            if output:
                self.parts.tensors[output] = self._item(result, index) if known.many else result
        if not on_cpu:
            self._on_device.update(node.output)

    def _operand(self, name: str, host: bool, device: list[str], on_cpu: bool) -> Any:
        if not name:
            return None
        origin = self.constants.origin(name)
        if origin is None:
            stays = host or on_cpu or name in self._on_device
            return self._read(name) if stays else self._once("moved", name, lambda: self._moved(name, device[0]))
        if host:
            return self.constants.array(origin).tolist()
        return self._once("held", origin, lambda: self._held(origin)) if on_cpu and not device else self._stored(origin)

    def _read(self, name: str) -> fx.Node:
        origin = self.constants.origin(name)
        return self.parts.tensors[name] if origin is None else self._stored(origin)

    def _stored(self, name: str) -> fx.Node:
        return self._once("stored", name, lambda: self._get(self.store.place(name)))

    def _get(self, place: Place) -> fx.Node:
        parameter = self.parts.graph.create_node("get_attr", place.path)
        if place.layout == "same":
            return parameter
        return self.parts.graph.call_function(onnx_view, (parameter, place.layout, list(place.dims)))

    def _held(self, name: str) -> fx.Node:
        return self.parts.graph.create_node("call_module", HELD, (self.store.hold(name),))

    def _moved(self, name: str, reference: str) -> fx.Node:
        return self.parts.graph.call_function(to_device, (self._read(name), self._read(reference)))

    def _item(self, result: fx.Node, index: int) -> fx.Node:
        return self.parts.graph.call_function(operator.getitem, (result, index))

    def _once(self, kind: str, name: str, make: Callable[[], fx.Node]) -> fx.Node:
        if (kind, name) not in self._cache:
            self._cache[kind, name] = make()
        return self._cache[kind, name]

    def _is_on_device(self, name: str) -> bool:
        origin = self.constants.origin(name)
        return name in self._on_device if origin is None else origin in self.constants.trained

    def _free(self, name: str) -> str:
        """A name that Python and torch allow and nobody has."""
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = f"_{plain}" if not plain or plain[0].isdigit() else plain
        free, count = plain, 0
        while free in self._taken or keyword.iskeyword(free) or hasattr(fx.GraphModule, free):
            count += 1
            free = f"{plain}_{count}"
        self._taken.add(free)
        return free
