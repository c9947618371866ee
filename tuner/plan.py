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

from pydantic import Field, ValidationError

from search_spaces.domains import Scalar
from search_spaces.schemes import FLOAT, Dtype, Frozen
from tuner.errors import JobError

QUANTIZE = "quantize"


class Step(Frozen):
    """One pass of a plan: its name and the choice made for each layer."""

    name: str
    layers: dict[str, Scalar] = Field(default_factory=dict)


class CompressionPlan(Frozen):
    """Ordered steps and the seed of whatever is random in them."""

    seed: int = 0
    steps: tuple[Step, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal plans, equal digests."""
        return digest_of(self.model_dump(mode="json"))

    def layers(self, step: str) -> dict[str, Scalar]:
        """The per-layer choices of the step named `step`; empty where the plan has none."""
        return next((dict(s.layers) for s in self.steps if s.name == step), {})

    @property
    def identity(self) -> bool:
        """True for the plan that leaves every layer alone."""
        return not self.steps


def make_plan(choices: Mapping[str, Mapping[str, Scalar]], seed: int) -> CompressionPlan:
    """The plan for decoded choices {layer: {step name: value}}; layers left alone are not mentioned in it."""
    quantize = {layer: picks[QUANTIZE] for layer, picks in sorted(choices.items()) if picks.get(QUANTIZE, FLOAT) != FLOAT}
    return CompressionPlan(seed=seed, steps=(Step(name=QUANTIZE, layers=quantize),) if quantize else ())


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


class AppliedPlan(Frozen):
    """A plan with every number needed to repeat it on the same model."""

    version: Literal[1] = 1
    plan: CompressionPlan
    model_sha256: str
    data_sha256: str = ""
    tensors: dict[str, TensorQuant] = Field(default_factory=dict)
    layers: dict[str, LayerQuant] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    result_sha256: str = ""
    """SHA-256 of the file that applying this plan gives."""


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
