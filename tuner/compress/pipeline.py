"""Compression: a plan and the calibration statistics in, a graph out.

Two halves. `resolve` turns a decision into numbers (it needs statistics), `build` turns the numbers into a graph (it needs
none). A trial does both; replaying a plan does only the second. What channels, ranks and zeros a plan asks for was made before
(restructure.py): a compressor starts from the model that came out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx

from search_spaces.capability import RuntimeTarget
from search_spaces.schemes import FLOAT, ActivationScheme, QuantScheme
from search_spaces.space import QUANTIZE
from tuner.compress.decomposition import nodes_of
from tuner.compress.fusion import prepare, unfold
from tuner.compress.quantization.affine import choose_scale
from tuner.compress.quantization.placement import OPERATOR_PREFIX, Placement, QuantizedTensor, place
from tuner.compress.quantization.qdq import WeightCache, weight_axis, write_quantized
from tuner.compress.quantization.ranges import estimate_range
from tuner.compress.quantization.statistics import TensorStatistics
from tuner.compress.structure import Arrays, restored
from tuner.errors import PlanError
from tuner.model.graph import Model, serialize
from tuner.model.layers import weight_of
from tuner.plan import STRUCTURE, AppliedPlan, CompressionPlan, LayerQuant, Structure, TensorQuant, WeightQuant

KNOWN_STEPS = (*STRUCTURE, QUANTIZE)


class Compressor:
    """Applies plans to one model. Ranges and quantized weights are computed once and kept."""

    def __init__(
        self,
        original: Model,
        prepared: Model,
        statistics: Mapping[str, TensorStatistics],
        target: RuntimeTarget,
        data_sha256: str = "",
        structure: Structure | None = None,
    ) -> None:
        """prepared: the model that is quantized. structure: how it came from the original, if anything was taken away from that; the
        statistics are of the prepared model."""
        self.original, self.prepared, self.statistics, self.target = original, prepared, statistics, target
        self.data_sha256, self.structure = data_sha256, structure
        self._weights = WeightCache()
        self._ranges: dict[tuple[str, ActivationScheme], tuple[float, float]] = {}

    def resolve(self, plan: CompressionPlan) -> AppliedPlan:
        """Every number that applying `plan` needs. PlanError names a step or layer that is not known."""
        check_steps(plan)
        asked = {name: _scheme(name, str(value)) for name, value in plan.layers(QUANTIZE).items() if value != FLOAT}
        choices = {node: scheme for name, scheme in asked.items() for node in nodes_of(self.prepared, name) or [name]}
        placement = place(self.prepared, choices, self.target)
        for name, scheme in choices.items():
            self._check_choice(name, scheme, placement)
        return AppliedPlan(
            plan=plan,
            model_sha256=self.original.sha256,
            data_sha256=self.data_sha256,
            tensors={name: self._tensor(tensor) for name, tensor in placement.tensors.items()},
            layers={name: self._layer(name, scheme) for name, scheme in placement.nodes.items()},
            structure=self.structure,
        )

    def _check_choice(self, name: str, scheme: QuantScheme, placement: Placement) -> None:
        """An operator type may have nothing to join; a layer that is named must be there."""
        op = name.removeprefix(OPERATOR_PREFIX)
        if op == name and name not in placement.nodes:
            raise PlanError(f"the plan quantizes '{name}', which is no quantizable layer of this model; see `tuner inspect`")
        op = op if op != name else self.prepared.nodes[name].op_type
        why = self.target.refusal(op, scheme)
        if why is not None:
            raise PlanError(f"the plan makes '{name}' {scheme.name}, which is not possible: {why}")

    def build(self, applied: AppliedPlan) -> bytes:
        """The compressed model's file. The plan that leaves everything alone gives the original's bytes."""
        return _build(self.original, self.prepared, applied, self._weights)

    def range_of(self, tensor: str, scheme: ActivationScheme) -> tuple[float, float]:
        """The calibrated range (low, high) of a tensor under a scheme."""
        key = (tensor, scheme)
        if key not in self._ranges:
            statistics = self.statistics.get(tensor)
            if statistics is None:
                raise PlanError(f"tensor '{tensor}' was not observed during calibration, so it has no range; calibrate again")
            self._ranges[key] = estimate_range(statistics, scheme.calibration, scheme.dtype, scheme.symmetric)
        return self._ranges[key]

    def _tensor(self, tensor: QuantizedTensor) -> TensorQuant:
        low, high = self.range_of(tensor.root, tensor.scheme)
        scale, zero_point = choose_scale(low, high, tensor.scheme.dtype, tensor.scheme.symmetric)
        return TensorQuant(dtype=tensor.scheme.dtype, scale=float(scale), zero_point=int(zero_point), readers=tensor.readers)

    def _layer(self, name: str, scheme: QuantScheme) -> LayerQuant:
        if scheme.weight is None:
            return LayerQuant(scheme=scheme.name)
        node = self.prepared.nodes[name]
        weight = weight_of(self.prepared, node)
        assert weight is not None
        axis = weight_axis(node, len(self.prepared.initializers[weight].dims)) if scheme.weight.granularity == "channel" else None
        quant = WeightQuant(initializer=weight, dtype=scheme.weight.dtype, symmetric=scheme.weight.symmetric, axis=axis)
        return LayerQuant(scheme=scheme.name, weight=quant)


def replay(original: Model, applied: AppliedPlan, tensors: Arrays | None = None) -> bytes:
    """The file that `applied` made, again, from the original model and the weights that the plan changed, which only a plan with a
    structure has. PlanError if it is not that model or the bytes differ."""
    if original.sha256 != applied.model_sha256:
        raise PlanError(
            f"the plan was made for the model with SHA-256 {applied.model_sha256[:12]}…, got one with {original.sha256[:12]}…; "
            "give the original file"
        )
    check_steps(applied.plan)
    if applied.structure is not None and tensors is None:
        raise PlanError("the plan changed weights, which lie in a file beside it; give its .tensors.safetensors too")
    try:
        prepared = prepare(original if applied.structure is None else restored(unfold(original), applied.structure, tensors or {}))
        data = _build(original, prepared, applied, WeightCache())
    except PlanError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        broken = f"the plan holds a value that cannot be applied ({error}); was it edited? Give the file as the job left it"
        raise PlanError(broken) from error
    found = hashlib.sha256(data).hexdigest()
    if applied.result_sha256 and found != applied.result_sha256:
        promised = applied.result_sha256
        raise PlanError(f"applying the plan gave SHA-256 {found[:12]}…, the plan promises {promised[:12]}…; was it edited?")
    return data


def _scheme(name: str, value: str) -> QuantScheme:
    try:
        return QuantScheme.parse(value)
    except ValueError as error:
        raise PlanError(f"the plan's choice for '{name}' cannot be read: {error}") from error


def check_steps(plan: CompressionPlan) -> None:
    """PlanError if a step is not known."""
    for step in plan.steps:
        if step.name not in KNOWN_STEPS:
            raise PlanError(f"the plan has the step '{step.name}', which this version does not know; known: {', '.join(KNOWN_STEPS)}")


def _build(original: Model, prepared: Model, applied: AppliedPlan, weights: WeightCache) -> bytes:
    if applied.plan.identity:
        return original.data
    proto: onnx.ModelProto = write_quantized(prepared, applied, weights) if applied.layers else prepared.proto
    return serialize(proto)
