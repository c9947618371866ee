"""What can be done to one layer, as frozen values with short names.

The name of a scheme is its canonical spelling: the value an assignment carries, a trial table shows and a job file may
write. Before the slash stands the activation, after it the weight: `u8-asym-mse/s8-sym-channel`; `u8-asym-mse` for an operator
without a weight; `float/s8-sym-tensor` where only the weight is quantized. `parse` and `name` are inverse.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

FLOAT = "float"
"""The option of quantization that leaves a layer alone."""
WHOLE = "whole"
"""The option of everything else that leaves a layer alone: no channel, weight or rank is taken."""

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


SparsityPattern = Annotated[str, Field(pattern=r"^(any|[1-9][0-9]?:[1-9][0-9]?|[1-9][0-9]?x[1-9][0-9]?)$")]


class SparsityScheme(Frozen):
    """Which share of a layer's weights is zero, and where zeros may stand.

    pattern: `any` (anywhere), `N:M` (of M weights in a row along the inputs of an output, N are kept), `AxB` (blocks of A outputs
    and B inputs as a whole)."""

    ratio: Annotated[float, Field(gt=0, lt=1)]
    pattern: SparsityPattern = "any"

    @model_validator(mode="after")
    def _consistent(self) -> SparsityScheme:
        share = self.ratio if self.kept is None else share_of(self.pattern)
        if abs(self.ratio - share) > 1e-6:
            raise ValueError(f"the pattern {self.pattern} makes {share:g} of the weights zero, got ratio {self.ratio:g}")
        return self

    @property
    def kept(self) -> tuple[int, int] | None:
        """(N, M) of a pattern N:M."""
        kept, colon, of = self.pattern.partition(":")
        return (int(kept), int(of)) if colon else None

    @property
    def block(self) -> tuple[int, int]:
        """(A, B) of a pattern AxB; (1, 1) for the others."""
        a, cross, b = self.pattern.partition("x")
        return (int(a), int(b)) if cross else (1, 1)

    @property
    def name(self) -> str:
        return f"{self.ratio:g}-{self.pattern}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The scheme that `name` spells. ValueError where it spells none."""
        ratio, dash, pattern = name.partition("-")
        if not dash or not _NUMBER.fullmatch(ratio):
            raise ValueError(f"'{name}' is no sparsity; write the share of zeros and a pattern like '0.5-any', or '{WHOLE}'")
        return cls(ratio=float(ratio), pattern=pattern)


def share_of(pattern: str) -> float:
    """The share of zeros that a pattern N:M makes. ValueError where it makes none."""
    kept, _, of = pattern.partition(":")
    if int(kept) >= int(of):
        raise ValueError(f"a pattern N:M keeps N of M weights with N < M, got {pattern}")
    return 1 - int(kept) / int(of)


class RankScheme(Frozen):
    """How a layer is split into smaller ones: by a method, and either the share of its multiplications that is to be saved or the share of
    the squared singular values that is to be kept."""

    method: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    energy: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> RankScheme:
        if (self.ratio is None) == (self.energy is None):
            raise ValueError("a split names either the share of multiplications to save or the share of energy to keep")
        return self

    @property
    def name(self) -> str:
        return f"{self.method}-{self.ratio:g}" if self.energy is None else f"{self.method}-e{self.energy:g}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The scheme that `name` spells. ValueError where it spells none."""
        method, dash, number = name.rpartition("-")
        share = number.removeprefix("e")
        if not dash or not _NUMBER.fullmatch(share):
            raise ValueError(
                f"'{name}' is no split; write a method and the share of MACs it saves like 'svd-0.5', "
                f"or the share of energy it keeps like 'svd-e0.9', or '{WHOLE}'"
            )
        return cls(method=method, energy=float(share)) if number != share else cls(method=method, ratio=float(share))


class ChannelScheme(Frozen):
    """How many channels (or heads) of a group stay; or, for the whole model, which share of its channels goes."""

    keep: Annotated[int, Field(ge=1)] | None = None
    cut: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> ChannelScheme:
        if (self.keep is None) == (self.cut is None):
            raise ValueError("a choice of channels names either how many stay or which share goes")
        return self

    @property
    def name(self) -> str:
        return f"keep-{self.keep}" if self.cut is None else f"cut-{self.cut:g}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The scheme that `name` spells. ValueError where it spells none."""
        word, _, number = name.partition("-")
        if word == "keep" and number.isdecimal() and int(number) >= 1:
            return cls(keep=int(number))
        if word == "cut" and _NUMBER.fullmatch(number):
            return cls(cut=float(number))
        raise ValueError(f"'{name}' is no choice of channels; write one like 'keep-12' or 'cut-0.3', or '{WHOLE}'")


_NUMBER = re.compile(r"0(\.[0-9]+)?")
