"""What could be taken away from a model: its groups of channels, its weights, the layers that can be split."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from search_spaces.schemes import RankScheme
from search_spaces.space import Part, SpaceSpec
from search_spaces.structure import CHANNELS, EVERY_LAYER, FACTORIZE, SPARSIFY, RankSpec
from tuner.compress.decomposition import methods_for, rank_of, row_shapes
from tuner.compress.pruning.channels import find_groups
from tuner.errors import PlanError
from tuner.model.graph import Model
from tuner.model.layers import prunable_layers


def parts_of(base: Model, spec: SpaceSpec) -> tuple[list[Part], list[str]]:
    """(the parts that a space asks for, why others cannot be taken away from). base: with BatchNormalization apart.

    Where a share of the whole model is asked for, the model is the only part of its step."""
    found: list[Part] = []
    notes: list[str] = []
    if spec.channels is not None:
        groups = find_groups(base)
        notes += groups.notes
        parts = [Part(step=CHANNELS, layer=group.name, op=group.kind, size=group.size) for group in groups.groups if group.size > 1]
        found += _whole(parts, CHANNELS) if spec.channels.distribution != "per-layer" else parts
    layers = [(name, base.nodes[name].op_type) for name in prunable_layers(base)]
    if spec.sparsity is not None:
        parts = [Part(step=SPARSIFY, layer=name, op=op) for name, op in layers]
        found += _whole(parts, SPARSIFY) if spec.sparsity.distribution != "per-layer" else parts
    if spec.rank is not None:
        shapes = row_shapes(base)
        parts = [Part(step=FACTORIZE, layer=name, op=op, options=_splits(base, name, spec.rank, shapes)) for name, op in layers]
        found += [part for part in parts if part.options]
    return found, notes


def _splits(base: Model, layer: str, spec: RankSpec, shapes: Mapping[str, tuple[int | None, ...]]) -> tuple[str, ...]:
    """The ways to split a layer that save what is asked for: a small layer cannot lose any share of its multiplications."""
    able = methods_for(base, layer)
    found = []
    for method in spec.methods:
        schemes = [RankScheme(method=method, ratio=share) for share in spec.shares_of(layer, spec.shares)]
        schemes += [RankScheme(method=method, energy=energy) for energy in sorted(spec.energies, reverse=True)]
        for scheme in schemes if method in able else ():
            with suppress(PlanError):
                rank_of(base, layer, method, scheme.ratio, scheme.energy, shapes=shapes)
                found.append(scheme.name)
    return tuple(found)


def _whole(parts: list[Part], step: str) -> list[Part]:
    return [Part(step=step, layer=EVERY_LAYER, op="model")] if parts else []
