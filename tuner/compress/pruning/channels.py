"""Channels that can only go together, found by carrying labels through the graph; and what cannot go, with the reason.

Every index of every axis carries a label. Operators unite labels (the operands of an addition), use them up and make new ones (a
convolution), or freeze them (a normalization over channels). What was united is one channel; channels that are found on the same axes
make a group, from which any may be taken. Removing is exact: the smaller graph computes what the whole one would if nothing read the
channels that went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from tuner.compress.pruning.channel_rules import COMPUTING
from tuner.compress.pruning.labels import Axes, Indices, Role
from tuner.compress.pruning.moving_rules import MOVING
from tuner.compress.pruning.shape_values import carry_values
from tuner.compress.pruning.tracing import NotFollowed, Rule, Trace, Use
from tuner.model.graph import Model

_RULES: dict[str, Rule] = {**COMPUTING, **MOVING}
_NAMED = 3
"""How many layers a note names before it counts the rest."""


@dataclass(frozen=True)
class Slot:
    """Where the channels of a group lie in one axis of an initializer.

    positions[c]: the indices along `axis` of channel c. role: rows that produce the channel (out), slices that read it (in), or what
    belongs to it (tied: a bias, a normalization's parameters, a depthwise weight)."""

    initializer: str
    axis: int
    positions: tuple[tuple[int, ...], ...]
    role: Role
    node: str


@dataclass(frozen=True)
class ChannelGroup:
    """Channels (or attention heads) of which any may go; at least one stays. `name`: the first node that produces them."""

    name: str
    kind: Literal["channels", "heads"]
    size: int
    slots: tuple[Slot, ...]
    nodes: tuple[str, ...]
    """All nodes with parameters that shrink, in topological order."""


@dataclass(frozen=True)
class ChannelGroups:
    """notes: what cannot go, where and why."""

    groups: tuple[ChannelGroup, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Following:
    """A model with its labels, what they are united to, and the groups that they make."""

    trace: Trace
    classes: Indices
    members: dict[str, tuple[int, ...]]
    """The class of each channel of each group."""
    found: ChannelGroups


def find_groups(model: Model) -> ChannelGroups:
    """The groups of a model's channels, in topological order, with notes on what cannot go."""
    return follow(model).found


def follow(model: Model) -> Following:
    """Carry labels through the whole graph and sort them into groups."""
    trace = Trace(model)
    for node in model.nodes.values():
        if node.op_type != "Constant" or node.domain:
            _step(trace, node)
    trace.freeze_outside()
    classes = trace.labels.classes()
    reasons = trace.labels.reasons(classes)
    roles, nodes = trace.labels.roles()
    slots = [slot for use in trace.uses.values() for slot in _axes_of(use, classes, roles, nodes)]
    order = {name: index for index, name in enumerate(model.nodes)}
    slots.sort(key=lambda slot: (order[slot.node], slot.initializer, slot.axis))
    groups, members = _groups(trace, classes, slots, reasons)
    return Following(trace, classes, members, ChannelGroups(groups, _notes(slots, reasons)))


def dependency_csv(groups: ChannelGroups) -> str:
    """One line for each group: its name, and the layers that shrink with it."""
    lines = [f"{_quoted(group.name)},{_quoted('; '.join(group.nodes))}" for group in groups.groups]
    return "\n".join(["Dependency Set,Layers", *lines]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text


def _step(trace: Trace, node: onnx.NodeProto) -> None:
    nested = any(item.HasField("g") or item.graphs for item in node.attribute)
    rule = None if nested or node.domain not in ("", "ai.onnx") else _RULES.get(node.op_type)
    outputs: list[Axes] = []
    try:
        if rule is None:
            raise NotFollowed("is an operator through which channels are not followed")
        outputs = list(rule(trace, node))
    except NotFollowed as reason:
        trace.stop_all(node, str(reason))
    trace.write(node, outputs)
    carry_values(trace, node)


@dataclass(frozen=True)
class _Axis:
    """One axis of a constant as it is used, with the classes of its indices."""

    initializer: str
    axis: int
    classes: Indices
    role: Role
    node: str


def _axes_of(use: Use, classes: Indices, roles: list[Role], nodes: list[str]) -> Iterator[_Axis]:
    for axis, labels in enumerate(use.axes):
        if labels is not None:
            first = int(labels[0])
            yield _Axis(use.name, axis, classes[labels], roles[first], nodes[first] or use.node)


def _groups(
    trace: Trace, classes: Indices, slots: list[_Axis], reasons: dict[int, str]
) -> tuple[tuple[ChannelGroup, ...], dict[str, tuple[int, ...]]]:
    heads = trace.labels.heads(classes)
    order = {name: index for index, name in enumerate(trace.model.nodes)}
    by_class = _sorted_by_class(slots, frozenset(reasons))
    members: dict[str, tuple[int, ...]] = {}
    groups = []
    for numbers in _partition(trace, classes, by_class):
        own = by_class[numbers[0]]
        if not any(slot.role == "out" for slot in own) or not any(slot.role == "in" for slot in own):
            continue
        if len(numbers) == 1:
            reasons[numbers[0]] = "they can only go together"
            continue
        group = _group(numbers, own, members, bool(heads & set(numbers)), order)
        members[group.name] = tuple(numbers)
        groups.append(group)
    return tuple(groups), members


def _sorted_by_class(slots: list[_Axis], frozen: frozenset[int]) -> dict[int, list[_Axis]]:
    """The slots of each class that is not frozen; classes in the order in which slots show them."""
    found: dict[int, list[_Axis]] = {}
    for producing in (True, False):
        for slot in slots:
            if (slot.role == "out") == producing:
                for number in dict.fromkeys(slot.classes.tolist()):
                    if number not in frozen:
                        found.setdefault(number, []).append(slot)
    return found


def _partition(trace: Trace, classes: Indices, wanted: dict[int, list[_Axis]]) -> list[list[int]]:
    """Classes that lie on the same axes of all tensors and constants: as one of them always stays, no axis is ever emptied."""
    part = np.zeros(int(classes.max(initial=-1)) + 1, np.int64)
    parts = 1
    for axes in (*trace.axes.values(), *(use.axes for use in trace.uses.values())):
        for labels in axes:
            if labels is not None:
                here = np.unique(classes[labels])
                old, place = np.unique(part[here], return_inverse=True)
                part[here] = parts + place
                parts += len(old)
    found: dict[int, list[int]] = {}
    for number in wanted:
        found.setdefault(int(part[number]), []).append(number)
    return list(found.values())


def _group(numbers: list[int], slots: list[_Axis], taken: dict[str, tuple[int, ...]], heads: bool, order: dict[str, int]) -> ChannelGroup:
    producer = next(slot.node for slot in slots if slot.role == "out")
    name, count = producer, 1
    while name in taken:
        count += 1
        name = f"{producer}.{count}"
    nodes = tuple(sorted({slot.node for slot in slots}, key=order.__getitem__))
    ordered = sorted(slots, key=lambda slot: order[slot.node])
    return ChannelGroup(name, "heads" if heads else "channels", len(numbers), tuple(_slot(slot, numbers) for slot in ordered), nodes)


def _slot(slot: _Axis, numbers: list[int]) -> Slot:
    places: dict[int, list[int]] = {number: [] for number in numbers}
    for index, number in enumerate(slot.classes.tolist()):
        if number in places:
            places[number].append(index)
    return Slot(slot.initializer, slot.axis, tuple(tuple(places[number]) for number in numbers), slot.role, slot.node)


def _notes(slots: list[_Axis], reasons: dict[int, str]) -> tuple[str, ...]:
    """One note for each reason: the layers whose channels it keeps."""
    kept: dict[str, dict[str, int]] = {}
    for slot in slots:
        if slot.role == "out":
            for number in slot.classes.tolist():
                if reasons.get(number):
                    layers = kept.setdefault(reasons[number], {})
                    layers[slot.node] = layers.get(slot.node, 0) + 1
    return tuple(_note(layers, reason) for reason, layers in kept.items())


def _note(layers: dict[str, int], reason: str) -> str:
    named = [f"{count} of '{layer}'" for layer, count in list(layers.items())[:_NAMED]]
    more = f" and of {len(layers) - _NAMED} more layers" if len(layers) > _NAMED else ""
    return f"channels that stay: {', '.join(named)}{more}, because {reason}"
