"""What a space may take away from a model: channels and heads, single weights, ranks. Each part of a space is off unless it is named."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from search_spaces.schemes import FLOAT, WHOLE, Frozen, SparsityPattern, SparsityScheme, share_of

CHANNELS, SPARSIFY, FACTORIZE, RECOVER = "channels", "sparsify", "factorize", "recover"
EVERY_LAYER = "*"
"""The layer whose choice is a share of the whole model, which a distribution turns into a share for each layer."""

Share = Annotated[float, Field(gt=0, lt=1)]
Shares = Annotated[tuple[Share, ...], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Distribution = Literal["per-layer", "uniform", "global", "erk", "lamp", "sensitivity"]


class _Part(Frozen):
    per_layer: dict[str, tuple[Share, ...]] = Field(default_factory=dict)
    """{layer's name or pattern: the shares that it may lose in place of the others}; none: it is left alone."""

    def shares_of(self, layer: str, usual: tuple[float, ...]) -> tuple[float, ...]:
        """The shares that a layer may lose: those of the first pattern that fits it, else the usual ones."""
        own = next((shares for pattern, shares in self.per_layer.items() if fnmatchcase(layer, pattern)), usual)
        return tuple(sorted(own))


class ChannelSpec(_Part):
    """Removing whole channels, attention heads and hidden units: the file gets smaller and faster."""

    shares: Shares = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    """Shares of its channels that a group may lose. The latency of each width is measured, and widths that save nothing are dropped."""
    align: Annotated[int, Field(ge=1, le=256)] | None = None
    """Keep multiples of this many channels, whatever was measured; left out: the widths that the measurement recommends."""
    criterion: Name = "taylor-activation"
    """What rates channels; the lowest go first. See the registry of criteria."""
    mode: Literal["plain", "dependency"] = "dependency"
    """Rate a group by its first layer alone, or by all layers that lose the channel with it."""
    distribution: Literal["per-layer", "uniform", "global", "sensitivity"] = "per-layer"
    """Search a width for each group, or one share of the whole model that is distributed over groups by this rule."""
    slimming: Annotated[float, Field(gt=0, le=1)] | None = None
    """Train the whole network first with this L1 penalty on the scales of BatchNormalization, so that `slim` can tell which channels to
    take (Liu et al., 2017, arXiv:1708.06519); left out: it is rated as it is."""
    recalibrate: bool = True
    """Compute the statistics of BatchNormalization anew after the cut."""


class SparsitySpec(_Part):
    """Setting weights to zero. The runtime multiplies zeros too: this makes a file smaller once it is packed, not faster."""

    shares: Shares = (0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of a layer's weights that may be zero; not used by patterns N:M, which say it themselves."""
    patterns: Annotated[tuple[SparsityPattern, ...], Field(min_length=1)] = ("any",)
    criterion: Name = "level"
    """What rates weights; the lowest go first."""
    pruner: Name = "level"
    """How weights go while the rest is trained: at once, by a schedule, with rewinding, … See the registry of pruners."""
    distribution: Distribution = "per-layer"

    @model_validator(mode="after")
    def _possible(self) -> SparsitySpec:
        self.schemes("")  # Says what is wrong with a pattern.
        fixed = next((pattern for pattern in self.patterns if ":" in pattern), None)
        if fixed is not None and self.distribution not in ("per-layer", "uniform"):
            raise ValueError(
                f"the pattern {fixed} makes the same share of every layer zero, so '{self.distribution}' has nothing to distribute; "
                "use the distribution per-layer or uniform"
            )
        return self

    def schemes(self, layer: str) -> tuple[SparsityScheme, ...]:
        """Every sparsity that a layer may have, the smallest first. ValueError for a pattern that cannot be."""
        found = []
        for pattern in self.patterns:
            own = self.shares_of(layer, self.shares)
            shares = own if ":" not in pattern else (share_of(pattern),) if own else ()
            found += [SparsityScheme(ratio=share, pattern=pattern) for share in shares]
        return tuple(sorted(found, key=lambda scheme: scheme.ratio))


class RankSpec(_Part):
    """Splitting a layer into smaller ones of low rank."""

    shares: Shares = (0.25, 0.5, 0.75)
    """Shares of a layer's multiplications that may be saved."""
    energies: tuple[Share, ...] = ()
    """Shares of the squared singular values that may be kept, as further options; where that saves nothing, it is not offered."""
    methods: Annotated[tuple[Name, ...], Field(min_length=1)] = ("svd", "spatial-svd", "tucker2")
    """Those that apply to a layer are its options."""


def rest_of(parameter: str) -> str:
    """The option of a space's parameter that leaves things alone, by the parameter's name: `step:layer`, or that of a layer."""
    return WHOLE if parameter.partition(":")[0] in (CHANNELS, SPARSIFY, FACTORIZE) else FLOAT
