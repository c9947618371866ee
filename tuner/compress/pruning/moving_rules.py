"""What operators that only move numbers do with labels: cut, join, turn, split and merge axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx

from tuner.compress.pruning.labels import Axes, Indices
from tuner.compress.pruning.tracing import ONE, Dim, Fixed, NotFollowed, Rule, Size, Trace, axis_of, has_input, is_fixed, present
from tuner.model.graph import attribute


def transpose(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x = trace.read(node, 0)
    _moved(trace, node)
    return [tuple(x[axis] for axis in attribute(node, "perm", range(len(x))[::-1]))]


def _moved(trace: Trace, node: onnx.NodeProto) -> None:
    """A constant whose numbers are only moved stays one."""
    if node.input[0] in trace.weights:
        trace.weights.add(node.output[0])


def reshape(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are split and merged."""
    x, before, after = trace.read(node, 0), trace.dims(node.input[0]), trace.dims(node.output[0])
    _moved(trace, node)
    if not present(x):
        return [(None,) * len(after)]
    result: list[Indices | None] = [None] * len(after)
    for ins, outs in _segments(before, after):
        _regroup(trace, node, x, ins, outs, result)
    if node.op_type == "Reshape":
        _settle(trace, node, 1, result)
    return [tuple(result)]


def _segments(before: tuple[Size, ...], after: tuple[Size, ...]) -> list[tuple[list[int], list[int]]]:
    """Which axes become which: the shortest runs on both sides that hold equally many numbers. Axes of length 1 do not count."""
    if None in before or None in after:
        raise NotFollowed("has a shape that cannot be inferred")
    left = [axis for axis, size in enumerate(before) if size != ONE]
    right = [axis for axis, size in enumerate(after) if size != ONE]
    found = []
    while left or right:
        ins, outs = left[:1], right[:1]
        while (held := _count(before, ins)) != (wanted := _count(after, outs)):
            side, rest = (ins, left) if held < wanted else (outs, right)
            if len(side) == len(rest):
                raise NotFollowed("has a shape that cannot be inferred")
            side.append(rest[len(side)])
        left, right = left[len(ins) :], right[len(outs) :]
        found.append((ins, outs))
    return found


def _count(sizes: tuple[Size, ...], axes: list[int]) -> tuple[int, int]:
    known = [size for axis in axes if (size := sizes[axis]) is not None]
    return prod(size[0] for size in known), prod(size[1] for size in known)


def _regroup(trace: Trace, node: onnx.NodeProto, x: Axes, ins: list[int], outs: list[int], result: list[Indices | None]) -> None:
    """One run of axes becomes another: its labels in a row, which the new axes share out."""
    before, after = trace.dims(node.input[0]), trace.dims(node.output[0])
    followed = [axis for axis in ins if x[axis] is not None]
    if not followed:
        return
    labels, place = x[followed[0]], ins.index(followed[0])
    inner = ins[place + 1 :]
    if len(followed) > 1 or labels is None or not all(is_fixed(before[axis]) for axis in inner):
        trace.stop(node, tuple(x[axis] for axis in followed), "mixes them with other axes")
        return
    row = np.repeat(labels, _count(before, inner)[0])
    outer = ins[: place + 1]
    repeated = not all(is_fixed(before[axis]) for axis in outer)
    if not repeated:
        row = np.tile(row, _count(before, outer[:-1])[0])
    _share_out(
        trace, node, row, repeated, (outs, [size[0] if size and is_fixed(size) else 0 for size in (after[axis] for axis in outs)]), result
    )


def _share_out(
    trace: Trace, node: onnx.NodeProto, row: Indices, repeated: bool, outs: tuple[list[int], list[int]], result: list[Indices | None]
) -> None:
    """Give labels in a row to axes of the lengths given (0: dynamic). repeated: the row stands there any number of times."""
    axes, lengths = outs
    fixed = len(lengths) - lengths[::-1].index(0) if 0 in lengths else 0
    inner = prod(lengths[fixed:])
    if (not repeated and not fixed) or (repeated and inner % len(row) == 0):
        _split(trace, node, np.tile(row, inner // len(row)), axes[fixed:], lengths[fixed:], result)
    elif repeated and fixed == 1 and len(row) % inner == 0:
        rows = row.reshape(-1, inner)
        trace.labels.unite(rows, rows[:, :1])
        trace.labels.mark_heads(rows[:, 0])
        result[axes[0]] = rows[:, 0]
    else:
        trace.stop(node, (row,), "mixes them with other axes")


def _split(trace: Trace, node: onnx.NodeProto, labels: Indices, axes: list[int], lengths: list[int], result: list[Indices | None]) -> None:
    if len(axes) == 1:
        result[axes[0]] = labels
        return
    kept = _axis_of_rows(trace, node, axes)
    rows = np.moveaxis(labels.reshape(lengths), kept, 0).reshape(lengths[kept], -1)
    trace.labels.unite(rows, rows[:, :1])
    result[axes[kept]] = rows[:, 0]
    if kept != len(axes) - 1:
        trace.labels.mark_heads(rows[:, 0])


def _axis_of_rows(trace: Trace, node: onnx.NodeProto, outs: list[int]) -> int:
    """Which of the axes that one is split into is followed: heads come first, after what is taken apart again (query, key and value
    in one). In a channel shuffle the groups are few, and the same channel of each is followed."""
    if _is_shuffle(trace, node, outs):
        return len(outs) - 1
    return 1 if _taken_apart(trace, node.output[0], outs[0]) else 0


def _is_shuffle(trace: Trace, node: onnx.NodeProto, outs: list[int]) -> bool:
    """Two axes that change places and are merged again at once."""
    readers = trace.model.consumers.get(node.output[0], [])
    if len(outs) != 2 or len(readers) != 1 or readers[0].op_type != "Transpose":
        return False
    turned = list(attribute(readers[0], "perm", range(len(trace.dims(node.output[0])))[::-1]))
    place = turned.index(outs[1])
    last = trace.model.consumers.get(readers[0].output[0], [])
    merged = bool(last) and all(reader.op_type == "Reshape" for reader in last)
    return merged and turned[place + 1 : place + 2] == [outs[0]]


def _taken_apart(trace: Trace, tensor: str, axis: int) -> bool:
    """Do the readers pick single places of this axis?"""
    dims = trace.dims(tensor)
    for reader in trace.model.consumers.get(tensor, []):
        if reader.op_type == "Transpose":
            turned = list(attribute(reader, "perm", range(len(dims))[::-1]))
            return _taken_apart(trace, reader.output[0], turned.index(axis))
        if reader.op_type in ("Squeeze", "Unsqueeze"):
            runs = _segments(dims, trace.dims(reader.output[0]))
            return any(_taken_apart(trace, reader.output[0], outs[0]) for ins, outs in runs if ins == [axis])
        if reader.op_type in ("Gather", "Split"):
            return axis_of(reader, len(dims), 0) == axis
        if reader.op_type == "Slice":
            return [cut % len(dims) for cut in trace.ints(reader, 3, "axes") or []] == [axis]
    return False


def _settle(trace: Trace, node: onnx.NodeProto, position: int, result: list[Indices | None]) -> None:
    """A wanted shape must shrink with the labels: its numbers are constants that can be replaced, or the sizes of a tensor that shrinks."""
    elements = trace.elements(node.input[position]) if has_input(node, position) else None
    for axis, labels in enumerate(result):
        if labels is None:
            continue
        element = elements[axis] if elements is not None and axis < len(elements) else None
        source = trace.axes.get(element.tensor, ()) if isinstance(element, Dim) else ()
        same = source[element.axis] if isinstance(element, Dim) and source else None
        if same is not None and len(same) == len(labels):
            trace.labels.unite(same, labels)
        elif not isinstance(element, Fixed) or not replaceable(trace, node.input[position], axis):
            trace.stop(node, (labels,), "is told their number by a computation")


def replaceable(trace: Trace, name: str, index: int) -> bool:
    """Can one number of a vector be changed? It is a constant, or put together by Concat with a part that can."""
    elements = trace.elements(name)
    if elements is None or all(isinstance(element, Fixed) for element in elements):
        return elements is not None
    node = trace.model.producers.get(name)
    if node is None or node.op_type != "Concat":
        return False
    part, offset = part_of(trace, node, index)
    return replaceable(trace, node.input[part], offset)


def part_of(trace: Trace, concat: onnx.NodeProto, index: int) -> tuple[int, int]:
    """Which input of a Concat of vectors holds an index, and where in it."""
    for part, name in enumerate(concat.input):
        length = len(trace.elements(name) or ())
        if index < length:
            return part, index
        index -= length
    raise NotFollowed("joins vectors whose lengths are not known")


def slice_(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x = trace.read(node, 0)
    axes = trace.ints(node, 3, "axes")
    starts, ends, steps = trace.ints(node, 1, "starts"), trace.ints(node, 2, "ends"), trace.ints(node, 4, "steps")
    if axes is None:
        if has_input(node, 3) or starts is None:
            raise NotFollowed("cuts axes that are computed")
        axes = list(range(len(starts)))
    result = list(x)
    for place, axis in enumerate(axes):
        labels = x[axis]
        if labels is None:
            continue
        computed = starts is None or ends is None or (steps is None and has_input(node, 4))
        if starts is None or ends is None or computed or (steps and steps[place] != 1) or not is_fixed(trace.dims(node.input[0])[axis]):
            trace.stop(node, (labels,), "takes places of them that are computed or do not lie side by side")
            result[axis] = None
        else:
            result[axis] = _stopped_if_short(trace, node, labels[starts[place] : ends[place]])
    return [tuple(result)]


def split(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x = trace.read(node, 0)
    axis = axis_of(node, len(x), 0)
    labels = x[axis]
    if labels is None:
        return [x] * len(node.output)
    sizes = [trace.dims(name)[axis] for name in node.output]
    if any(size is None for size in sizes) or sum(size[0] for size in sizes if size) != len(labels):
        raise NotFollowed("cuts them into parts whose sizes are computed")
    ends = np.cumsum([size[0] for size in sizes if size])
    return [(*x[:axis], _stopped_if_short(trace, node, part), *x[axis + 1 :]) for part in np.split(labels, ends[:-1])]


def _stopped_if_short(trace: Trace, node: onnx.NodeProto, labels: Indices) -> Indices | None:
    """What is alone on its axis cannot go."""
    if len(labels) == 1:
        trace.stop(node, (labels,), "takes one of them alone")
    return labels if len(labels) > 1 else None


def concat(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """Along its axis labels are put in a row; on all others those at one index go together."""
    parts = [trace.read(node, position) for position in range(len(node.input))]
    axis = axis_of(node, len(parts[0]), 0)
    joined = [_beside(trace, node, [part[other] for part in parts]) if other != axis else None for other in range(len(parts[0]))]
    if all(part[axis] is None for part in parts):
        return [tuple(joined)]
    row = [_in_row(trace, node, part[axis], trace.dims(name)[axis]) for part, name in zip(parts, node.input, strict=True)]
    if any(labels is None for labels in row):
        trace.stop(node, tuple(part[axis] for part in parts), "joins them with a tensor whose size is not known")
    else:
        joined[axis] = np.concatenate(present(row))
    return [tuple(joined)]


def _beside(trace: Trace, node: onnx.NodeProto, labels: list[Indices | None]) -> Indices | None:
    found = present(labels)
    if len(found) < len(labels):
        trace.stop(node, tuple(found), "joins them with a tensor that is not made of channels")
    for other in found[1:]:
        trace.labels.unite(found[0], other)
    return found[0] if found else None


def _in_row(trace: Trace, node: onnx.NodeProto, labels: Indices | None, size: Size) -> Indices | None:
    """What is not followed gets labels that are frozen; None where there is no telling how many."""
    if size is None or not is_fixed(size) or labels is not None:
        return labels if is_fixed(size) else None
    own = trace.labels.fresh(size[0])
    trace.stop(node, (own,), "")
    return own


def pad(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """What is added to a followed axis carries labels of its own: it can go with the channels it is added to."""
    x = trace.read(node, 0)
    amounts = trace.ints(node, 1, "pads")
    axes = trace.ints(node, 3, "axes") if has_input(node, 3) else list(range(len(x)))
    if amounts is None or axes is None:
        raise NotFollowed("adds to axes that are computed")
    result = list(x)
    for place, axis in enumerate(axes):
        labels, begin, end = x[axis], amounts[place], amounts[place + len(axes)]
        if labels is None or not (begin or end):
            continue
        if attribute(node, "mode", b"constant") != b"constant" or begin < 0 or end < 0 or not is_fixed(trace.dims(node.input[0])[axis]):
            trace.stop(node, (labels,), "repeats or takes away some of them")
            result[axis] = None
        else:
            result[axis] = np.concatenate([trace.labels.fresh(begin), labels, trace.labels.fresh(end)])
    return [tuple(result)]


def gather(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x, places = trace.read(node, 0), trace.dims(node.input[1])
    axis = axis_of(node, len(x), 0)
    labels = x[axis]
    taken: Axes = (None,) * len(places)
    index = trace.ints(node, 1, "")
    if not is_fixed(trace.dims(node.input[0])[axis]):
        trace.stop(node, (labels,), "takes some of them")
    elif labels is not None and index is not None and len(places) == 1 and len(index) > 1:
        taken = (labels[index],)
    elif labels is not None and index is not None and len(index) == 1:
        trace.stop(node, (labels[index],), "takes one of them alone")
    elif labels is not None:
        trace.stop(node, (labels,), "" if node.input[0] in trace.weights else "takes places of them that are computed")
    _embedding(trace, node, x, axis)
    return [(*x[:axis], *taken, *x[axis + 1 :])]


def _embedding(trace: Trace, node: onnx.NodeProto, x: Axes, axis: int) -> None:
    """A table of vectors makes channels like a product with a weight."""
    if node.input[0] in trace.weights and axis == 0 and node.input[1] not in trace.constants:
        for labels in present(x[1:]):
            trace.labels.role(labels, "out", node.name)


def spread(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """Expand and Resize: axes of channels keep their length, others may grow."""
    x, before, after = trace.read(node, 0), trace.dims(node.input[0]), trace.dims(node.output[0])
    lead = len(after) - len(x)
    result: list[Indices | None] = [None] * len(after)
    for axis, labels in enumerate(x):
        if labels is not None and after[lead + axis] != before[axis]:
            trace.stop(node, (labels,), "changes their number")
        else:
            result[lead + axis] = labels
    _settle_spread(trace, node, result)
    return [tuple(result)]


def _settle_spread(trace: Trace, node: onnx.NodeProto, result: list[Indices | None]) -> None:
    if not present(result) or not has_input(node, 1 if node.op_type == "Expand" else 3):
        return
    if node.op_type == "Resize":
        if attribute(node, "axes") is not None:
            raise NotFollowed("is given sizes of some axes alone")
        _settle(trace, node, 3, result)
        return
    elements = trace.elements(node.input[1]) or ()
    if len(elements) != len(result):
        raise NotFollowed("is given a shape whose length is not that of what it returns")
    ones = [isinstance(element, Fixed) and element.value == 1 for element in elements]
    _settle(trace, node, 1, [None if one else labels for one, labels in zip(ones, result, strict=True)])


def tile(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    x = trace.read(node, 0)
    times = trace.ints(node, 1, "")
    if times is None and present(x):
        raise NotFollowed("repeats them a number of times that is computed")
    return [tuple(labels if labels is None else np.tile(labels, count) for labels, count in zip(x, times or [1] * len(x), strict=True))]


def depth_to_space(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """Every channel of the output is made of blocksize² channels of the input, which go together."""
    x = trace.read(node, 0)
    labels, block = x[1], int(attribute(node, "blocksize"))
    if labels is None:
        return [(x[0], None, None, None)]
    in_columns = attribute(node, "mode", b"DCR") == b"DCR"
    table = labels.reshape(block * block, -1) if in_columns else labels.reshape(-1, block * block).T
    trace.labels.unite(table, table[:1])
    return [(x[0], _stopped_if_short(trace, node, table[0]), None, None)]


def space_to_depth(trace: Trace, node: onnx.NodeProto) -> Sequence[Axes]:
    """The channels stand in a row blocksize² times, once for each place in a block."""
    x = trace.read(node, 0)
    return [(x[0], None if x[1] is None else np.tile(x[1], int(attribute(node, "blocksize")) ** 2), None, None)]


MOVING: dict[str, Rule] = {
    "Transpose": transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
    "Pad": pad,
    "Gather": gather,
    **dict.fromkeys(("Expand", "Resize"), spread),
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": lambda _trace, _node: [(None,)],
}
