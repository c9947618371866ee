"""What is known of each tensor of a graph while labels are carried through it: sizes, constants, shapes held as values, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tuner.compress.pruning.labels import Axes, Indices, Labels
from tuner.model.graph import Model, attribute, inner_reads

Size = tuple[int, int] | None
"""A dimension at two settings of the dynamic ones (equal: it is fixed); None: unknown."""
ONE = (1, 1)
_PROBES = (((2, 64), (3, 96)), ((2, 16), (3, 24)))
"""Two settings of the dynamic dimensions (the first of an input, and others), and two for models that cannot take so much."""
_LABELLED = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16, onnx.TensorProto.BOOL)


class NotFollowed(Exception):
    """A node whose effect on labels is not known; the text says why, after the node's name."""


@dataclass(frozen=True)
class Use:
    """A constant as it is used: by one node, where a vector serves several (`position` is then the input), or by all."""

    name: str
    node: str
    position: int | None
    axes: Axes


@dataclass(frozen=True)
class Fixed:
    """One number of a constant that holds a shape."""

    name: str
    index: int
    value: int


@dataclass(frozen=True)
class Dim:
    """One number of a shape that is read from a tensor when the model runs."""

    tensor: str
    axis: int


Element = Fixed | Dim | None


class Trace:
    """Everything that following a model's labels finds out."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.labels = Labels()
        self.constants = constants_of(model)
        self.probe, self.sizes = _sizes(model)
        self.axes: dict[str, Axes] = {}
        self.uses: dict[tuple[str, str, int | None], Use] = {}
        self.weights: set[str] = set(self.constants)
        """Constants, and what only moves the numbers of one."""
        self.values: dict[str, tuple[Element, ...]] = {}
        self.captured = inner_reads(model.proto.graph) | {value.name for value in model.proto.graph.output}
        self.readers = Counter(name for node in model.proto.graph.node for name in node.input)

    def read(self, node: onnx.NodeProto, position: int) -> Axes:
        """The labels of what the node reads at an input; NotFollowed where not even its rank is known."""
        name = node.input[position]
        if name in self.axes:
            return self.axes[name]
        if name in self.constants:
            return self._constant(node, position)
        if name not in self.sizes:
            raise NotFollowed("reads a tensor whose shape cannot be inferred")
        return (None,) * len(self.sizes[name])

    def optional(self, node: onnx.NodeProto, position: int) -> Axes:
        """The same for an input that may be missing (then no axes)."""
        return self.read(node, position) if has_input(node, position) else ()

    def dims(self, name: str) -> tuple[Size, ...]:
        if name in self.constants:
            return tuple((size, size) for size in self.constants[name].dims)
        if name not in self.sizes:
            raise NotFollowed("reads or writes a tensor whose shape cannot be inferred")
        return self.sizes[name]

    def write(self, node: onnx.NodeProto, outputs: Sequence[Axes]) -> None:
        for position, name in enumerate(node.output):
            if name and position < len(outputs):
                self.axes[name] = outputs[position]

    def stop(self, node: onnx.NodeProto, axes: Axes, why: str) -> None:
        """Freeze all labels among `axes` because of what the node does."""
        for labels in axes:
            if labels is not None:
                self.labels.freeze(labels, f"'{node.name}' ({node.op_type}) {why}" if why else "")

    def stop_all(self, node: onnx.NodeProto, why: str) -> None:
        for position, name in enumerate(node.input):
            if name in self.axes or name in self.constants:
                self.stop(node, self.read(node, position), why)

    def ints(self, node: onnx.NodeProto, position: int, name: str) -> list[int] | None:
        """Whole numbers given by a constant input or, in older operator sets, by an attribute; None: neither."""
        if has_input(node, position):
            tensor = self.constants.get(node.input[position])
            return None if tensor is None else [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]
        found = attribute(node, name)
        return None if found is None else [int(value) for value in found]

    def elements(self, name: str) -> tuple[Element, ...] | None:
        """The numbers of a vector that holds a shape; None where nothing is known of it."""
        if name in self.values or name not in self.constants:
            return self.values.get(name)
        tensor = self.constants[name]
        if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) or len(tensor.dims) > 1:
            return None
        return tuple(Fixed(name, index, int(value)) for index, value in enumerate(numpy_helper.to_array(tensor).reshape(-1)))

    def _constant(self, node: onnx.NodeProto, position: int) -> Axes:
        """Vectors that several nodes read (zeros that serve as biases) get labels for each, so that they tie nothing."""
        name = node.input[position]
        tensor = self.constants[name]
        own = self.readers[name] > 1 and len(tensor.dims) <= 1 and name not in self.captured
        key = (name, node.name, position) if own else (name, "", None)
        if key not in self.uses:
            followed = tensor.data_type in _LABELLED
            axes = tuple(self.labels.fresh(size) if size > 1 and followed else None for size in tensor.dims)
            self.uses[key] = Use(name, node.name, position if own else None, axes)
        return self.uses[key].axes

    def freeze_outside(self) -> None:
        """What leaves the graph, or what graphs within nodes read, stays as it is."""
        outputs = {value.name for value in self.model.proto.graph.output}
        shared = {use.name: use.axes for use in self.uses.values() if use.position is None}
        for name in sorted(self.captured):
            reason = f"they are in the output '{name}'" if name in outputs else f"a graph within a node reads '{name}'"
            for labels in self.axes.get(name, shared.get(name, ())):
                if labels is not None:
                    self.labels.freeze(labels, reason)


Rule = Callable[[Trace, onnx.NodeProto], Sequence[Axes]]
"""Says which labels the outputs of a node carry, and unites or freezes those of its inputs."""


def has_input(node: onnx.NodeProto, position: int) -> bool:
    return len(node.input) > position and node.input[position] != ""


def is_fixed(size: Size) -> bool:
    return size is not None and size[0] == size[1]


def axis_of(node: onnx.NodeProto, rank: int, default: int) -> int:
    return int(attribute(node, "axis", default)) % max(rank, 1)


def without(axes: Axes, dropped: Sequence[int]) -> Axes:
    return tuple(None if index in dropped else labels for index, labels in enumerate(axes))


def present(axes: Sequence[Indices | None]) -> list[Indices]:
    return [labels for labels in axes if labels is not None]


def constants_of(model: Model) -> dict[str, onnx.TensorProto]:
    """Initializers, and what Constant nodes hold."""
    found = dict(model.initializers)
    for node in model.nodes.values():
        value = constant_value(node) if node.op_type == "Constant" and not node.domain else None
        if value is not None:
            found[node.output[0]] = value
    return found


def constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node; None for texts and sparse tensors."""
    tensor: onnx.TensorProto | None = attribute(node, "value")
    if tensor is not None:
        return tensor
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)):
        values: Any = attribute(node, name)
        if values is not None:
            return numpy_helper.from_array(np.array(values, dtype), node.output[0])
    return None


def _sizes(model: Model) -> tuple[Mapping[str, tuple[int, ...]], dict[str, tuple[Size, ...]]]:
    """The inputs' shapes at one setting, and the sizes of all tensors at both, with those settings that tell more."""
    found = []
    for settings in _PROBES:
        inputs = [_inputs(model, *setting) for setting in settings]
        sizes = _both(model.shapes(inputs[0]), model.shapes(inputs[1]))
        missing = sum(name not in sizes or None in sizes[name] for name in model.producers)
        found.append((missing, inputs[0], sizes))
        if not missing:
            break
    _, probe, sizes = min(found, key=lambda each: each[0])
    return probe, sizes


def _inputs(model: Model, first: int, rest: int) -> dict[str, tuple[int, ...]]:
    return {i.name: tuple(size or (rest if axis else first) for axis, size in enumerate(i.shape)) for i in model.inputs}


def _both(one: Mapping[str, tuple[int | None, ...]], other: Mapping[str, tuple[int | None, ...]]) -> dict[str, tuple[Size, ...]]:
    both = {name: (one[name], other[name]) for name in one if name in other and len(one[name]) == len(other[name])}
    return {name: tuple(_size(a, b) for a, b in zip(*pair, strict=True)) for name, pair in both.items()}


def _size(one: int | None, other: int | None) -> Size:
    return None if one is None or other is None else (one, other)
