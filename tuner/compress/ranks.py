"""Which layers can be split, at which rank, and what that costs. Costs are those of one row, as in the layer table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from tuner.compress.factors import METHODS, Array, Form, Method, Ranks, Shape, smallest_rank
from tuner.errors import PlanError
from tuner.model.graph import Model, attribute
from tuner.model.layers import weight_of

Rank = int | tuple[int, int]
"""tucker2 has two: the channels before and after its kernel."""
Shapes = Mapping[str, tuple[int | None, ...]]
Evidence = Mapping[str, Any]
"""What was collected of one layer, by the names of the methods' parameters: arrays in the layout [out, in]."""

_EVIDENCE_SHAPE: dict[str, Callable[[Shape], Shape]] = {"hessian": lambda w: (w[1], w[1]), "grad_squared": lambda w: w}


class Cost(NamedTuple):
    macs: int
    params: int


@dataclass(frozen=True)
class Layer:
    """A node with a weight that can be split. shape: [out, in] or [out, in, height, width]."""

    node: onnx.NodeProto
    weight: str
    shape: Shape
    turned: bool
    """The weight lies in the file as [in, out]."""
    bias_size: int

    def array(self, model: Model) -> Array:
        """The weight in the layout of `shape`. PlanError where it is not finite."""
        values = model.array(self.weight).astype(np.float64)
        if not np.isfinite(values).all():
            raise PlanError(
                f"the weight '{self.weight}' of layer '{self.node.name}' holds NaN or infinity; only finite weights can be split. "
                "Leave that layer 'whole', or repair the model"
            )
        return values.T if self.turned else values


def row_shapes(model: Model) -> Shapes:
    """The shape of every tensor for one row, every other dynamic dimension at 1."""
    return model.shapes({value.name: tuple(size or 1 for size in value.shape) for value in model.inputs})


def methods_for(model: Model, node: str) -> tuple[str, ...]:
    """The methods that can split a layer, none where it cannot be split. PlanError where there is no such node."""
    layer = _find(model, node)
    return () if isinstance(layer, str) else _fitting(layer)


def splittable(model: Model, node: str) -> Layer:
    """The layer. PlanError says why it cannot be split."""
    layer = _find(model, node)
    if isinstance(layer, str):
        raise PlanError(f"layer '{node}' {layer}. Leave it 'whole'")
    return layer


def method_for(layer: Layer, name: str) -> Method:
    """The method of that name. PlanError where it splits layers of another kind."""
    method = METHODS[name]
    if not _fits(layer, method.form):
        kernel = f" with a kernel of {layer.shape[2]}×{layer.shape[3]}" if len(layer.shape) == 4 else ""
        ways = ", ".join(_fitting(layer))
        raise PlanError(
            f"{name} splits {method.form.wants}, and layer '{layer.node.name}' is a {layer.node.op_type}{kernel}. "
            f"Use one of {ways}, or leave it 'whole'"
        )
    return method


def ranks_of(layer: Layer, name: str, rank: Rank | Sequence[int]) -> Ranks:
    """A rank that was given, as one number per rank of the method. PlanError where it is out of bounds."""
    full = method_for(layer, name).form.full(layer.shape)
    ranks = (rank,) if isinstance(rank, int) else tuple(rank)
    if len(ranks) != len(full) or not all(1 <= r <= most for r, most in zip(ranks, full, strict=True)):
        bounds = " and ".join(f"1 to {most}" for most in full)
        raise PlanError(f"{name} splits layer '{layer.node.name}' at rank {bounds}, got {rank}. Choose one within, or a ratio")
    return ranks


def full_rank(model: Model, node: str, method: str) -> Rank:
    """The greatest rank, with which a split layer computes what it did."""
    layer = splittable(model, node)
    return _plain(method_for(layer, method).form.full(layer.shape))


def whole_cost(model: Model, node: str, shapes: Shapes | None = None) -> Cost:
    """What a layer costs as it is. shapes: those of `row_shapes`, inferred anew where they are not given."""
    layer = splittable(model, node)
    return _whole(layer, row_shapes(model) if shapes is None else shapes)


def compression_of(model: Model, node: str, method: str, rank: Rank | Sequence[int], shapes: Shapes | None = None) -> Cost:
    """What a layer costs when it is split. Where inference cannot tell a convolution's shapes, MACs are those of one position."""
    layer = splittable(model, node)
    ranks = ranks_of(layer, method, rank)
    return _split_cost(layer, METHODS[method].form, ranks, row_shapes(model) if shapes is None else shapes)


def rank_of(
    model: Model,
    node: str,
    method: str,
    ratio: float | None = None,
    energy: float | None = None,
    *,
    align: int = 1,
    evidence: Evidence | None = None,
    shapes: Shapes | None = None,
) -> Rank:
    """The rank that a ratio or an energy asks for. PlanError where no rank reaches it, or where it costs more than the whole layer.

    ratio: the share of the layer's MACs to remove; the greatest rank that removes as much. energy: the share of the squared
    singular values to keep; the smallest rank that keeps it (tucker2: each of its two ranks loses at most half of the rest).
    align: ranks are multiples of it, as far as they are not smaller."""
    layer = splittable(model, node)
    form = method_for(layer, method).form
    if (ratio is None) == (energy is None):
        raise PlanError(
            f"the rank of layer '{node}' follows from a ratio or an energy, got ratio {ratio} and energy {energy}. Give one of them"
        )
    known = row_shapes(model) if shapes is None else shapes
    if ratio is not None:
        return _plain(_rank_by_ratio(layer, method, form, ratio, align, known))
    assert energy is not None
    ranks = _rank_by_energy(model, layer, method, energy, align, evidence or {})
    split, whole = _split_cost(layer, form, ranks, known).macs, _whole(layer, known).macs
    if split > whole:
        raise PlanError(
            f"layer '{node}' has {whole} MACs, and {split} when {method} splits it at rank {_plain(ranks)}, which an energy of "
            f"{energy:g} needs; a split layer may not cost more than the whole. Choose a lower energy, another method or 'whole'"
        )
    return _plain(ranks)


def arguments(layer: Layer, name: str, evidence: Evidence) -> dict[str, Array]:
    """The evidence that a method needs. PlanError names what is missing or has another shape."""
    found: dict[str, Array] = {}
    for wanted in METHODS[name].evidence:
        if wanted not in evidence:
            raise PlanError(
                f"{name} needs {wanted} of layer '{layer.node.name}', which was not collected. "
                "Give calibration data, or use svd, which needs none"
            )
        values: NDArray[np.float64] = np.asarray(evidence[wanted], np.float64)
        expected = _EVIDENCE_SHAPE[wanted](layer.shape) if wanted in _EVIDENCE_SHAPE else values.shape
        if values.shape not in (expected, (1, *expected)) or not np.isfinite(values).all():
            raise PlanError(
                f"{wanted} of layer '{layer.node.name}' must be finite and have shape {list(expected)}, got {list(values.shape)}. "
                "Collect it again"
            )
        found[wanted] = values.reshape(expected)
    return found


def _find(model: Model, name: str) -> Layer | str:
    """The layer, or why it cannot be split, as the rest of a sentence that begins with it."""
    node = model.nodes.get(name)
    if node is None:
        raise PlanError(f"the plan splits '{name}', which is no layer of this model; see `tuner inspect`")
    weight = weight_of(model, node)
    if weight is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"is a {node.op_type}; only Conv, Gemm and MatMul with a constant float weight can be split"
    shape = tuple(model.initializers[weight].dims)
    group = attribute(node, "group", 1)
    if node.op_type == "Conv" and group != 1:
        return f"is a convolution in {group} groups; only those in one group can be split"
    if len(shape) != (4 if node.op_type == "Conv" else 2):
        wanted = "2-D convolutions" if node.op_type == "Conv" else "2-D weights"
        return f"has a weight of shape {list(shape)}; only {wanted} can be split"
    turned = node.input[1] == weight if node.op_type == "MatMul" else node.op_type == "Gemm" and not attribute(node, "transB", 0)
    bias = model.initializers.get(node.input[2]) if len(node.input) > 2 else None
    return Layer(node, weight, shape[::-1] if turned else shape, turned, prod(bias.dims) if bias is not None else 0)


def _fits(layer: Layer, form: Form) -> bool:
    return form.fits(layer.shape)


def _fitting(layer: Layer) -> tuple[str, ...]:
    return tuple(name for name in METHODS if _fits(layer, METHODS[name].form))


def _plain(ranks: Ranks) -> Rank:
    return ranks[0] if len(ranks) == 1 else (ranks[0], ranks[1])


def _rank_by_ratio(layer: Layer, method: str, form: Form, ratio: float, align: int, shapes: Shapes) -> Ranks:
    """The greatest ranks, in the proportion of the full ones, whose MACs stay within the budget."""
    if not 0 <= ratio < 1:
        raise PlanError(
            f"the ratio of layer '{layer.node.name}' is the share of MACs to remove, got {ratio:g}. Choose one from 0 to below 1"
        )
    full, whole = form.full(layer.shape), _whole(layer, shapes).macs
    # A share of a whole number of MACs is meant: rounding must not cost a rank.
    budget = (1 - ratio) * whole * (1 + 1e-9)
    low, high = 0, max(full)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _split_cost(layer, form, _proportional(full, middle, align), shapes).macs <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    if low:
        return _proportional(full, low, align)
    least = _split_cost(layer, form, _proportional(full, 1, align), shapes).macs
    way_out = f"Choose a ratio up to {int((1 - least / whole) * 1000) / 1000:g}, " if least < whole else "Choose "
    raise PlanError(
        f"layer '{layer.node.name}' has {whole} MACs, and still {least} when {method} splits it at the smallest rank; "
        f"a ratio of {ratio:g} allows {int(budget)}. {way_out}another method or 'whole'"
    )


def _proportional(full: Ranks, step: int, align: int) -> Ranks:
    """Ranks with the share step / max(full), at least 1, rounded down to multiples of `align` where they are greater."""
    exact = (ceil(step * most / max(full)) for most in full)
    return tuple(rank if rank < align else rank - rank % align for rank in exact)


def _rank_by_energy(model: Model, layer: Layer, method: str, energy: float, align: int, evidence: Evidence) -> Ranks:
    if not 0 < energy <= 1:
        raise PlanError(
            f"the energy of layer '{layer.node.name}' is the share of squared singular values to keep, got {energy:g}. "
            "Choose one above 0, up to 1"
        )
    matrices = METHODS[method].unfold(layer.array(model), **arguments(layer, method, evidence))
    # What the modes lose adds up at most (De Lathauwer et al., 2000, "A multilinear singular value decomposition", property 10).
    share = 1 - (1 - energy) / len(matrices)
    full = METHODS[method].form.full(layer.shape)
    least = (smallest_rank(matrix, share) for matrix in matrices)
    return tuple(min(rank + -rank % align, most) for rank, most in zip(least, full, strict=True))


def _whole(layer: Layer, shapes: Shapes) -> Cost:
    size = prod(layer.shape)
    if len(layer.shape) == 2:
        return Cost(size * _products(layer, shapes), size + layer.bias_size)
    after = _plane(shapes, layer.node.output[0])
    known = after is not None and _plane(shapes, layer.node.input[0]) is not None
    return Cost(size * (prod(after) if after is not None and known else 1), size + layer.bias_size)


def _split_cost(layer: Layer, form: Form, ranks: Ranks, shapes: Shapes) -> Cost:
    sizes = [prod(shape) for shape in form.shapes(layer.shape, ranks)]
    places = (_products(layer, shapes),) * len(sizes) if len(layer.shape) == 2 else _places(layer, form, shapes)
    return Cost(sum(size * place for size, place in zip(sizes, places, strict=True)), sum(sizes) + layer.bias_size)


def _places(layer: Layer, form: Form, shapes: Shapes) -> tuple[int, ...]:
    before, after = _plane(shapes, layer.node.input[0]), _plane(shapes, layer.node.output[0])
    return (1,) * len(form.axes) if before is None or after is None else form.places(before, after)


def _products(layer: Layer, shapes: Shapes) -> int:
    """How often the weight is applied to one row; 1 where that is not known."""
    sizes = shapes.get(layer.node.output[0], ())
    known = [size for size in sizes if size is not None]
    return max(1, prod(known) // layer.shape[0]) if sizes and len(known) == len(sizes) else 1


def _plane(shapes: Shapes, tensor: str) -> tuple[int, int] | None:
    sizes = shapes.get(tensor, ())
    height, width = sizes[2:] if len(sizes) == 4 else (None, None)
    return (height, width) if height is not None and width is not None else None
