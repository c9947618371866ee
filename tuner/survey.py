"""What is found out about a model before the first trial: which layers resist, and what each choice would save.

Harm: every layer is quantized alone once, at its reference scheme, and the change of the output is measured. The other schemes
of the layer are scaled from that by their predicted noise, because for small noise the change of the output grows with the
noise's energy. Latency: see cost_table.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from search_spaces.schemes import FLOAT, WHOLE, ActivationScheme, QuantScheme, WeightScheme
from search_spaces.space import QUANTIZE, LayerChoices, SearchSpace
from search_spaces.structure import EVERY_LAYER, SPARSIFY
from tuner.compress.quantization.affine import dequantize, quantize, weight_scale
from tuner.compress.quantization.placement import OPERATOR_PREFIX
from tuner.compress.quantization.qdq import weight_axis
from tuner.compress.quantization.ranges import expected_error
from tuner.cost_table import latency_table
from tuner.errors import DataError
from tuner.evaluator import Evaluator, first_output
from tuner.files import write_text
from tuner.measure.accuracy import run_rows
from tuner.measure.divergence import divergence
from tuner.measure.runtime import Session
from tuner.plan import CompressionPlan, Step, WeightQuant
from tuner.results import Findings, SensitivityRow
from tuner.structure_harm import LEAST_HARM, MOST_HARM, expected, harm_row, harms, measured_options, packed_bytes, structural_layers
from tuner.structure_table import StructureTable, dominated, structure_table

MACS_BUDGET = 4e11
"""Multiply-accumulates that the sensitivity analysis may spend in all (about 20 s on one core). Its rows follow from this and not
from the clock, so that the same job always sees the same figures."""
LEAST_ROWS, MOST_ROWS = 16, 128
Progress = Callable[[int, int], None]


def survey(evaluator: Evaluator, progress: Progress = lambda _done, _total: None) -> Findings:
    """Findings for the job's model and space, measured now or read from the cache of an earlier run."""
    path = evaluator.cache / "findings.json"
    if path.is_file():
        return Findings.model_validate_json(path.read_text())
    latency = latency_table(evaluator)
    saved = structure_table(evaluator)
    rows, damage, discordance = _Sensitivity(evaluator, progress).run(latency.options)
    sizes, fixed_bytes = _sizes(evaluator)
    found = Findings(
        sensitivity=tuple(rows),
        damage=damage,
        latency_ms=latency.options | _against_whole(saved, "ms"),
        size_bytes=sizes | _against_whole(saved, "params", 4),
        packed_bytes=_packed(evaluator),
        macs_saved=_against_whole(saved, "macs"),
        params_saved=_against_whole(saved, "params"),
        dominated=dominated(saved) if _free_widths(evaluator) else {},
        fixed_ms=latency.fixed_ms,
        fixed_bytes=fixed_bytes,
        links=latency.links,
        discordance=discordance,
        macs=evaluator.macs,
        params=evaluator.model.parameters,
    )
    write_text(path, found.model_dump_json())
    return found


def sensitivity_rows(evaluator: Evaluator) -> int:
    """On how many calibration rows each layer's harm is measured."""
    work = max(1, evaluator.macs * (surveyed_models(evaluator.space) + 1))
    return min(len(evaluator.roles.calibration), int(np.clip(MACS_BUDGET // work, LEAST_ROWS, MOST_ROWS)))


def surveyed_models(space: SearchSpace) -> int:
    """How many models are run to see each layer's harm."""
    structural = structural_layers(space.layers)
    return sum(len(measured_options(layer)) for layer in structural) + len(space.layers) - len(structural) + 1


def reference_schemes(evaluator: Evaluator) -> dict[str, str]:
    """Each quantizable layer's reference: its first option per channel with the plain range, the usual first try."""
    return {layer.name: _reference(layer) for layer in evaluator.space.layers if layer.step == QUANTIZE}


def _reference(layer: LayerChoices) -> str:
    options = [option for option in layer.options if option != FLOAT]
    return next((o for o in options if "minmax" in o and o.endswith("-channel")), options[0])


class _Sensitivity:
    def __init__(self, evaluator: Evaluator, progress: Progress) -> None:
        self.evaluator, self.progress = evaluator, progress
        self.rows = np.arange(sensitivity_rows(evaluator))
        self.noise = _Noise(evaluator)
        self.done = 0

    def run(self, latency: dict[str, dict[str, float]]) -> tuple[list[SensitivityRow], dict[str, dict[str, float]], float]:
        evaluator, space = self.evaluator, self.evaluator.space
        references = reference_schemes(evaluator)
        outputs = self._outputs(evaluator.baseline)
        layers = {layer.name: layer for layer in evaluator.layers}
        everything = self._changed(references)
        rows, damage = self._structural(outputs)
        for layer in space.layers:
            if layer.step != QUANTIZE:
                continue
            self._told()
            scheme = references[layer.name]
            if layer.name.startswith(OPERATOR_PREFIX):
                without = self._changed({name: s for name, s in references.items() if name != layer.name})
                harm = min(divergence(everything, outputs), MOST_HARM) - min(divergence(without, outputs), MOST_HARM)
            else:
                harm = divergence(self._changed({layer.name: scheme}), outputs)
            harm = min(max(harm, LEAST_HARM), MOST_HARM)
            damage[layer.name] = {option: min(harm * self.noise.ratio(layer, option, scheme), MOST_HARM) for option in layer.options}
            info = layers.get(layer.name)
            rows.append(
                SensitivityRow(
                    layer=layer.name,
                    op=layer.op,
                    scheme=scheme,
                    divergence=harm,
                    params=info.params if info else 0,
                    macs=info.macs if info else None,
                    float_ms=latency.get(layer.name, {}).get(FLOAT),
                    scheme_ms=latency.get(layer.name, {}).get(scheme),
                )
            )
        return rows, damage, self._discordance(outputs, everything)

    def _structural(self, outputs: NDArray[np.float32]) -> tuple[list[SensitivityRow], dict[str, dict[str, float]]]:
        rows, damage = [], {}
        layers = {layer.name: layer for layer in self.evaluator.layers}
        for parameter, harm in harms(self.evaluator, outputs, self._outputs_of, self._told):
            info = layers.get(parameter.target)
            costs = {"params": info.params, "macs": info.macs} if info else {}
            rows.append(harm_row(parameter, harm, **costs))
            damage[parameter.name] = expected(self.evaluator, harm)
        return rows, damage

    def _told(self) -> None:
        self.done += 1
        self.progress(self.done, surveyed_models(self.evaluator.space))

    def _changed(self, schemes: dict[str, str]) -> NDArray[np.float32]:
        return self._outputs_of(CompressionPlan(steps=(Step(name=QUANTIZE, layers=dict(schemes)),) if schemes else ()))

    def _outputs_of(self, plan: CompressionPlan) -> NDArray[np.float32]:
        return self._outputs(Session(self.evaluator.build(plan, {})[1], self.evaluator.threads))

    def _outputs(self, session: Session) -> NDArray[np.float32]:
        self.evaluator.between()
        data = self.evaluator.roles.calibration
        return np.concatenate(list(run_rows(data, first_output(session), self.rows, self.evaluator.batch(data))))

    def _discordance(self, outputs: NDArray[np.float32], everything: NDArray[np.float32]) -> float:
        """Mean absolute paired difference of the first constraint's metric, original against all layers at their reference."""
        metric = next((metric for metric in self.evaluator.metrics if metric.score), None)
        labels = self.evaluator.roles.calibration.labels(self.rows)
        if metric is None or (metric.needs_labels and labels is None):
            return 0.0
        try:
            before, after = metric.per_sample(outputs, labels, outputs), metric.per_sample(everything, labels, outputs)
        except DataError:  # Calibration rows are not scored otherwise, so their labels need not fit.
            return 0.0
        assert before is not None and after is not None
        return float(np.abs(before - after).mean())


class _Noise:
    """Predicted relative noise energy that a scheme adds to a layer's output: that of its input plus that of its weight."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._inputs: dict[tuple[str, ActivationScheme], float] = {}
        self._weights: dict[tuple[str, WeightScheme], float] = {}

    def ratio(self, layer: LayerChoices, option: str, reference: str) -> float:
        if option in (FLOAT, reference):
            return 0.0 if option == FLOAT else 1.0
        return self._energy(layer, option) / max(self._energy(layer, reference), LEAST_HARM)

    def _energy(self, layer: LayerChoices, option: str) -> float:
        scheme = QuantScheme.parse(option)
        energy = 0.0
        if scheme.activation is not None:
            tensors = self._tensors(layer)
            energy += sum(self._input(tensor, scheme.activation) for tensor in tensors) / max(len(tensors), 1)
        if scheme.weight is not None:
            energy += self._weight(layer.name, scheme.weight)
        return energy

    def _tensors(self, layer: LayerChoices) -> list[str]:
        """The tensors whose range the layer's scheme sets: what it reads, for an operator type all that its nodes read."""
        if layer.input:
            return [layer.input]
        statistics = self.evaluator.statistics
        nodes = self.evaluator.prepared.nodes.values()
        return [name for node in nodes if OPERATOR_PREFIX + node.op_type == layer.name for name in node.input if name in statistics]

    def _input(self, tensor: str, scheme: ActivationScheme) -> float:
        key = (tensor, scheme)
        if key not in self._inputs:
            statistics = self.evaluator.statistics[tensor]
            low, high = self.evaluator.compressor.range_of(tensor, scheme)
            power = statistics.variance + statistics.mean**2
            error = expected_error(statistics, low, high, scheme.dtype, scheme.symmetric)
            self._inputs[key] = error / power if power > 0 else 0.0
        return self._inputs[key]

    def _weight(self, layer: str, scheme: WeightScheme) -> float:
        """Mean over output channels of the error's share of the channel's energy: what follows a layer tends to bring its channels
        to one scale, so that the loss of a small channel counts as much as that of a large one."""
        key = (layer, scheme)
        if key not in self._weights:
            model = self.evaluator.prepared
            info = next(info for info in self.evaluator.layers if info.name == layer)
            assert info.weight is not None
            weight = model.array(info.weight)
            channels = weight_axis(model.nodes[layer], weight.ndim)
            axis = channels if scheme.granularity == "channel" else None
            scale, zero = weight_scale(weight, axis, scheme.dtype, scheme.symmetric)
            error = dequantize(quantize(weight, scale, zero, scheme.dtype, axis), scale, zero, axis) - weight
            others = tuple(index for index in range(weight.ndim) if index != channels)
            energy, power = (np.square(each, dtype=np.float64).sum(axis=others) for each in (error, weight))
            self._weights[key] = float(np.mean(np.divide(energy, power, out=np.zeros_like(power), where=power > 0)))
        return self._weights[key]


def _against_whole(table: StructureTable, what: str, unit: float = 1) -> dict[str, dict[str, float]]:
    """{parameter: {option: cost against leaving it alone}}, below zero where it saves."""
    return {
        name: {WHOLE: 0.0} | {option: -unit * float(getattr(saved, what)) for option, saved in options.items()}
        for name, options in table.saved.items()
    }


def _packed(evaluator: Evaluator) -> dict[str, dict[str, float]]:
    weights = {info.name: int(np.prod(info.weight_shape)) for info in evaluator.layers}
    zeros = [layer for layer in evaluator.space.layers if layer.step == SPARSIFY]
    every = sum(weights.values())
    return {layer.name: packed_bytes(layer, every if layer.target == EVERY_LAYER else weights[layer.target]) for layer in zeros}


def _free_widths(evaluator: Evaluator) -> bool:
    """Whether the clock says which widths are worth trying: where speed is asked for, and no alignment was."""
    channels = evaluator.spec.channels
    return evaluator.job.objectives[0] == "latency" and (channels is None or channels.align is None)


def _sizes(evaluator: Evaluator) -> tuple[dict[str, dict[str, float]], float]:
    """({layer: {option: bytes of its weight in the file}}, bytes of all the rest)."""
    infos = {info.name: info for info in evaluator.layers}
    found: dict[str, dict[str, float]] = {}
    for layer in evaluator.space.layers:
        if layer.step != QUANTIZE:
            continue
        info = infos.get(layer.name)
        found[layer.name] = {option: _weight_bytes(evaluator, info.name, option) if info else 0.0 for option in layer.options}
    return found, float(evaluator.prepared.size_bytes - sum(options.get(FLOAT, 0.0) for options in found.values()))


def _weight_bytes(evaluator: Evaluator, layer: str, option: str) -> float:
    model = evaluator.prepared
    info = next(info for info in evaluator.layers if info.name == layer)
    assert info.weight is not None
    elements = float(np.prod(info.weight_shape))
    if option == FLOAT:
        return 4 * elements
    scheme = QuantScheme.parse(option)
    assert scheme.weight is not None
    axis = weight_axis(model.nodes[layer], len(info.weight_shape)) if scheme.weight.granularity == "channel" else None
    quant = WeightQuant(initializer=info.weight, dtype=scheme.weight.dtype, symmetric=scheme.weight.symmetric, axis=axis)
    channels = info.weight_shape[quant.axis] if quant.axis is not None else 1
    return elements + 5 * channels
