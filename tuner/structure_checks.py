"""The names in the structural parts of a space, checked before any file is opened and without loading what prunes and trains."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec, SparsitySpec
from search_spaces.structure_names import CHANNEL_CRITERIA, LOSSES, METHODS, PRUNERS, SCORED, SLIM, SPARSEGPT, WEIGHT_CRITERIA
from tuner.errors import JobError, UnknownName
from tuner.registry import load_plugins

CRITERIA_MODULE = "tuner.compress.pruning.criteria"
MAGNITUDE = "level"
REPAIRING = ("wanda", SPARSEGPT)
"""Criteria that set weights to zero themselves, layer by layer; a pruner holds these zeros."""


def check_structure(spec: SpaceSpec) -> None:
    """Refuse names that nobody knows, a criterion of the wrong kind, and a pruner that cannot use its criterion."""
    if spec.channels is not None:
        _check_channels(spec.channels)
    if spec.sparsity is not None:
        _check_sparsity(spec.sparsity)
    if spec.rank is not None:
        _check_all("decomposition", spec.rank.methods, METHODS, _added("tuner.compress.factors", "METHODS"), "space.rank.methods")
    if spec.structural and spec.recovery is not None:
        known = _added("tuner.compress.distillation", "LOSSES")
        _check_all("loss", spec.recovery.losses, LOSSES, known, "space.recovery.losses")


def _check_channels(spec: ChannelSpec) -> None:
    field, name = "space.channels.criterion", spec.criterion
    if name in WEIGHT_CRITERIA or _kind(name) == "element":
        raise JobError(
            f"the criterion '{name}' rates single weights; to remove channels use one of {', '.join(CHANNEL_CRITERIA)}",
            field=field,
        )
    if name not in CHANNEL_CRITERIA and _kind(name) is None:
        raise UnknownName("criterion of channels", name, CHANNEL_CRITERIA, field=field)


def _check_sparsity(spec: SparsitySpec) -> None:
    field, name = "space.sparsity.criterion", spec.criterion
    if name in CHANNEL_CRITERIA or _kind(name) == "channel":
        raise JobError(
            f"the criterion '{name}' rates whole channels; to set weights to zero use one of {', '.join(WEIGHT_CRITERIA)}",
            field=field,
        )
    if name not in WEIGHT_CRITERIA and _kind(name) is None:
        raise UnknownName("criterion of weights", name, WEIGHT_CRITERIA, field=field)
    if spec.pruner == SLIM:
        raise JobError(
            "the pruner 'slim' sets no weights to zero; use one like agp, or `channels` with the criterion slim",
            field="space.sparsity.pruner",
        )
    _check_all("pruner", (spec.pruner,), PRUNERS, _added("tuner.compress.pruning.pruners", "PRUNERS"), "space.sparsity.pruner")
    _check_together(spec)


def _check_together(spec: SparsitySpec) -> None:
    """Some pruners rate weights themselves, and one can do nothing without scores."""
    name, field = spec.pruner, "space.sparsity.pruner"
    scored = spec.criterion not in (MAGNITUDE, *REPAIRING)
    if name == "criterion" and not scored:
        raise JobError(f"the pruner 'criterion' needs a criterion with scores such as snip-element, got '{spec.criterion}'", field=field)
    if scored and name in PRUNERS and name not in SCORED:
        raise JobError(
            f"the pruner '{name}' rates weights itself and cannot use the criterion '{spec.criterion}'; leave the criterion out, "
            f"or use one of {', '.join(sorted(SCORED))}",
            field=field,
        )


def _check_all(kind: str, names: Iterable[str], built_in: Mapping[str, str], added: Collection[str], field: str) -> None:
    for name in names:
        if name not in built_in and name not in added:
            raise UnknownName(kind, name, {*built_in, *added}, field=field)


def _kind(criterion: str) -> str | None:
    """What a plug-in's criterion rates; None where no plug-in has such a criterion."""
    added = _added(CRITERIA_MODULE, "CRITERIA")
    return str(added[criterion].kind) if criterion in added else None


def _added(module: str, registry: str) -> Any:
    """The registry of a module, where a plug-in has loaded that to add to it; else nothing, for then it holds the built-in names alone."""
    load_plugins()
    loaded = sys.modules.get(module)
    return {} if loaded is None else getattr(loaded, registry)
