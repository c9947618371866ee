"""What taking channels and ranks away saves: latency on the target, multiplications, parameters, measured before the search.

Groups that share no layer are changed together, all by the same share, so that a few models tell of every width of every group. A kernel
belongs to the layer that it runs, a layer to the group or split that changed it. Fewer multiplications are not always less time: what
saves nothing against a milder option is left out of the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from search_spaces.domains import Scalar
from search_spaces.schemes import Frozen
from search_spaces.space import LayerChoices
from search_spaces.structure import CHANNELS, EVERY_LAYER, FACTORIZE
from tuner.compress.fusion import prepare
from tuner.compress.pruning.channels import find_groups
from tuner.cost_table import cost_cache
from tuner.errors import StorageError
from tuner.evaluator import Evaluator
from tuner.files import write_text
from tuner.measure.profile import attribute_times, paired_kernel_times
from tuner.measure.runtime import environment
from tuner.model.layers import LayerInfo, layer_table
from tuner.plan import CompressionPlan, Step, digest_of

VERSION = 2
TIMING = (0.4, 9, 0.02)
"""Seconds, blocks and precision of timing one model."""
SAVES = 0.005
"""An option must save this share of the model's latency beyond a milder one to be worth trying."""


Costs = tuple[float, float, float]
"""Milliseconds, MACs, parameters."""


class Saved(Frozen):
    """What an option saves against leaving the layer alone."""

    ms: float = 0.0
    macs: float = 0.0
    params: float = 0.0


class StructureTable(Frozen):
    """{parameter: {option: what it saves}} of every structural parameter; zeros save nothing here."""

    saved: dict[str, dict[str, Saved]]
    whole_ms: float
    """The original's latency."""


def structure_table(evaluator: Evaluator) -> StructureTable:
    """The table for the job's space, model and target; read from the user's cache where it was measured before."""
    layers = [layer for layer in evaluator.space.layers if layer.step in (CHANNELS, FACTORIZE)]
    if not layers:
        return StructureTable(saved={}, whole_ms=0.0)
    timed = "latency" in evaluator.job.objectives
    facts = environment()
    key = digest_of(
        [VERSION, timed, facts["processor"], facts["onnxruntime"], evaluator.job.target.model_dump(), evaluator.model.sha256]
        + [_channel_options(evaluator), *([layer.name, list(layer.options)] for layer in layers)]
        + [[name, list(array.shape)] for name, array in sorted(evaluator.feed.items())]
    )
    path = cost_cache() / f"{key}.json"
    if path.is_file():
        return StructureTable.model_validate_json(path.read_text())
    table = _Measurement(evaluator, timed).run(layers)
    with suppress(StorageError):  # A home that cannot be written costs the next job a measurement, not this one its life.
        write_text(path, table.model_dump_json())
    return table


def dominated(table: StructureTable) -> dict[str, tuple[str, ...]]:
    """{parameter: options that take more away than another one and save no time beyond it}."""
    found: dict[str, tuple[str, ...]] = {}
    least = SAVES * table.whole_ms
    for name, options in table.saved.items():
        if name.startswith(f"{FACTORIZE}:"):
            found[name] = tuple(option for option, saved in options.items() if saved.ms <= least)
            continue
        best, gone = 0.0, []
        for option, saved in options.items():  # The mildest first.
            if saved.ms < best + least:
                gone.append(option)
            else:
                best = saved.ms
        found[name] = tuple(gone)
    return {name: gone for name, gone in found.items() if gone}


def structure_models(layers: Iterable[LayerChoices]) -> int:
    """About how many models are timed for a table."""
    return sum(max((len(layer.options) - 1 for layer in layers if layer.step == step), default=0) * 2 for step in (CHANNELS, FACTORIZE))


class _Measurement:
    def __init__(self, evaluator: Evaluator, timed: bool) -> None:
        self.evaluator, self.timed = evaluator, timed
        base = evaluator.structures.base
        self.groups = {group.name: group for group in find_groups(base).groups} if evaluator.spec.channels else {}
        self.saved: dict[str, dict[str, Saved]] = {}
        self.whole_ms = evaluator.time(evaluator.timed_baseline, *TIMING).baseline_ms if timed else 0.0
        self.original = prepare(base)
        self.infos = layer_table(self.original, evaluator.row_shapes)

    def run(self, layers: Sequence[LayerChoices]) -> StructureTable:
        for layer in layers:
            self.saved[layer.name] = {}
            if layer.target == EVERY_LAYER:
                for option in layer.options[1:]:
                    self._together([(layer, option)])
        single = [layer for layer in layers if layer.target != EVERY_LAYER]
        for family in self._families(single):
            for index in range(1, max(len(layer.options) for layer in family)):
                self._together([(layer, layer.options[index]) for layer in family if index < len(layer.options)])
        order = {layer.name: layer.options for layer in layers}
        saved = {name: {o: options[o] for o in order[name] if o in options} for name, options in self.saved.items()}
        return StructureTable(saved=saved, whole_ms=self.whole_ms)

    def _families(self, layers: Sequence[LayerChoices]) -> list[list[LayerChoices]]:
        """Parameters that change no layer in common stand in one family; the first family with room takes each."""
        families: list[tuple[list[LayerChoices], set[str]]] = []
        for layer in layers:
            nodes = set(self._nodes(layer))
            home = next((family for family in families if not family[1] & nodes and family[0][0].step == layer.step), None)
            if home is None:
                families.append(([layer], nodes))
            else:
                home[0].append(layer)
                home[1].update(nodes)
        return [family for family, _ in families]

    def _nodes(self, layer: LayerChoices) -> tuple[str, ...]:
        """The nodes of the original whose cost an option changes."""
        if layer.target == EVERY_LAYER:
            return tuple(info.name for info in self.infos)
        return self.groups[layer.target].nodes if layer.step == CHANNELS else (layer.target,)

    def _together(self, chosen: Sequence[tuple[LayerChoices, str]]) -> None:
        """Measure one model with all these options."""
        self.evaluator.between()
        steps: dict[str, dict[str, Scalar]] = {layer.step: {} for layer, _ in chosen}
        for layer, option in chosen:
            steps[layer.step][layer.target] = option
        options = {CHANNELS: _channel_options(self.evaluator)}
        plan = CompressionPlan(steps=tuple(Step(name=n, layers=picks, options=options.get(n, {})) for n, picks in steps.items()))
        model = prepare(self.evaluator.structures.get(plan)[0])
        infos = layer_table(model, self.evaluator.row_shapes)
        times = self._times(infos, model.data) if self.timed else ({}, {})
        before, after = self._costs(self.infos, times[0]), self._costs(infos, times[1])
        for layer, option in chosen:
            old, new = (_sum(table, self._nodes(layer)) for table in (before, after))
            self.saved[layer.name][option] = Saved(ms=old[0] - new[0], macs=old[1] - new[1], params=old[2] - new[2])

    def _costs(self, infos: Sequence[LayerInfo], times: Mapping[str, float]) -> dict[str, Costs]:
        """{node of the original: (milliseconds, MACs, parameters)}; what a layer was split into counts for it."""
        found: dict[str, Costs] = {}
        for info in infos:
            name = self._origin(info.name)
            ms, macs, params = found.get(name, (0.0, 0.0, 0.0))
            found[name] = (ms + times.get(info.name, 0.0), macs + (info.macs or 0), params + info.params)
        return found

    def _times(self, infos: Sequence[LayerInfo], data: bytes) -> tuple[dict[str, float], dict[str, float]]:
        """{layer: milliseconds} of the original and of a model that takes its turn with it."""
        evaluator, threads = self.evaluator, self.evaluator.job.target.threads
        both = paired_kernel_times(self.original.data, data, evaluator.feed, threads, self.whole_ms)
        first, second = (_of_layers(times, layers) for times, layers in zip(both, (self.infos, infos), strict=True))
        return first, second

    def _origin(self, node: str) -> str:
        """The node of the original that a node was made from."""
        head, dot, index = node.rpartition(".")
        return head if node not in self.original.nodes and dot and index.isdecimal() else node


def _channel_options(evaluator: Evaluator) -> dict[str, Any]:
    """Which channels go does not matter to the clock, but how a share of the whole model is distributed does."""
    whole = any(layer.step == CHANNELS and layer.target == EVERY_LAYER for layer in evaluator.space.layers)
    return (evaluator.space.steps[CHANNELS] if whole else {"criterion": "l1"}) | {"recalibrate": False}


def _of_layers(times: Mapping[str, float], infos: Sequence[LayerInfo]) -> dict[str, float]:
    """Every layer's share. What belongs to no layer (activations, sums, changes of memory layout) gets less as the layers do."""
    shares, rest = attribute_times(times, {name: [info.name] for info in infos for name in (info.name, info.output)})
    scale = 1 + rest / max(sum(shares.values()), 1e-9)
    return {name: milliseconds * scale for name, milliseconds in shares.items()}


def _sum(table: Mapping[str, Costs], nodes: Iterable[str]) -> Costs:
    found = [table[node] for node in nodes if node in table]
    ms, macs, params = (sum(column) for column in zip(*found, strict=True)) if found else (0.0, 0.0, 0.0)
    return ms, macs, params
