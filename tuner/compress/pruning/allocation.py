"""How a global share of zeros, or of channels, is divided among layers, and which channels of a group stay.

Everything is counted in whole weights (or channels): the counts of all layers add up to ⌈ratio·all⌉ exactly, every layer keeps at least
one, and equal inputs give equal results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import floor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.compress.pruning.channels import ChannelGroup, Slot
from tuner.compress.pruning.criteria import Side, lamp
from tuner.compress.pruning.patterns import removed_count
from tuner.errors import PlanError
from tuner.registry import Registry

Sensitivity = Mapping[float, float]
"""Of a layer: the damage at some ratios; linear in between, from no damage at 0. One entry {1.0: s} is enough."""
Mode = Literal["plain", "dependency"]

Wanted = Mapping[str, float]
Distribution = Callable[[int, Mapping[str, Tensor], Mapping[str, Sensitivity]], Wanted]
"""(weights to remove in all, scores by layer, sensitivity by layer) -> weights to remove by layer, not yet whole numbers."""

DISTRIBUTIONS: Registry[Distribution] = Registry("distribution")


def removals(
    ratio: float, scores: Mapping[str, Tensor], how: str = "uniform", *, sensitivity: Mapping[str, Sensitivity] | None = None
) -> dict[str, int]:
    """{layer: how many of its scores to remove}; they add up to ⌈ratio·all⌉.

    scores: by layer, in the canonical shape; `erk` reads the shapes alone, `lamp` takes magnitudes. PlanError where the ratio cannot be
    met."""
    sizes = {name: tensor.numel() for name, tensor in scores.items()}
    everything = sum(sizes.values())
    if not sizes or not 0 <= ratio < 1:
        raise PlanError(f"a share to remove must be at least 0 and below 1, of at least one layer, got {ratio:g} of {len(sizes)} layers.")
    total = removed_count(ratio, everything)
    room = {name: size - 1 for name, size in sizes.items()}
    if not total:
        return dict.fromkeys(scores, 0)
    if total > sum(room.values()):
        raise PlanError(
            f"{total:,} of {everything:,} cannot be removed, because each of the {len(sizes)} layers keeps at least one. "
            f"Remove a share of at most {sum(room.values()) / everything:.6g}."
        )
    return _whole(DISTRIBUTIONS[how](total, scores, sensitivity or {}), room, total)


def distribute(
    ratio: float, scores: Mapping[str, Tensor], how: str = "uniform", *, sensitivity: Mapping[str, Sensitivity] | None = None
) -> dict[str, float]:
    """{layer: the ratio it loses}: `removals` as shares, so that `patterns.removed_count` gives the same numbers back."""
    return {name: count / scores[name].numel() for name, count in removals(ratio, scores, how, sensitivity=sensitivity).items()}


def keep_counts(ratio: float, scores: Mapping[str, Tensor], how: str = "global") -> dict[str, int]:
    """{group: how many channels stay} of [size] scores. Groups are compared by scores over their mean: raw ones grow with the layer.

    `sensitivity`: the damage of losing some channels is the sum of their scores."""
    comparable = {name: normalized(tensor) for name, tensor in scores.items()}
    damage = {name: _losses(tensor) for name, tensor in comparable.items()}
    return {name: scores[name].numel() - count for name, count in removals(ratio, comparable, how, sensitivity=damage).items()}


def _losses(scores: Tensor) -> dict[float, float]:
    """{share: sum of the least scores of that share}."""
    sums = scores.double().sort().values.cumsum(0).tolist()
    return {count / len(sums): total for count, total in enumerate(sums, start=1)}


@DISTRIBUTIONS.register("uniform")
def uniform(total: int, scores: Mapping[str, Tensor], _sensitivity: Mapping[str, Sensitivity]) -> Wanted:
    """Every layer loses the same share."""
    everything = sum(tensor.numel() for tensor in scores.values())
    return {name: total * tensor.numel() / everything for name, tensor in scores.items()}


@DISTRIBUTIONS.register("global")
def global_rank(total: int, scores: Mapping[str, Tensor], _sensitivity: Mapping[str, Sensitivity]) -> Wanted:
    """The least scores of all layers together go; the highest of each layer stays."""
    flat = [tensor.detach().flatten().double().cpu() for tensor in scores.values()]
    candidates = []
    for tensor in flat:
        safe = tensor.clone()
        safe[int(tensor.argmax())] = torch.inf
        candidates.append(safe)
    owner = torch.repeat_interleave(torch.tensor([len(tensor) for tensor in flat]))
    least = torch.cat(candidates).sort(stable=True).indices[:total]
    counts = torch.bincount(owner[least], minlength=len(flat))
    return {name: float(count) for name, count in zip(scores, counts, strict=True)}


@DISTRIBUTIONS.register("lamp")
def lamp_rank(total: int, scores: Mapping[str, Tensor], sensitivity: Mapping[str, Sensitivity]) -> Wanted:
    """The least LAMP scores of all layers go (Lee et al., 2021, arXiv:2010.07611)."""
    return global_rank(total, {name: lamp(weight=tensor.double()) for name, tensor in scores.items()}, sensitivity)


@DISTRIBUTIONS.register("erk")
def erdos_renyi_kernel(total: int, scores: Mapping[str, Tensor], _sensitivity: Mapping[str, Sensitivity]) -> Wanted:
    """A layer keeps ε·(out + in + kernel sides) weights, or all where that is more (Evci et al., 2020, arXiv:1911.11134, section 3)."""
    sizes = {name: tensor.numel() for name, tensor in scores.items()}
    sides = {name: sum(tensor.shape) for name, tensor in scores.items()}
    dense: set[str] = set()
    while True:
        kept = sum(sizes.values()) - total - sum(sizes[name] for name in dense)
        epsilon = kept / sum(sides[name] for name in sides if name not in dense)
        over = {name for name in sizes if name not in dense and epsilon * sides[name] > sizes[name]}
        if not over:
            return {name: 0.0 if name in dense else sizes[name] - epsilon * sides[name] for name in sizes}
        dense |= over


@DISTRIBUTIONS.register("sensitivity")
def water_filling(total: int, scores: Mapping[str, Tensor], sensitivity: Mapping[str, Sensitivity]) -> Wanted:
    """Every layer loses as much as one common level of damage allows, and the level rises until enough is removed.

    Where damage never reaches the level, a layer loses all that it may. PlanError names layers without a sensitivity."""
    unknown = [name for name in scores if not sensitivity.get(name)]
    if unknown:
        raise PlanError(f"'sensitivity' needs the damage of every layer, got none for {', '.join(unknown)}. Measure them, or use 'erk'.")
    curves = {name: _curve(sensitivity[name]) for name in scores}

    def removed(level: float) -> dict[str, float]:
        return {name: min(_share_at(level, *curves[name]) * tensor.numel(), tensor.numel() - 1.0) for name, tensor in scores.items()}

    low, high = 0.0, max(float(damage[-1]) for _, damage in curves.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(removed(middle).values()) < total else (low, middle)
    under, over = removed(low), removed(high)
    # Where a curve is flat its share jumps at the level; the jump is taken in part.
    gap = sum(over.values()) - sum(under.values())
    part = min(max((total - sum(under.values())) / gap, 0.0), 1.0) if gap > 0 else 1.0
    return {name: under[name] + part * (over[name] - under[name]) for name in scores}


def _curve(points: Sensitivity) -> tuple[NDArray[Any], NDArray[Any]]:
    """(ratios, damage), both rising, from (0, 0): removing more is taken to harm no less."""
    ratios = np.array([0.0, *sorted(points)])
    damage = np.maximum.accumulate([0.0, *(points[ratio] for ratio in sorted(points))])
    return ratios, damage


def _share_at(level: float, ratios: NDArray[Any], damage: NDArray[Any]) -> float:
    """The largest share whose damage is at most `level`."""
    if level >= damage[-1]:
        return 1.0
    after = int(np.searchsorted(damage, level, side="right"))
    low, high = damage[after - 1], damage[after]
    return float(ratios[after - 1] + (ratios[after] - ratios[after - 1]) * (level - low) / (high - low))


def _whole(wanted: Wanted, room: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers nearest to `wanted` (largest remainders first), at most `room` each, that add up to `total`."""
    counts = {name: min(max(floor(value + 1e-9), 0), room[name]) for name, value in wanted.items()}
    missing = total - sum(counts.values())
    while missing:
        step = 1 if missing > 0 else -1
        able = [name for name in counts if (counts[name] < room[name] if step > 0 else counts[name] > 0)]
        able.sort(key=lambda name: step * (counts[name] - wanted[name]))
        each = max(abs(missing) // len(able), 1)
        for name in able[: abs(missing)]:
            change = min(each, room[name] - counts[name]) if step > 0 else -min(each, counts[name])
            counts[name] += change
            missing -= change
    return counts


def normalized(scores: Tensor) -> Tensor:
    """Scores over the mean of their magnitudes, so that those of different layers and criteria can be compared."""
    mean = scores.abs().mean()
    return scores / mean if mean > 0 else scores


def fold(slot: Slot, scores: Tensor) -> Tensor:
    """A layer's scores along its channels, added up for every channel of the group: [size], 0 for a channel that the layer lacks."""
    highest = max((index for positions in slot.positions for index in positions), default=-1)
    if scores.ndim != 1 or highest >= len(scores):
        raise PlanError(f"scores of '{slot.node}' must be a list of more than {highest} channels, got shape {list(scores.shape)}.")
    return torch.stack([scores[list(positions)].sum() for positions in slot.positions])


def group_scores(group: ChannelGroup, scores: Mapping[str, Tensor], mode: Mode = "dependency", *, side: Side = "out") -> Tensor:
    """One score per channel of the group, [size], from the scores of its layers {node: [channels]}, each over its own mean.

    side: that of the criterion: the layers that make the channels (`out`) or that read them (`in`). plain: the first such layer that
    has a channel decides. dependency: the mean over all of them, since what is tied goes together (Fang et al., 2023, arXiv:2301.12900)."""
    slots = [slot for slot in group.slots if slot.role == side and slot.node in scores]
    if not slots:
        verb, known = ("makes" if side == "out" else "reads"), dict.fromkeys(slot.node for slot in group.slots if slot.role == side)
        raise PlanError(f"no layer that {verb} the channels of group '{group.name}' has scores. Score one of {', '.join(known)}.")
    values = torch.stack([fold(slot, scores[slot.node]) for slot in slots])
    there = torch.tensor([[bool(positions) for positions in slot.positions] for slot in slots], device=values.device)
    mean = (values.abs() * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp(min=1)
    comparable = torch.where(mean > 0, values / mean, values)
    if mode == "plain":
        # The first layer of a column that has the channel.
        return comparable.gather(0, there.int().argmax(dim=0, keepdim=True))[0]
    return comparable.sum(dim=0) / there.sum(dim=0).clamp(min=1)


def choose(scores: Tensor, keep: int) -> tuple[int, ...]:
    """The `keep` channels with the highest scores, in their order; of equal ones the first stay."""
    if not 1 <= keep <= len(scores):
        raise PlanError(f"a group of {len(scores)} channels keeps between 1 and {len(scores)} of them, got {keep}.")
    return tuple(sorted(scores.sort(descending=True, stable=True).indices[:keep].tolist()))


def units_of(groups: Iterable[ChannelGroup]) -> dict[str, list[tuple[int, ...]]]:
    """{reading node: the channels that form a unit}, for evidence of `mask-gradient` over these groups."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for group in groups:
        for slot in group.slots:
            if slot.role == "in":
                found.setdefault(slot.node, []).extend(slot.positions)
    return found
