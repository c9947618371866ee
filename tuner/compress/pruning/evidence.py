"""What criteria look at, summed up over batches of calibration rows.

Only sums are kept, so memory does not depend on the number of rows; where a Hessian is wanted it dominates, and `parts_within` says which
layers to ask for together. Gradients are of the mean loss over all rows; "per row" means before that mean is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.compress.pruning.layout import Site, canonical, channels_last, patches, site_of
from tuner.errors import DataError, PlanError
from tuner.model.graph import Model, attribute
from tuner.model.torch_view import TorchView

Batch = tuple[Mapping[str, NDArray[Any]], NDArray[Any] | None]
"""(feed, labels or None); the first axis of every input is the batch."""
Loss = Callable[[dict[str, Tensor], Tensor | None], Tensor]
"""(the graph's outputs by name, labels) -> the mean loss of the batch's rows."""
Evidence = dict[str, Tensor]
"""By the names of the criteria's parameters, in float32 on the view's device."""
Units = Mapping[str, Sequence[Sequence[int]]]
"""Of a node: which of the channels that it reads form a unit, such as a head."""

PATCH_NUMBERS = 2**24
"""Patches are made for so many numbers at once."""


@dataclass(frozen=True)
class Seen:
    """One batch at one layer; gradients are those of the batch's mean loss."""

    site: Site
    rows: int
    kernel: tuple[int, ...]
    reads: Tensor
    writes: Tensor
    activated: Tensor
    gradients: Mapping[str, Tensor]
    """Of the tensors and initializers that were asked for, by ONNX name and layout."""
    units: Sequence[Sequence[int]]
    """Channels of what it reads that form a unit; every other channel is one of its own."""


@dataclass(frozen=True)
class Collector:
    """How one kind of evidence is gathered. `add` gives a batch's sum; `count` how many things that sum is over."""

    add: Callable[[Seen], Tensor]
    count: Callable[[Seen], int] = lambda _: 1
    differentiate: Callable[[Site], tuple[str | None, ...]] = lambda _: ()
    """Tensors and initializers whose gradient it needs; None among them: the layer has no such evidence."""
    finish: Callable[[Tensor, int], Tensor] = lambda total, count: total / count


def collect(
    view: TorchView,
    model: Model,
    nodes: Sequence[str],
    wanted: Iterable[str],
    batches: Iterable[Batch],
    loss: Loss | None = None,
    *,
    units: Units | None = None,
    between: Callable[[int], None] = lambda _: None,
) -> dict[str, Evidence]:
    """{node: evidence} of the kinds `wanted`, in one pass over `batches`; weight, gamma and beta are always there where a layer has them.

    The view is evaluated in inference mode of its normalizations and left as it was. loss is needed for gradients alone. `between` is told
    the rows done. A kind that a layer cannot have (gamma_grad without BatchNormalization) is left out of its evidence. PlanError for an
    unknown kind or a missing loss, DataError without rows. Of a weight that several nodes share, the gradient is that of all its uses."""
    sites = {name: site_of(model, name) for name in dict.fromkeys(nodes)}
    kinds = _kinds(wanted, loss)
    gathered = {name: _Sums(view, site, kinds, (units or {}).get(name, ())) for name, site in sites.items()}
    if not kinds:
        return {name: sums.finish() for name, sums in gathered.items()}
    outputs = [value.name for value in model.outputs]
    done = 0
    with _evaluating(view):
        for feed, labels in batches:
            done += _add_batch(view, gathered, outputs, feed, labels, loss)
            between(done)
    if not done:
        raise DataError("evidence for pruning needs rows to look at, got none. Give at least one calibration row.")
    return {name: sums.finish() for name, sums in gathered.items()}


def parts_within(model: Model, nodes: Sequence[str], limit_bytes: int = 2**30) -> list[list[str]]:
    """The nodes in order, in runs whose Hessians together stay within `limit_bytes`; a larger one stands alone."""
    parts: list[list[str]] = []
    room = 0
    for name in nodes:
        site = site_of(model, name)
        weight = canonical(torch.empty(tuple(model.initializers[site.weight].dims), device="meta"), site.node)
        size = 4 * site.groups * prod(weight.shape[1:]) ** 2
        if not parts or size > room:
            parts.append([])
            room = limit_bytes
        parts[-1].append(name)
        room -= size
    return parts


class _Sums:
    """The running sums of one layer."""

    def __init__(self, view: TorchView, site: Site, kinds: Iterable[str], units: Sequence[Sequence[int]]) -> None:
        self.view, self.site = view, site
        self.collectors = {kind: COLLECTORS[kind] for kind in kinds if None not in COLLECTORS[kind].differentiate(site)}
        self.kernel = tuple(self.weight.shape[2:])
        self.units = units
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @property
    def weight(self) -> Tensor:
        return canonical(self.view.value(self.site.weight), self.site.node)

    @property
    def differentiated(self) -> set[str]:
        return {name for item in self.collectors.values() for name in item.differentiate(self.site) if name is not None}

    def add(self, rows: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        seen = Seen(
            self.site,
            rows,
            self.kernel,
            values[self.site.reads].detach(),
            values[self.site.writes].detach(),
            values[self.site.activated].detach(),
            gradients,
            self.units,
        )
        for kind, collector in self.collectors.items():
            self.counts[kind] = self.counts.get(kind, 0) + collector.count(seen)
            part = collector.add(seen)
            self.totals[kind] = self.totals[kind].add_(part) if kind in self.totals else part

    def finish(self) -> Evidence:
        view, site = self.view, self.site
        found: Evidence = {"weight": self.weight.clone()}
        if site.gamma is not None and site.beta is not None:
            found |= {"gamma": view.value(site.gamma).clone(), "beta": view.value(site.beta).clone()}
        found |= {kind: self.collectors[kind].finish(total, self.counts[kind]).float() for kind, total in self.totals.items()}
        if "movement" in found:
            found["movement"] = -found["weight"] * found["movement"]
        return found


def _kinds(wanted: Iterable[str], loss: Loss | None) -> list[str]:
    kinds = sorted(set(wanted) - {"weight", "gamma", "beta"})
    unknown = [kind for kind in kinds if kind not in COLLECTORS]
    if unknown:
        raise PlanError(f"evidence '{unknown[0]}' cannot be collected. Known: {', '.join(sorted(COLLECTORS))}.")
    needing = [kind for kind in kinds if kind in _OF_GRADIENTS]
    if needing and loss is None:
        raise PlanError(
            f"evidence '{needing[0]}' is made of gradients and needs a loss, got none. Give a loss, or use a criterion without gradients."
        )
    return kinds


@contextmanager
def _evaluating(view: TorchView) -> Iterator[None]:
    training = view.training
    view.eval()
    try:
        yield
    finally:
        view.train(training)


def _add_batch(
    view: TorchView,
    gathered: Mapping[str, _Sums],
    outputs: Sequence[str],
    feed: Mapping[str, NDArray[Any]],
    labels: NDArray[Any] | None,
    loss: Loss | None,
) -> int:
    """Run one batch and add what it shows to every layer; returns its rows."""
    device = next((tensor.device for tensor in (*view.parameters(), *view.buffers())), torch.device("cpu"))
    inputs = {name: torch.tensor(array, device=device) for name, array in feed.items()}
    rows = len(next(iter(inputs.values())))
    differentiated = {name for sums in gathered.values() for name in sums.differentiated}
    for tensor in inputs.values():
        # The first layer's input has a gradient too, even where every parameter is frozen.
        tensor.requires_grad_(bool(differentiated) and tensor.is_floating_point())
    tensors = {name for sums in gathered.values() for name in (sums.site.reads, sums.site.writes, sums.site.activated)}
    with torch.set_grad_enabled(bool(differentiated)):
        values = {**inputs, **view(inputs, observe=sorted(tensors - set(inputs)))}
        results = {name: values[name] for name in outputs}
        gradients = _gradients(view, values, differentiated, results, labels, loss) if differentiated and loss is not None else {}
    with torch.no_grad():
        for sums in gathered.values():
            sums.add(rows, values, gradients)
    return rows


def _gradients(
    view: TorchView, values: Mapping[str, Tensor], names: set[str], outputs: dict[str, Tensor], labels: NDArray[Any] | None, loss: Loss
) -> dict[str, Tensor]:
    """Gradients of the batch's mean loss by ONNX name, weights in ONNX layout; the parameters' own `.grad` is not touched."""
    device = next(iter(outputs.values())).device
    total = loss(outputs, None if labels is None else torch.tensor(labels, device=device))
    order = sorted(names)
    sources = [values[name] if name in values else view.parameter(name) for name in order]
    found = torch.autograd.grad(total, sources, allow_unused=True)
    result = {}
    for name, source, gradient in zip(order, sources, found, strict=True):
        # What the loss does not depend on has no slope.
        dense = torch.zeros_like(source) if gradient is None else gradient
        result[name] = dense.transpose(0, 1) if name not in values and view.transposed(name) else dense
    return result


def _channel_sums(tensor: Tensor, site: Site) -> Tensor:
    """Sum over everything but the channels: [channels], in float64."""
    axis = tensor.ndim - 1 if channels_last(site.node) else 1
    return tensor.sum(dim=[d for d in range(tensor.ndim) if d != axis], dtype=torch.float64)


def _per_channel(tensor: Tensor, site: Site) -> int:
    return tensor.numel() // tensor.shape[-1 if channels_last(site.node) else 1]


def _by_row(tensor: Tensor, seen: Seen) -> Tensor:
    """[batch rows, …] of a tensor whose first axis holds every row's positions side by side."""
    if tensor.shape[0] % seen.rows:
        raise PlanError(
            f"layer '{seen.site.node.name}' sees {tensor.shape[0]} positions for {seen.rows} rows, so they cannot be told apart. "
            "Use a criterion that does not look at single rows, such as taylor or l1."
        )
    return tensor.reshape(seen.rows, -1, *tensor.shape[1:])


def _row_taylor(tensor: Tensor, gradient: Tensor, seen: Seen) -> Tensor:
    """∂loss of a row/∂(a mask on a channel): Σ over positions of activation·gradient, [rows, channels]."""
    product = _by_row(tensor * gradient * seen.rows, seen)
    axis = product.ndim - 1 if channels_last(seen.site.node) else 2
    # A tensor of rows and channels alone still has the axis of positions that _by_row made.
    return product.sum(dim=[d for d in range(1, product.ndim) if d != axis], dtype=torch.float64)


def _output_taylor(seen: Seen) -> Tensor:
    return _row_taylor(seen.activated, seen.gradients[seen.site.activated], seen).abs().sum(dim=0)


def _input_taylor(seen: Seen) -> Tensor:
    """Sum over rows of |∂loss/∂(mask on a unit)|, spread evenly over the unit's channels: their sum is the unit's."""
    by_channel = _row_taylor(seen.reads, seen.gradients[seen.site.reads], seen)
    result = by_channel.abs().sum(dim=0)
    for unit in seen.units:
        index = torch.tensor(list(unit), device=by_channel.device)
        result[index] = by_channel[:, index].sum(dim=1).abs().sum() / len(index)
    return result


def _blocks(seen: Seen) -> Iterator[Tensor]:
    """A few rows' patches at a time: [rows, groups, in·kernel, positions]."""
    one = patches(seen.reads[:1], seen.site, seen.kernel).numel()
    step = max(PATCH_NUMBERS // max(one, 1), 1)
    for start in range(0, seen.reads.shape[0], step):
        yield patches(seen.reads[start : start + step], seen.site, seen.kernel)


def _norms(seen: Seen) -> Tensor:
    """Sum of the squares: [groups, in·kernel]. Rows are added up before patches are made of them."""
    squares = seen.reads.square().sum(dim=0, keepdim=True, dtype=torch.float64) * attribute(seen.site.node, "alpha", 1.0)
    return patches(squares, seen.site, seen.kernel).sum(dim=(0, 3))


def _hessian(seen: Seen) -> Tensor:
    """Sum of XᵀX: [groups, d, d]."""
    total = torch.zeros((), device=seen.reads.device)
    for columns in _blocks(seen):
        flat = columns.permute(1, 2, 0, 3).flatten(2)
        total = total + flat @ flat.transpose(1, 2)
    return total


def _ungrouped(total: Tensor) -> Tensor:
    """Without the first axis where there is one group only."""
    return total[0] if len(total) == 1 else total


def _grad_squared(seen: Seen) -> Tensor:
    """Sum over rows of the squared gradient of the row's own loss (the diagonal of the empirical Fisher information)."""
    slopes = seen.gradients[seen.site.writes] * seen.rows
    total = torch.zeros((), dtype=torch.float64, device=slopes.device)
    flat = slopes.reshape(slopes.shape[0], -1, slopes.shape[-1]).transpose(1, 2) if channels_last(seen.site.node) else slopes.flatten(2)
    grouped = flat.reshape(flat.shape[0], seen.site.groups, -1, flat.shape[2])
    merged = seen.reads.shape[0] // seen.rows if _by_row(seen.reads, seen).shape[1] else 1
    for row in range(seen.rows):
        part = slice(row * merged, (row + 1) * merged)
        columns = patches(seen.reads[part], seen.site, seen.kernel)
        gradient = torch.einsum("ngol,ngdl->god", grouped[part], columns)
        total = total + gradient.double().square()
    return total.reshape(total.shape[0] * total.shape[1], -1, *seen.kernel)


def _of_parameter(name: Callable[[Site], str | None]) -> Collector:
    """The mean gradient of an initializer, batches weighted by their rows."""

    def add(seen: Seen) -> Tensor:
        initializer = name(seen.site)
        gradient = seen.gradients[initializer] if initializer is not None else torch.zeros(())
        shaped = canonical(gradient, seen.site.node) if initializer == seen.site.weight else gradient
        return shaped.double() * seen.rows

    return Collector(add, lambda seen: seen.rows, lambda site: (name(site),))


COLLECTORS: dict[str, Collector] = {
    "grad": _of_parameter(lambda site: site.weight),
    "movement": _of_parameter(lambda site: site.weight),
    "gamma_grad": _of_parameter(lambda site: site.gamma),
    "beta_grad": _of_parameter(lambda site: site.beta),
    "grad_squared": Collector(_grad_squared, lambda seen: seen.rows, lambda site: (site.writes,)),
    "output_taylor": Collector(_output_taylor, lambda seen: seen.rows, lambda site: (site.activated,)),
    "input_taylor": Collector(_input_taylor, lambda seen: seen.rows, lambda site: (site.reads if site.groups == 1 else None,)),
    "activation_mean": Collector(
        lambda seen: _channel_sums(seen.activated.abs(), seen.site), lambda seen: _per_channel(seen.activated, seen.site)
    ),
    "activation_zeros": Collector(
        lambda seen: _channel_sums(seen.activated == 0, seen.site), lambda seen: _per_channel(seen.activated, seen.site)
    ),
    "input_norm": Collector(_norms, finish=lambda total, _: _ungrouped(total.sqrt())),
    "hessian": Collector(_hessian, finish=lambda total, _: _ungrouped(total)),
}
_OF_GRADIENTS = {"grad", "movement", "gamma_grad", "beta_grad", "grad_squared", "output_taylor", "input_taylor"}
