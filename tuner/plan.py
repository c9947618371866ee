"""Plans: what is to be done to a model, and what really was done.

A `CompressionPlan` is a decision, free of numbers that data would give; its digest is the key for caching and for finding
duplicates. An `AppliedPlan` adds every number that compression derived from data, so that `tuner apply` repeats it byte for
byte without data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from search_spaces.domains import Scalar
from search_spaces.schemes import FLOAT, WHOLE, Dtype, Frozen
from search_spaces.space import QUANTIZE, SearchSpace
from search_spaces.structure import CHANNELS, FACTORIZE, RECOVER, SPARSIFY
from tuner.errors import JobError

STRUCTURE = (CHANNELS, FACTORIZE, SPARSIFY, RECOVER)
"""The steps that change weights and their shapes, in their order; they come before the numbers' type changes."""


class Step(Frozen):
    """One pass of a plan: its name, the choice made for each layer, and the options that it has."""

    name: str
    layers: dict[str, Scalar] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A step without options looks as it did before there were any, and so has the digest that it had."""
        found: dict[str, Any] = serialize(self)
        return found if self.options else {name: value for name, value in found.items() if name != "options"}


class CompressionPlan(Frozen):
    """Ordered steps and the seed of whatever is random in them."""

    seed: int = 0
    steps: tuple[Step, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal plans, equal digests."""
        return digest_of(self.model_dump(mode="json"))

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)

    def layers(self, step: str) -> dict[str, Scalar]:
        """The per-layer choices of the step named `step`; empty where the plan has none."""
        found = self.step(step)
        return dict(found.layers) if found else {}

    @property
    def structure(self) -> CompressionPlan:
        """The part of the plan that changes weights and shapes: plans that agree in it can share the model that it makes."""
        return self.model_copy(update={"steps": tuple(step for step in self.steps if step.name in STRUCTURE)})

    @property
    def identity(self) -> bool:
        """True for the plan that leaves every layer alone."""
        return not self.steps


def make_plan(
    choices: Mapping[str, Mapping[str, Scalar]], seed: int, options: Mapping[str, Mapping[str, Any]] | None = None
) -> CompressionPlan:
    """The plan for decoded choices {layer: {step name: value}}; layers left alone are not mentioned in it.

    options: {step: its options}. What was taken away from is trained if there are options for that."""
    options = options or {}
    steps = []
    for name in (CHANNELS, FACTORIZE, SPARSIFY):
        layers = {layer: picks[name] for layer, picks in sorted(choices.items()) if picks.get(name, WHOLE) != WHOLE}
        steps += [Step(name=name, layers=layers, options=dict(options.get(name, {})))] if layers else []
    if steps and RECOVER in options:
        steps.append(Step(name=RECOVER, options=dict(options[RECOVER])))
    quantize = {layer: picks[QUANTIZE] for layer, picks in sorted(choices.items()) if picks.get(QUANTIZE, FLOAT) != FLOAT}
    steps += [Step(name=QUANTIZE, layers=quantize)] if quantize else []
    return CompressionPlan(seed=seed, steps=tuple(steps))


def plan_of(space: SearchSpace, assignment: Mapping[str, Scalar], seed: int) -> CompressionPlan:
    """The plan that an assignment means."""
    return make_plan(space.decode(assignment), seed, space.steps)


class TensorQuant(Frozen):
    """The affine parameters of one activation tensor: real = scale * (stored - zero_point)."""

    dtype: Dtype
    scale: Annotated[float, Field(gt=0)]
    zero_point: int
    readers: tuple[str, ...] = ()
    """The nodes that read the quantized values; none named: every reader does."""


class WeightQuant(Frozen):
    """How one weight is stored. Its scales are exact functions of the weight and are computed when applied."""

    initializer: str
    dtype: str
    symmetric: bool
    axis: int | None
    """The axis with one scale per index; None for one scale in all."""


class LayerQuant(Frozen):
    """What was really done to one node."""

    scheme: str
    weight: WeightQuant | None = None


class Split(Frozen):
    """How one layer was split: the method and the rank of each factor."""

    method: str
    rank: tuple[int, ...]


class Structure(Frozen):
    """What was really taken away. Every weight that is not as it was in the original lies in a file beside the plan."""

    removed: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """{group of channels: those that are gone}, counted in the original."""
    kept: dict[str, int] = Field(default_factory=dict)
    """{group: how many are left}."""
    splits: dict[str, Split] = Field(default_factory=dict)
    zeros: dict[str, float] = Field(default_factory=dict)
    """{layer: share of its weights that are zero}; of layers that were asked to have zeros."""


class AppliedPlan(Frozen):
    """A plan with every number needed to repeat it on the same model."""

    version: Literal[1] = 1
    plan: CompressionPlan
    model_sha256: str
    data_sha256: str = ""
    tensors: dict[str, TensorQuant] = Field(default_factory=dict)
    layers: dict[str, LayerQuant] = Field(default_factory=dict)
    structure: Structure | None = None
    notes: tuple[str, ...] = ()
    result_sha256: str = ""
    """SHA-256 of the file that applying this plan gives."""

    @property
    def choices(self) -> dict[str, str]:
        """{parameter of the space: what was really done}."""
        found = {
            f"{step.name}:{layer}": str(value) for step in self.plan.steps if step.name != QUANTIZE for layer, value in step.layers.items()
        }
        return found | {name: layer.scheme for name, layer in self.layers.items()}


def load_plan(path: Path) -> AppliedPlan:
    """Read a best.plan.json. JobError for a file that cannot be read or is none."""
    try:
        return AppliedPlan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise JobError(f"the plan {path} cannot be read ({error.strerror}); give the best.plan.json of a finished job") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise JobError(f"the plan {path} is no best.plan.json: {where}: {first['msg']}, got {str(first['input'])[:60]!r}") from error


def digest_of(value: Any) -> str:
    """SHA-256 over JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
