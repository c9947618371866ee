"""Search spaces: what a job file asks for (`SpaceSpec`), and that resolved for one model (`SearchSpace`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from typing import Annotated, Any, cast

from pydantic import Field

from search_spaces.capability import Processor, RuntimeTarget, dtype_pair
from search_spaces.domains import Choice, Scalar
from search_spaces.recovery import RecoverySpec
from search_spaces.schemes import (
    CALIBRATION_PATTERN,
    FLOAT,
    WHOLE,
    ActivationScheme,
    ChannelScheme,
    Dtype,
    Frozen,
    Granularity,
    QuantScheme,
    WeightDtype,
    WeightScheme,
)
from search_spaces.structure import (
    CHANNELS,
    EVERY_LAYER,
    FACTORIZE,
    RECOVER,
    SPARSIFY,
    ChannelSpec,
    RankSpec,
    SparsitySpec,
)

Calibration = Annotated[str, Field(pattern=f"^({CALIBRATION_PATTERN})$")]
QUANTIZE = "quantize"


class SpaceSpec(Frozen):
    """A space before it meets a model: the values that every layer may take, crossed with each other."""

    name: str = "custom"
    summary: str = ""
    activations: Annotated[tuple[Dtype, ...], Field(min_length=1)] = ("u8",)
    weights: Annotated[tuple[WeightDtype, ...], Field(min_length=1)] = ("s8",)
    granularities: Annotated[tuple[Granularity, ...], Field(min_length=1)] = ("tensor", "channel")
    activation_symmetric: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    weight_symmetric: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    calibrations: Annotated[tuple[Calibration, ...], Field(min_length=1)] = ("minmax", "p99.9", "p99.99", "p99.999", "kl", "mse")
    operators: bool = True
    """Quantize Add, Mul, … between quantized layers too (one choice per operator type)."""
    accelerated_only: bool = False
    """Keep only what the processor at hand accelerates."""
    quantize: bool = True
    channels: ChannelSpec | None = None
    sparsity: SparsitySpec | None = None
    rank: RankSpec | None = None
    recovery: RecoverySpec | None = RecoverySpec()
    """Training after channels, weights or ranks were taken away; null: none."""
    keep: tuple[str, ...] = ()
    """Layers, by name or pattern, that are left alone."""

    @property
    def structural(self) -> bool:
        """Whether plans may change more than the numbers' type."""
        return any(part is not None for part in (self.channels, self.sparsity, self.rank))

    def keeps(self, layer: str) -> bool:
        return any(fnmatchcase(layer, pattern) for pattern in self.keep)

    def step_options(self) -> dict[str, dict[str, Any]]:
        """{step: the options that every plan's step has}."""
        found: dict[str, dict[str, Any]] = {}
        if self.channels is not None:
            options = {"criterion", "mode", "distribution", "recalibrate", "align", "slimming"}
            found[CHANNELS] = self.channels.model_dump(include=options, exclude_none=True)
        if self.sparsity is not None:
            found[SPARSIFY] = self.sparsity.model_dump(include={"criterion", "pruner", "distribution"})
        for name, part in ((CHANNELS, self.channels), (SPARSIFY, self.sparsity)):
            if part is not None and part.distribution != "per-layer" and self.keep:
                found[name]["keep"] = list(self.keep)
        if self.structural and self.recovery is not None:
            found[RECOVER] = self.recovery.model_dump(mode="json", exclude_defaults=True)
        return found

    def schemes(self, has_weight: bool, reads_float: bool) -> Iterator[QuantScheme]:
        """Every combination for one kind of node, in a fixed order."""
        activations: list[ActivationScheme | None] = [
            ActivationScheme(dtype=d, symmetric=s, calibration=c)
            for d, s, c in product(self.activations, self.activation_symmetric, self.calibrations)
        ]
        weights: list[WeightScheme | None] = [
            WeightScheme(dtype=d, symmetric=s, granularity=g)
            for d, s, g in product(self.weights, self.weight_symmetric, self.granularities)
        ]
        for activation, weight in product([None] if reads_float else activations, weights if has_weight else [None]):
            yield QuantScheme(activation=activation, weight=weight)


class Candidate(Frozen):
    """A layer, or all operators of one type together, that could be compressed; the model's part in resolving a space."""

    name: str
    op: str
    has_weight: bool
    input: str = ""
    """The activation it reads: layers that read the same one share its range."""


class Part(Frozen):
    """Something of a model that could be taken away from: a group of channels, a weight, a layer that can be split."""

    step: str
    layer: str
    op: str
    size: int = 0
    """Channels of a group."""
    options: tuple[str, ...] = ()
    """Ways to split a layer, the mildest of each method first."""


class LayerChoices(Frozen):
    """One parameter of a space: what one layer (or operator type) may be in one step."""

    name: str
    op: str
    input: str
    options: tuple[str, ...]
    step: str = QUANTIZE
    layer: str = ""
    """The layer, where the parameter is not called after it alone."""

    @property
    def target(self) -> str:
        """The layer, operator type or group of channels that is chosen for."""
        return self.layer or self.name

    @property
    def domain(self) -> Choice:
        return Choice(self.options)

    @property
    def rest(self) -> str:
        """The option that leaves the layer alone: always the first."""
        return self.options[0]


class Refusal(Frozen):
    """Options that were left out of a space, and why."""

    op: str
    options: int
    why: str


class SearchSpace(Frozen):
    """The choices of every layer of one model on one runtime. The parameter of a layer's quantization is named after the layer, that of
    another step `step:layer`."""

    name: str
    layers: tuple[LayerChoices, ...]
    refused: tuple[Refusal, ...] = ()
    steps: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """{step: options that it has in every plan}."""

    @property
    def size(self) -> int:
        """How many assignments there are."""
        total = 1
        for layer in self.layers:
            total *= layer.domain.size
        return total

    @cached_property
    def by_name(self) -> dict[str, LayerChoices]:
        return {layer.name: layer for layer in self.layers}

    def decode(self, assignment: Mapping[str, Scalar]) -> dict[str, dict[str, Scalar]]:
        """What the assignment means: {layer: {step: choice}}, in one canonical form.

        Layers that read the same tensor get the activation scheme of the first of them that is quantized, because a tensor
        has one range: assignments that differ only there decode to the same choices, and so to one plan. Where a layer's weight
        does not go with that activation, the first of its options that does takes its place, else float.
        ValueError names a layer that is not in the space or a value that it may not take."""
        for name, value in assignment.items():
            layer = self.by_name.get(name)
            if layer is None:
                raise ValueError(f"the space '{self.name}' has no layer '{name}'; it has {len(self.layers)}, see `tuner spaces --model`")
            if value not in layer.domain:
                raise ValueError(f"layer '{name}' may not be '{value}'; it may be {', '.join(layer.options)}")
        owner: dict[str, ActivationScheme] = {}
        decoded: dict[str, dict[str, Scalar]] = {}
        for layer in self.layers:
            choice = str(assignment.get(layer.name, layer.rest))
            if choice == layer.rest:
                continue
            if layer.step != QUANTIZE:
                decoded.setdefault(layer.target, {})[layer.step] = choice
                continue
            activation = QuantScheme.parse(choice).activation
            if activation is not None and layer.input:
                choice = _reading(layer, choice, owner.setdefault(layer.input, activation))
            if choice != FLOAT:
                decoded.setdefault(layer.name, {})[QUANTIZE] = choice
        return decoded

    def encode(self, choices: Mapping[str, Mapping[str, Scalar]]) -> dict[str, Scalar]:
        """The assignment that decodes to `choices`: one value per layer."""
        return {layer.name: choices.get(layer.target, {}).get(layer.step, layer.rest) for layer in self.layers}

    def without(self, options: Mapping[str, Iterable[str]]) -> SearchSpace:
        """The space less some options, {parameter: options}. A parameter that is left with one option only is gone."""
        gone = {name: set(names) for name, names in options.items()}
        layers = [
            layer.model_copy(update={"options": tuple(o for o in layer.options if o == layer.rest or o not in gone.get(layer.name, ()))})
            for layer in self.layers
        ]
        return self.model_copy(update={"layers": tuple(layer for layer in layers if len(layer.options) > 1)})


def _reading(layer: LayerChoices, choice: str, activation: ActivationScheme) -> str:
    """The choice with another activation; where the layer may not take that, its first option with the activation, else float."""
    if choice.split("/")[0] == activation.name:
        return choice
    wanted = QuantScheme(activation=activation, weight=QuantScheme.parse(choice).weight).name
    if wanted in layer.options:
        return wanted
    return next((option for option in layer.options if option.split("/")[0] == activation.name), FLOAT)


def resolve(
    spec: SpaceSpec, candidates: Iterable[Candidate], target: RuntimeTarget, processor: Processor, parts: Iterable[Part] = ()
) -> SearchSpace:
    """The space of one model: for every part what may be taken away from it, then for every candidate every combination of `spec` that the
    runtime allows. The option that leaves a layer alone comes first."""
    layers = [layer for part in parts if not spec.keeps(part.layer) and (layer := _structural(spec, part)) is not None]
    refused: dict[tuple[str, str], int] = {}
    for candidate in candidates if spec.quantize else ():
        if spec.keeps(candidate.name) or (not candidate.has_weight and not spec.operators):
            continue
        options = [FLOAT]
        reads_float = candidate.has_weight and FLOAT in target.layers[candidate.op].activation
        for scheme in spec.schemes(candidate.has_weight, reads_float):
            why = target.refusal(candidate.op, scheme) or _not_accelerated(spec, target, processor, candidate.op, scheme)
            if why is None:
                options.append(scheme.name)
            else:
                refused[candidate.op, why] = refused.get((candidate.op, why), 0) + 1
        if len(options) > 1:
            layers.append(LayerChoices(name=candidate.name, op=candidate.op, input=candidate.input, options=tuple(options)))
    reasons = tuple(Refusal(op=op, options=count, why=why) for (op, why), count in refused.items())
    return SearchSpace(name=spec.name, layers=tuple(layers), refused=reasons, steps=spec.step_options())


def _structural(spec: SpaceSpec, part: Part) -> LayerChoices | None:
    """The parameter for one part; None where nothing may be taken away from it."""
    options: list[str] = []
    if part.step == CHANNELS and spec.channels is not None:
        options = _widths(spec.channels, part)
    elif part.step == SPARSIFY and spec.sparsity is not None:
        options = [scheme.name for scheme in spec.sparsity.schemes(part.layer)]
    elif part.step == FACTORIZE and spec.rank is not None:
        options = list(part.options)
    if not options:
        return None
    name = f"{part.step}:{part.layer}"
    return LayerChoices(name=name, op=part.op, input="", options=(WHOLE, *options), step=part.step, layer=part.layer)


def _widths(spec: ChannelSpec, part: Part) -> list[str]:
    """The widths that a group may have, widest first; a share of channels that is no multiple of `align` is rounded up to one."""
    if part.layer == EVERY_LAYER:
        return [ChannelScheme(cut=share).name for share in spec.shares]
    step = spec.align or 1
    kept = [-(-round(part.size * (1 - share)) // step) * step for share in spec.shares_of(part.layer, spec.shares)]
    return [ChannelScheme(keep=keep).name for keep in dict.fromkeys(kept) if 1 <= keep < part.size]


def _not_accelerated(spec: SpaceSpec, target: RuntimeTarget, processor: Processor, op: str, scheme: QuantScheme) -> str | None:
    if not spec.accelerated_only or scheme.activation is None:
        return None
    if not target.has_kernel(op, scheme):
        return f"{target.runtime} has no integer kernel for {op} with {dtype_pair(scheme)}"
    head = cast(str, scheme.activation.dtype)
    if scheme.weight is not None and dtype_pair(scheme) not in processor.accelerated:
        return f"{processor.name} does not accelerate {dtype_pair(scheme)}"
    if scheme.weight is None and not any(pair.startswith(f"{head}/") for pair in processor.accelerated):
        return f"{processor.name} does not accelerate {head}"
    return None
