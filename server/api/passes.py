"""The steps that plans are made of: what each does, what it chooses for a layer, and what a job may say about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field

from search_spaces.recovery import RecoverySpec
from search_spaces.schemes import FLOAT, WHOLE, ChannelScheme, Frozen, QuantScheme, RankScheme, SparsityScheme
from search_spaces.space import QUANTIZE, SpaceSpec
from search_spaces.structure import CHANNELS, FACTORIZE, RECOVER, SPARSIFY, ChannelSpec, RankSpec, SparsitySpec
from search_spaces.structure_names import CHANNEL_CRITERIA, LOSSES, METHODS, PRUNERS, WEIGHT_CRITERIA
from tuner.compress.pipeline import KNOWN_STEPS

NUMBERS = ("activations", "weights", "granularities", "activation_symmetric", "weight_symmetric", "calibrations", "operators")
"""The keys of a space that quantization reads."""


class PassView(Frozen):
    """One step of a compression plan."""

    name: str
    summary: str
    choice: dict[str, Any]
    """JSON schema of what a plan chooses for each layer or group of channels; of training, which has no choice, that of null."""
    space: str
    """The key of a space that asks for it; empty: the space itself says so."""
    options: dict[str, Any]
    """JSON schema of what a space may say under that key."""
    names: dict[str, dict[str, str]] = Field(default_factory=dict)
    """{option: {name that it may have: what that does}}, of the built-in ones."""


def passes() -> list[PassView]:
    """All steps, in the order in which they are applied."""
    return [_PASSES[name] for name in KNOWN_STEPS]


def _choice(rest: str, about: str, examples: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "description": f"'{rest}' leaves it alone; {about}.", "examples": [rest, *examples]}


def _spelled(scheme: type[ChannelScheme | RankScheme | SparsityScheme | QuantScheme], *names: str) -> list[str]:
    return [scheme.parse(name).name for name in names]


def _schema(spec: type[BaseModel], only: Iterable[str] = ()) -> dict[str, Any]:
    """The schema of a part of a space, or of some of its keys."""
    schema = spec.model_json_schema()
    if only:
        schema["properties"] = {name: schema["properties"][name] for name in only}
        schema.pop("$defs", None)
    return schema


_PASSES = {
    view.name: view
    for view in (
        PassView(
            name=CHANNELS,
            summary="Remove whole channels, attention heads and hidden units: a smaller file that runs faster.",
            choice=_choice(
                WHOLE,
                "else how many channels of the group stay, or which share of the model's goes",
                _spelled(ChannelScheme, "keep-12", "cut-0.3"),
            ),
            space="channels",
            options=_schema(ChannelSpec),
            names={"criterion": CHANNEL_CRITERIA},
        ),
        PassView(
            name=FACTORIZE,
            summary="Split a layer into smaller ones of low rank: fewer multiplications, and faster where they are what takes the time.",
            choice=_choice(
                WHOLE,
                "else the method and the share of the layer's multiplications that it saves",
                _spelled(RankScheme, "svd-0.5", "tucker2-0.25"),
            ),
            space="rank",
            options=_schema(RankSpec),
            names={"methods": METHODS},
        ),
        PassView(
            name=SPARSIFY,
            summary="Set weights to zero: a smaller file once it is packed. The runtime multiplies zeros too, so that it is not faster.",
            choice=_choice(
                WHOLE, "else the share of zeros and where they may stand", _spelled(SparsityScheme, "0.8-any", "0.5-2:4", "0.5-4x1")
            ),
            space="sparsity",
            options=_schema(SparsitySpec),
            names={"criterion": WEIGHT_CRITERIA, "pruner": PRUNERS},
        ),
        PassView(
            name=RECOVER,
            summary="Train what is left, with the original as the teacher.",
            choice={"type": "null", "description": "The whole model is trained."},
            space="recovery",
            options=_schema(RecoverySpec),
            names={"losses": LOSSES},
        ),
        PassView(
            name=QUANTIZE,
            summary="Store weights and compute activations as integers, layer by layer as chosen.",
            choice=_choice(
                FLOAT,
                "before the slash the activation, after it the weight",
                _spelled(QuantScheme, "u8-asym-minmax/s8-sym-channel", "u8-asym-mse"),
            ),
            space="",
            options=_schema(SpaceSpec, NUMBERS),
        ),
    )
}
