"""What is shown of each layer before the first trial: the harm and cost of its options, the spread of its input and its weight."""

from __future__ import annotations

from pydantic import TypeAdapter

from search_spaces.space import LayerChoices
from tuner.evaluator import Evaluator
from tuner.files import layers_file, write_text
from tuner.measure.histogram import folded, histogram_of
from tuner.model.layers import LayerInfo
from tuner.results import Findings, Histogram, LayerProfile

PROFILES = TypeAdapter(list[LayerProfile])


def write_profiles(evaluator: Evaluator, findings: Findings) -> None:
    """Leave the profiles of all layers in the cache, unless an earlier run of the job did."""
    path = layers_file(evaluator.cache)
    if not path.is_file():
        write_text(path, PROFILES.dump_json(profiles(evaluator, findings)).decode())


def profiles(evaluator: Evaluator, findings: Findings) -> list[LayerProfile]:
    """One for each layer and operator type of the space, in its order."""
    infos = {info.name: info for info in evaluator.layers}
    return [_profile(evaluator, findings, layer, infos.get(layer.name)) for layer in evaluator.space.layers]


def _profile(evaluator: Evaluator, findings: Findings, layer: LayerChoices, info: LayerInfo | None) -> LayerProfile:
    evaluator.between()
    return LayerProfile(
        layer=layer.name,
        op=layer.op,
        tensor=layer.input,
        params=info.params if info else 0,
        macs=info.macs if info else None,
        divergence=findings.damage.get(layer.name, {}),
        latency_ms=findings.latency_ms.get(layer.name, {}),
        size_bytes=findings.size_bytes.get(layer.name, {}),
        activation=_activation(evaluator, layer.input),
        weight=histogram_of(evaluator.prepared.array(info.weight)) if info and info.weight else None,
    )


def _activation(evaluator: Evaluator, tensor: str) -> Histogram | None:
    """None for a tensor that calibration did not look at: an operator type's, or the row numbers that a table is asked for."""
    statistics = evaluator.statistics.get(tensor)
    return None if statistics is None else folded(statistics.edges(), statistics.histogram, statistics.zeros)
