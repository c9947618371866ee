"""Taking channels out of a model: weights are sliced, and attributes and constants that tell a number of channels are mended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tuner.compress.pruning.channels import ChannelGroup, ChannelGroups, Following, Slot, follow
from tuner.compress.pruning.editing import Editor
from tuner.compress.pruning.labels import Axes, Indices
from tuner.compress.pruning.tracing import Fixed, Trace, Use, axis_of, has_input
from tuner.errors import PlanError, unknown_name
from tuner.model.graph import Model, attribute

Removed = Mapping[str, Collection[int]]
"""The channels to remove of each group, by its name."""


def remove_channels(model: Model, removed: Removed) -> Model:
    """The model without some channels of its groups. PlanError names what is not known or leaves a group empty.

    Deterministic; where nothing is removed, the model itself is returned."""
    following = follow(model)
    _check(following.found, removed)
    gone = np.zeros(int(following.classes.max(initial=-1)) + 1, bool)
    for name, channels in removed.items():
        gone[[following.members[name][channel] for channel in channels]] = True
    if not gone.any():
        return model
    cut = _Cut(following, gone)
    cut.slice_constants()
    for node in model.nodes.values():
        if node.op_type in _MENDS and not node.domain:
            _MENDS[node.op_type](cut, node)
    result = cut.editor.finish()
    cut.compare_sizes(result, sorted(name for name, channels in removed.items() if channels))
    return result


def mask_channels(model: Model, removed: Removed) -> Model:
    """The same function without removing anything: whatever reads the channels multiplies them by zero."""
    following = follow(model)
    _check(following.found, removed)
    arrays: dict[str, NDArray[Any]] = {}
    for group in following.found.groups:
        for slot in group.slots if removed.get(group.name) else ():
            if slot.role == "in":
                values = arrays.setdefault(slot.initializer, _array(following.trace, slot.initializer).copy())
                _zero(values, slot, removed[group.name])
    if not arrays:
        return model
    editor = Editor(following.trace)
    for name, values in arrays.items():
        editor.replace(name, values)
    return editor.finish()


def prove(masked: Model, cut: Model, run: Callable[[Model], Sequence[NDArray[Any]]]) -> float:
    """The largest difference between outputs of the masked and of the cut model, in the outputs' unit. run: a model's outputs on the
    rows that the proof is made with."""
    pairs = zip(run(masked), run(cut), strict=True)
    return max((float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0)) for a, b in pairs), default=0.0)


def _check(found: ChannelGroups, removed: Removed) -> None:
    groups = {group.name: group for group in found.groups}
    for name, channels in removed.items():
        if name not in groups:
            raise PlanError(unknown_name("channel group", name, groups))
        _check_channels(groups[name], channels)


def _check_channels(group: ChannelGroup, channels: Collection[int]) -> None:
    wrong = sorted(channel for channel in channels if not 0 <= channel < group.size)
    if wrong:
        raise PlanError(f"the {group.kind} of '{group.name}' are numbered 0 to {group.size - 1}, got {wrong[0]}. Take them from that range")
    if len(set(channels)) == group.size:
        raise PlanError(f"'{group.name}' has {group.size} {group.kind}, of which at least one must stay, got all of them. Keep one")


def _zero(values: NDArray[Any], slot: Slot, channels: Collection[int]) -> None:
    places = [index for channel in channels for index in slot.positions[channel]]
    np.moveaxis(values, slot.axis, 0)[places] = 0


def _array(trace: Trace, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(trace.constants[name])


class _Cut:
    """Which indices stay, and the copy of the graph that is cut."""

    def __init__(self, following: Following, gone: NDArray[np.bool_]) -> None:
        self.trace = following.trace
        self.editor = Editor(following.trace)
        self._stays = ~gone[following.classes]

    def stays(self, labels: Indices) -> NDArray[np.bool_]:
        """Which indices of an axis stay."""
        return self._stays[labels]

    def is_cut(self, labels: Indices | None) -> bool:
        return labels is not None and not self._stays[labels].all()

    def axes(self, node: onnx.NodeProto, output: int = 0) -> Axes:
        return self.trace.axes.get(node.output[output], ())

    def read(self, node: onnx.NodeProto, axis: int) -> Indices | None:
        """The labels of one axis of what the node reads, where some go."""
        axes = self.inputs(node)
        return axes[axis] if axes and self.is_cut(axes[axis]) else None

    def inputs(self, node: onnx.NodeProto) -> Axes:
        known = node.input[0] in self.trace.sizes or node.input[0] in self.trace.axes or node.input[0] in self.trace.constants
        return self.trace.read(node, 0) if known else ()

    def slice_constants(self) -> None:
        """Uses of one constant that lose the same share it; the others get copies."""
        uses: dict[str, list[Use]] = {}
        for use in self.trace.uses.values():
            uses.setdefault(use.name, []).append(use)
        for name, own in uses.items():
            if any(self.is_cut(labels) for use in own for labels in use.axes):
                self._slice_constant(name, own)

    def _slice_constant(self, name: str, uses: list[Use]) -> None:
        values = _array(self.trace, name)
        shared = uses[0].position is not None and len(uses) < self.trace.readers[name]
        names: dict[bytes, str] = {np.ones(values.shape, bool).tobytes(): name} if shared else {}
        for use in uses:
            sized = zip(use.axes, values.shape, strict=True)
            masks = [np.ones(size, bool) if labels is None else self.stays(labels) for labels, size in sized]
            key = b"".join(mask.tobytes() for mask in masks)
            if key not in names:
                cut = values[np.ix_(*masks)]
                names[key] = self.editor.add(f"{name}.{use.node}", cut) if names else name
                if names[key] == name:
                    self.editor.replace(name, cut)
            if use.position is not None:
                self.editor.nodes[use.node].input[use.position] = names[key]

    def compare_sizes(self, result: Model, groups: list[str]) -> None:
        """Inference must find every tensor as long as its labels say."""
        sizes = result.shapes(self.trace.probe)
        for name, axes in self.trace.axes.items():
            for axis, labels in enumerate(axes):
                found = sizes[name][axis] if labels is not None and len(sizes.get(name, ())) == len(axes) else None
                expected = self._expected(name, axis, labels) if labels is not None else None
                if found is not None and expected is not None and found != expected:
                    raise PlanError(
                        f"dimension {axis} of '{name}' would be {found} without the channels to remove of {', '.join(groups)}, and must be "
                        f"{expected}. Leave these groups whole"
                    )

    def _expected(self, name: str, axis: int, labels: Indices) -> int | None:
        """How long an axis must be; labels may stand there several times."""
        size = self.trace.sizes[name][axis] if name in self.trace.sizes else None
        return None if size is None else size[0] // len(labels) * int(np.count_nonzero(self.stays(labels)))


def _mend_convolution(cut: _Cut, node: onnx.NodeProto) -> None:
    """Where every channel is a group of its own, there are fewer groups."""
    groups = int(attribute(node, "group", 1))
    labels = cut.read(node, 1)
    if labels is not None and groups == len(labels) > 1:
        cut.editor.set_attribute(node.name, "group", int(np.count_nonzero(cut.stays(labels))))


def _mend_split(cut: _Cut, node: onnx.NodeProto) -> None:
    axis = axis_of(node, len(cut.inputs(node)), 0)
    if cut.read(node, axis) is None:
        return
    sizes = []
    for output, name in enumerate(node.output):
        labels = cut.axes(node, output)[axis] if cut.axes(node, output) else None
        size = cut.trace.dims(name)[axis]
        sizes.append(int(np.count_nonzero(cut.stays(labels))) if labels is not None else size[0] if size else 0)
    cut.editor.set_split(node.name, sizes)


def _mend_slice(cut: _Cut, node: onnx.NodeProto) -> None:
    starts, ends = (cut.trace.ints(node, position, name) for position, name in ((1, "starts"), (2, "ends")))
    axes = cut.trace.ints(node, 3, "axes")
    if starts is None or ends is None:
        return
    old = (list(starts), list(ends))
    for place, axis in enumerate(axes or range(len(starts))):
        labels = cut.read(node, axis)
        if labels is None:
            continue
        stays = cut.stays(labels)
        begin, end, _ = slice(starts[place], ends[place]).indices(len(stays))
        new = int(np.count_nonzero(stays[:begin])), int(np.count_nonzero(stays[: max(begin, end)]))
        if slice(starts[place], ends[place]).indices(int(np.count_nonzero(stays)))[:2] != new:
            starts[place], ends[place] = new
    for position, name, before, after in ((1, "starts", old[0], starts), (2, "ends", old[1], ends)):
        if before != after:
            cut.editor.set_ints(node.name, position, name, after)


def _mend_pad(cut: _Cut, node: onnx.NodeProto) -> None:
    amounts = cut.trace.ints(node, 1, "pads")
    if amounts is None:
        return
    axes = cut.trace.ints(node, 3, "axes") if has_input(node, 3) else list(range(len(amounts) // 2))
    new = list(amounts)
    for place, axis in enumerate(axes or ()):
        labels = cut.axes(node)[axis] if cut.axes(node) else None
        if labels is None or not cut.is_cut(labels):
            continue
        begin, end = amounts[place], amounts[place + len(amounts) // 2]
        stays = cut.stays(labels)
        new[place] = int(np.count_nonzero(stays[:begin]))
        new[place + len(amounts) // 2] = int(np.count_nonzero(stays[len(stays) - end :]))
    if new != amounts:
        cut.editor.set_ints(node.name, 1, "pads", new)


def _mend_gather(cut: _Cut, node: onnx.NodeProto) -> None:
    labels = cut.read(node, axis_of(node, len(cut.inputs(node)), 0))
    index = cut.trace.ints(node, 1, "")
    if labels is None or index is None:
        return
    stays = cut.stays(labels)
    places = np.cumsum(stays) - 1
    cut.editor.set_ints(node.name, 1, "", [int(places[place]) for place in index if stays[place]])


def _mend_shape(cut: _Cut, node: onnx.NodeProto) -> None:
    """The numbers of a wanted shape that are constants; 0, -1 and (for Expand) 1 say themselves what they mean."""
    position = 3 if node.op_type == "Resize" else 1
    elements = cut.trace.elements(node.input[position]) if has_input(node, position) else None
    free = {"Reshape": (0, -1), "Expand": (1,), "Resize": ()}[node.op_type]
    changes = {}
    for axis, labels in enumerate(cut.axes(node)):
        element = elements[axis] if elements else None
        if labels is not None and cut.is_cut(labels) and isinstance(element, Fixed) and element.value not in free:
            changes[axis] = int(np.count_nonzero(cut.stays(labels)))
    if changes:
        cut.editor.set_numbers(node.name, position, changes)


_MENDS: dict[str, Callable[[_Cut, onnx.NodeProto], None]] = {
    "Conv": _mend_convolution,
    "ConvTranspose": _mend_convolution,
    "Split": _mend_split,
    "Slice": _mend_slice,
    "Pad": _mend_pad,
    "Gather": _mend_gather,
    **dict.fromkeys(("Reshape", "Expand", "Resize"), _mend_shape),
}
