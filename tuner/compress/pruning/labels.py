"""Labels: one number per index of an axis. Indices that can only go together carry labels that were united."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Indices = NDArray[np.int64]
Axes = tuple[Indices | None, ...]
"""The labels of a tensor's axes; None: an axis that is not followed. On an axis of dynamic length (batch × heads) they repeat."""

Role = Literal["out", "in", "tied"]


class Labels:
    """Hands out labels and remembers what is said of them."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[tuple[Indices, Indices]] = []
        self._stops: list[tuple[Indices, str]] = []
        self._roles: list[tuple[Indices, Role, str]] = []
        self._heads: list[Indices] = []

    def fresh(self, count: int) -> Indices:
        self.count += count
        return np.arange(self.count - count, self.count, dtype=np.int64)

    def unite(self, some: Indices, others: Indices) -> None:
        """Index by index (with broadcasting): what carries one cannot go without what carries the other."""
        a, b = np.broadcast_arrays(some, others)
        self._pairs.append((a.ravel(), b.ravel()))

    def freeze(self, labels: Indices, reason: str) -> None:
        """What carries these cannot go. The first reason counts; an empty one is not worth telling."""
        self._stops.append((labels, reason))

    def role(self, labels: Indices, role: Role, node: str) -> None:
        """What the node does with the slices of a weight that carry these; whatever was not said is tied."""
        self._roles.append((labels, role, node))

    def mark_heads(self, labels: Indices) -> None:
        self._heads.append(labels)

    def classes(self) -> Indices:
        """For each label the number of its class: all that was united with it."""
        if not self._pairs:
            return np.arange(self.count, dtype=np.int64)
        rows, columns = (np.concatenate(side) for side in zip(*self._pairs, strict=True))
        graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.count, self.count))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    def reasons(self, classes: Indices) -> dict[int, str]:
        """Why classes are frozen, for those that are; a reason worth telling goes before one that is not."""
        found: dict[int, str] = {}
        for labels, reason in self._stops:
            for number in np.unique(classes[labels]).tolist():
                if not found.get(number):
                    found[number] = reason
        return found

    def roles(self) -> tuple[list[Role], list[str]]:
        """Role and node of each label ('' where nothing was said). A slice that is read stays 'in', whatever else it is."""
        role: list[Role] = ["tied"] * self.count
        node = [""] * self.count
        for labels, said, by in self._roles:
            for label in labels.tolist():
                if role[label] == "tied" or (said == "in" and role[label] == "out"):
                    role[label], node[label] = said, by
        return role, node

    def heads(self, classes: Indices) -> set[int]:
        return {number for labels in self._heads for number in classes[labels].tolist()}
