"""What can be done to one layer, as frozen values with short names.

The name of a scheme is its canonical spelling: the value an assignment carries, a trial table shows and a job file may
write. Before the slash stands the activation, after it the weight: `u8-asym-mse/s8-sym-channel`; `u8-asym-mse` for an operator
without a weight; `float/s8-sym-tensor` where only the weight is quantized. `parse` and `name` are inverse.
"""

from __future__ import annotations

import re
from typing import Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

FLOAT = "float"
"""The option that leaves a layer alone; it is in every space."""

Dtype = Literal["u8", "s8", "u16", "s16"]
WeightDtype = Literal["s8", "u8"]
Granularity = Literal["tensor", "channel"]

CALIBRATION_PATTERN = r"minmax|kl|mse|p[0-9]{1,2}(?:\.[0-9]+)?"


class Frozen(BaseModel):
    """Base of every typed value: immutable, and a key that is not known is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ActivationScheme(Frozen):
    """How a tensor that flows between layers is quantized (always one scale per tensor)."""

    dtype: Dtype = "u8"
    symmetric: bool = False
    calibration: str = Field(default="minmax", pattern=f"^({CALIBRATION_PATTERN})$")

    @property
    def kind(self) -> str:
        return f"{self.dtype}-{_symmetry(self.symmetric)}"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.calibration}"


class WeightScheme(Frozen):
    """How a layer's weight is quantized; its range is always the exact extremes of the weight."""

    dtype: WeightDtype = "s8"
    symmetric: bool = True
    granularity: Granularity = "channel"

    @property
    def name(self) -> str:
        return f"{self.dtype}-{_symmetry(self.symmetric)}-{self.granularity}"


class QuantScheme(Frozen):
    """One layer's quantization: of what it reads, of its weight, or of both."""

    activation: ActivationScheme | None = None
    weight: WeightScheme | None = None

    @model_validator(mode="after")
    def _something(self) -> QuantScheme:
        if self.activation is None and self.weight is None:
            raise ValueError(f"a scheme quantizes the activation, the weight or both; to leave a layer alone, write '{FLOAT}'")
        return self

    @property
    def name(self) -> str:
        return _join(self.activation.name if self.activation else FLOAT, self.weight)

    @property
    def kind(self) -> str:
        """What decides which kernel runs: the name without the calibration."""
        return _join(self.activation.kind if self.activation else FLOAT, self.weight)

    @classmethod
    def parse(cls, name: str) -> Self:
        """The scheme that `name` spells. ValueError where it spells none."""
        match = _NAME.fullmatch(name)
        if match is None or name == FLOAT:
            raise ValueError(f"'{name}' is no quantization scheme; write one like 'u8-asym-minmax/s8-sym-channel', or '{FLOAT}'")
        activation = weight = None
        if match["a"]:
            activation = ActivationScheme(dtype=cast(Dtype, match["a"]), symmetric=match["s"] == "sym", calibration=match["c"])
        if match["w"]:
            granularity = cast(Granularity, match["g"])
            weight = WeightScheme(dtype=cast(WeightDtype, match["w"]), symmetric=match["t"] == "sym", granularity=granularity)
        return cls(activation=activation, weight=weight)


_NAME = re.compile(
    rf"(?:float|(?P<a>u8|s8|u16|s16)-(?P<s>sym|asym)-(?P<c>{CALIBRATION_PATTERN}))"
    r"(?:/(?P<w>s8|u8)-(?P<t>sym|asym)-(?P<g>tensor|channel))?"
)


def _symmetry(symmetric: bool) -> str:
    return "sym" if symmetric else "asym"


def _join(activation: str, weight: WeightScheme | None) -> str:
    return activation if weight is None else f"{activation}/{weight.name}"
