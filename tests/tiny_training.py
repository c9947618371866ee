"""A small network with the interface of the torch view, rows for it, and a teacher: recovery is tested on these without a graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import Net
from torch import Tensor, nn

from tuner.data.dataset import Dataset, InputInfo, open_dataset
from tuner.job import DataRef

FEATURES, CLASSES = 6, 4
_NET = Net()
MODEL = _NET.output(_NET.gemm(_NET.input(shape=("batch", FEATURES)), FEATURES, CLASSES, "fc")).model()
"""Stands for the graph behind the view: a plain network without attention."""


class TinyView(nn.Module):
    """x [n, 6] → Linear → BatchNorm → Relu ("hidden", [n, width]) → Linear ("scores", [n, 4])."""

    def __init__(self, seed: int = 0, width: int = 16, dropout: float = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.model = MODEL
        self.first, self.norm, self.last = nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.Linear(width, CLASSES)
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
                layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
        self.eval()

    @property
    def trainable(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.named_parameters())

    def parameter(self, initializer: str) -> nn.Parameter:
        return dict(self.named_parameters())[initializer]

    def value(self, initializer: str) -> Tensor:
        return self.parameter(initializer).detach()

    def forward(self, feed: Mapping[str, Tensor], observe: Sequence[str] = ()) -> dict[str, Tensor]:
        hidden = torch.relu(self.norm(self.first(feed["x"])))
        found = {"scores": self.last(self.drop(hidden)), "hidden": hidden}
        return {name: found[name] for name in dict.fromkeys(("scores", *observe))}


class Teacher:
    """A copy of a view as it was, which counts how often it is asked and for how many rows."""

    def __init__(self, view: TinyView) -> None:
        self.view, self.calls, self.rows = copy.deepcopy(view).eval(), 0, 0

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Tensor]:
        self.calls += 1
        self.rows += len(feed["x"])
        with torch.no_grad():
            return self.view({"x": torch.from_numpy(feed["x"])}, ("hidden",))


def tiny_data(folder: Path, rows: int = 400, *, labels: Any = None, batch: int | None = None, seed: int = 1) -> Dataset:
    """Normally distributed rows; labels: an array, or None for none. batch: a fixed batch dimension."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32))
    if labels is not None:
        np.save(folder / "labels.npy", labels)
    return open_dataset(DataRef(file=str(folder)), [InputInfo("x", "float32", (batch, FEATURES))], folder / "cache")


def damage(view: TinyView, size: float = 0.5, seed: int = 9) -> TinyView:
    """A copy with weights pushed away at random."""
    damaged, generator = copy.deepcopy(view), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in damaged.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return damaged


def same(a: TinyView, b: TinyView) -> bool:
    """Equal bit for bit, statistics included."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
