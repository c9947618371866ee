"""Shapes that a graph computes with: vectors whose numbers are constants or sizes of tensors (Shape, Gather, Concat …)."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tuner.compress.pruning.tracing import Dim, Element, NotFollowed, Trace, has_input
from tuner.model.graph import attribute

_SETTLED = {("Reshape", 1), ("Expand", 1), ("Resize", 3)}
"""Inputs whose numbers the rules of their operators check one by one."""


def carry_values(trace: Trace, node: onnx.NodeProto) -> None:
    """Remember what a node's output holds of shapes; sizes that vanish in arithmetic must not change."""
    if node.op_type == "Shape" and not node.domain:
        trace.values[node.output[0]] = _shape(trace, node)
        return
    read = [trace.elements(name) if name else None for name in node.input]
    if not any(read):
        return
    carried = _CARRIED[node.op_type](trace, node, read) if node.op_type in _CARRIED and not node.domain else None
    if carried is not None:
        trace.values[node.output[0]] = carried
        return
    for position, elements in enumerate(read):
        if (node.op_type, position) not in _SETTLED:
            for dim in _dims(elements):
                trace.stop(node, trace.axes.get(dim.tensor, ())[dim.axis : dim.axis + 1], "computes with their number")


def _dims(elements: tuple[Element, ...] | None) -> list[Dim]:
    return [element for element in elements or () if isinstance(element, Dim)]


def _shape(trace: Trace, node: onnx.NodeProto) -> tuple[Element, ...]:
    try:
        rank = len(trace.read(node, 0))
    except NotFollowed:
        return ()
    axes = range(rank)[attribute(node, "start", 0) : attribute(node, "end", rank)]
    return tuple(Dim(node.input[0], axis) for axis in axes)


def _gather(trace: Trace, node: onnx.NodeProto, read: list[tuple[Element, ...] | None]) -> tuple[Element, ...] | None:
    index = trace.ints(node, 1, "")
    if index is None or read[0] is None:
        return None
    return tuple(read[0][place] for place in index)


def _slice(trace: Trace, node: onnx.NodeProto, read: list[tuple[Element, ...] | None]) -> tuple[Element, ...] | None:
    parts = [trace.ints(node, position, name) for position, name in ((1, "starts"), (2, "ends"), (4, "steps"))]
    starts, ends, steps = (None if part is None else part[0] for part in parts)
    if read[0] is None or starts is None or ends is None or (steps is None and has_input(node, 4)):
        return None
    return read[0][starts:ends:steps]


def _concat(trace: Trace, node: onnx.NodeProto, read: list[tuple[Element, ...] | None]) -> tuple[Element, ...] | None:
    joined: list[Element] = []
    for name, elements in zip(node.input, read, strict=True):
        size = trace.sizes.get(name, (None,))[0] if elements is None else None
        if elements is None and size is None:
            return None
        joined.extend(elements if elements is not None else [None] * (size[0] if size else 0))
    return tuple(joined)


_CARRIED: dict[str, Callable[[Trace, onnx.NodeProto, list[tuple[Element, ...] | None]], tuple[Element, ...] | None]] = {
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), lambda _trace, _node, read: read[0]),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
}
