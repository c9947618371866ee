"""The other side of pruning.py: Torch-Pruning's MagnitudePruner (L1) on the same network, which it sees as an fx.GraphModule.

Torch-Pruning is no dependency of the project (`pip install --no-deps torch-pruning==1.6.1`). Only what it chooses is taken over: the
channels that it removes are removed from the ONNX model, which must compute what Torch-Pruning's own module computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tuner.compress.pruning.channels import find_groups
from tuner.model.graph import Model
from tuner.model.torch_view import torch_view

MOST_PERCENT = 80
"""Of the channels that may go: no search goes further."""


@dataclass(frozen=True)
class Pruned:
    """removed: {group of channels: those that Torch-Pruning removes}. module: the network as it left it."""

    removed: dict[str, list[int]]
    module: fx.GraphModule

    def outputs(self, feed: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.module(*feed.values())[0]
        return found


def inner_layers(base: Model) -> list[str]:
    """The layers that alone produce their channels. Only these are left to it: it takes a shortcut that slices and pads for one that keeps
    every channel in its place, so that shapes fit and values do not."""
    groups = find_groups(base).groups
    return [group.name for group in groups if sum(slot.role == "out" for slot in group.slots) == 1]


def prune(base: Model, feed: dict[str, Tensor], ratio: float, together: bool) -> Pruned:
    """ratio: share of the channels of inner layers that goes. together: the least of all layers, else the same share of each."""
    import torch_pruning

    view, inner = torch_view(base), set(inner_layers(base))
    modules = view.modules_by_node
    for parameter in view.parameters():
        parameter.requires_grad_(True)  # It follows gradients to find what depends on what.
    fixed = [m for name, m in modules.items() if name not in inner and isinstance(m, nn.Conv2d | nn.Linear)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        view.graph_module,
        tuple(feed.values()),
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        global_pruning=together,
        ignored_layers=fixed,
    )
    names = {module: name for name, module in modules.items()}
    removed: dict[str, list[int]] = {}
    for group in pruner.step(interactive=True):
        root = group[0]
        removed[names[root.dep.target.module]] = sorted(root.idxs)
        group.prune()
    return Pruned(removed, view.graph_module)


def prune_until(base: Model, feed: dict[str, Tensor], together: bool, enough: Callable[[Pruned], bool]) -> Pruned:
    """The mildest pruning, by whole per cent of the channels, that is `enough`."""
    low, high = 1, MOST_PERCENT
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(prune(base, feed, middle / 100, together)) else (middle + 1, high)
    found = prune(base, feed, low / 100, together)
    if not enough(found):
        raise ValueError(f"Torch-Pruning does not remove enough with {low} % of the channels of inner layers; ask for less")
    return found
