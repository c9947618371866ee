"""Layers split into smaller ones: node `n` with weight `w` becomes `n.0`, `n.1` (, `n.2`) with weights `w.0`, `w.1` (, `w.2`).

The first factor reads what the layer read, the last one adds its bias and writes its output; nothing else changes. Which method and
rank a layer gets says `ranks`, the values come from `factors`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from search_spaces.schemes import RankScheme
from tuner.compress.factors import METHODS, Form
from tuner.compress.ranks import (
    Cost,
    Evidence,
    Layer,
    Rank,
    Shapes,
    arguments,
    compression_of,
    full_rank,
    method_for,
    methods_for,
    rank_of,
    ranks_of,
    row_shapes,
    splittable,
    whole_cost,
)
from tuner.model.graph import Model, attribute, inner_reads, seal

__all__ = [
    "Cost",
    "Evidence",
    "Factors",
    "Rank",
    "chosen_ranks",
    "compression_of",
    "factorize",
    "full_rank",
    "methods_for",
    "nodes_of",
    "rank_of",
    "row_shapes",
    "skeleton",
    "whole_cost",
]

MOST_FACTORS = 3
"""Of any method."""
_FREE_INITIALIZERS_IR = 4
"""The first in which initializers need not be graph inputs."""
Piece = tuple[Layer, str, Sequence[NDArray[Any]]]


class Factors(NamedTuple):
    """How a layer is split. A rank that is given may be as great as the full one, with which nothing is saved and nothing lost."""

    method: str
    rank: Rank | Sequence[int]


def chosen_ranks(
    model: Model,
    choices: Mapping[str, RankScheme | Factors],
    evidence: Mapping[str, Evidence] | None = None,
    *,
    align: int = 1,
    shapes: Shapes | None = None,
) -> dict[str, Factors]:
    """The method and rank of every layer that is to be split, in topological order. PlanError as in `rank_of`."""
    known = row_shapes(model) if shapes is None else shapes
    found: dict[str, Factors] = {}
    for name in _in_order(model, choices):
        choice, seen = choices[name], (evidence or {}).get(name, {})
        if isinstance(choice, RankScheme):
            rank = rank_of(model, name, choice.method, choice.ratio, choice.energy, align=align, evidence=seen, shapes=known)
            choice = Factors(choice.method, rank)
        found[name] = choice
    return found


def factorize(
    model: Model,
    choices: Mapping[str, RankScheme | Factors],
    evidence: Mapping[str, Evidence] | None = None,
    *,
    align: int = 1,
    shapes: Shapes | None = None,
) -> Model:
    """The model with every layer of `choices` split. PlanError names a layer that cannot be, or evidence that a method lacks."""
    pieces: dict[str, Piece] = {}
    for name, (method, rank) in chosen_ranks(model, choices, evidence, align=align, shapes=shapes).items():
        layer = splittable(model, name)
        ranks = ranks_of(layer, method, rank)
        seen = arguments(layer, method, (evidence or {}).get(name, {}))
        arrays = METHODS[method].split(layer.array(model), ranks[0] if len(ranks) == 1 else ranks, **seen)
        pieces[name] = (layer, method, [array.astype(np.float32) for array in arrays])
    return _split(model, pieces)


def skeleton(model: Model, ranks: Mapping[str, tuple[str, Rank | Sequence[int]]]) -> Model:
    """The graph that `factorize` makes for {layer: (method, rank)}, with zeros for the factors' values."""
    pieces: dict[str, Piece] = {}
    for name in _in_order(model, ranks):
        method, rank = ranks[name]
        layer = splittable(model, name)
        shapes = METHODS[method].form.shapes(layer.shape, ranks_of(layer, method, rank))
        pieces[name] = (layer, method, [np.zeros(shape, np.float32) for shape in shapes])
    return _split(model, pieces)


def nodes_of(model: Model, layer: str) -> list[str]:
    """The nodes that a layer of the original is in this model: itself, or the factors that it was split into; none where it is neither."""
    if layer in model.nodes:
        return [layer]
    return [name for name in (f"{layer}.{index}" for index in range(MOST_FACTORS)) if name in model.nodes]


def _in_order(model: Model, names: Iterable[str]) -> list[str]:
    wanted = set(names)
    return [*sorted(wanted - set(model.nodes)), *(name for name in model.nodes if name in wanted)]


def _split(model: Model, pieces: Mapping[str, Piece]) -> Model:
    if not pieces:
        return model
    proto = model.copy()
    taken = _names(proto.graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.nodes.values():
        nodes += _factor_nodes(proto.graph, *pieces[node.name], taken) if node.name in pieces else [node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    _drop_unread(proto, {layer.weight for layer, _, _ in pieces.values()})
    return seal(proto)


def _factor_nodes(
    graph: onnx.GraphProto, layer: Layer, method: str, arrays: Sequence[NDArray[Any]], taken: set[str]
) -> list[onnx.NodeProto]:
    """The nodes that replace a layer; their weights are added to the graph."""
    form, last = method_for(layer, method).form, len(arrays) - 1
    weight_first = layer.node.op_type == "MatMul" and not layer.turned
    data = layer.node.input[int(weight_first)]
    nodes = []
    for index, array in enumerate(arrays):
        weight = _free(f"{layer.weight}.{index}", taken)
        stored = np.ascontiguousarray(array.T if layer.turned else array)
        graph.initializer.append(numpy_helper.from_array(stored, weight))
        output = layer.node.output[0] if index == last else _free(f"{layer.node.output[0]}.{index}", taken)
        inputs = [weight, data] if weight_first else [data, weight, *(layer.node.input[2:] if index == last else ())]
        name = _free(f"{layer.node.name}.{index}", taken)
        attributes = _attributes(layer.node, form, index, last, array.shape)
        nodes.append(helper.make_node(layer.node.op_type, inputs, [output], name=name, **attributes))
        data = output
    return nodes


def _attributes(node: onnx.NodeProto, form: Form, index: int, last: int, shape: tuple[int, ...]) -> dict[str, Any]:
    if node.op_type == "Conv":
        return _window(node, form.axes[index], shape)
    if node.op_type == "MatMul":
        return {}
    wanted = ["transB", *(["alpha", "transA"] if index == 0 else []), *(["beta"] if index == last else [])]
    return {name: value for name in wanted if (value := attribute(node, name)) is not None}


def _window(node: onnx.NodeProto, axes: tuple[bool, bool], shape: tuple[int, ...]) -> dict[str, Any]:
    """A factor's kernel, and along the axes that it carries the layer's stride, dilation and pads."""
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    found: dict[str, Any] = {
        "kernel_shape": list(shape[2:]),
        "strides": [size if carried else 1 for size, carried in zip(strides, axes, strict=True)],
        "dilations": [size if carried else 1 for size, carried in zip(dilations, axes, strict=True)],
    }
    auto = attribute(node, "auto_pad", b"NOTSET")
    if auto != b"NOTSET":
        # SAME pads nothing along an axis of kernel 1 and stride 1.
        return {**found, "auto_pad": auto}
    pads = attribute(node, "pads", [0] * 4)
    return {**found, "pads": [size if carried else 0 for size, carried in zip(pads, axes * 2, strict=True)]}


def _drop_unread(proto: onnx.ModelProto, weights: set[str]) -> None:
    """Weights of split layers that nothing else reads; where they could be fed, that ends too."""
    graph = proto.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output} | inner_reads(graph)
    for group in (graph.initializer, graph.input):
        for index in reversed(range(len(group))):
            if group[index].name in weights - read:
                del group[index]
    proto.ir_version = max(proto.ir_version, _FREE_INITIALIZERS_IR)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a node or tensor."""
    tensors = {name for node in graph.node for name in (*node.input, *node.output)} | inner_reads(graph)
    others = (*graph.initializer, *graph.input, *graph.output, *graph.value_info, *graph.node)
    return tensors | {item.name for item in others}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
