"""The target's latency per layer and kind of scheme, measured once and kept for this machine and model.

Kernel times of the float model and of one model per kind are attributed to layers; a conversion belongs to the layers that it
serves. What a border between a float and an integer layer costs (conversions, other memory layouts, lost fusions) is fitted
on two models in which every other layer stays in float."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from search_spaces.schemes import FLOAT, Frozen, QuantScheme
from search_spaces.space import QUANTIZE, LayerChoices, SearchSpace
from tuner.compress.quantization.placement import OPERATOR_PREFIX, links
from tuner.errors import StorageError
from tuner.evaluator import Evaluator
from tuner.files import write_text
from tuner.measure.profile import attribute_times, kernel_times
from tuner.measure.runtime import Session, environment
from tuner.plan import CompressionPlan, LayerQuant, Step, digest_of

VERSION = 4
"""Part of the key under which tables are kept: a table measured in another way is measured again."""
LEAST_BORDER_NS = 0.2
PRECISE = (1.0, 15, 0.01)
"""Seconds, blocks and precision of timing: a trial may be off by a little, the table that all trials are chosen by should not."""


class LatencyTable(Frozen):
    """Milliseconds on the target. A plan takes about fixed + its options + every link of which one end is in float."""

    options: dict[str, dict[str, float]]
    """{layer: {option: ms}}, `float` among them."""
    fixed_ms: float
    links: tuple[tuple[str, str, float], ...]


def latency_table(evaluator: Evaluator) -> LatencyTable:
    """The table for the job's space, model and target; read from the user's cache where it was measured before."""
    kinds = _kinds(quantizable(evaluator.space))
    facts = environment()
    key = digest_of(
        [VERSION, facts["processor"], facts["onnxruntime"], evaluator.job.target.model_dump(), evaluator.model.sha256, kinds]
        + [layer.name for layer in quantizable(evaluator.space)]
        + [[name, list(array.shape)] for name, array in sorted(evaluator.feed.items())]
    )
    path = cost_cache() / f"{key}.json"
    if path.is_file():
        by_kind = LatencyTable.model_validate_json(path.read_text())
    else:
        by_kind = _measure(evaluator, kinds)
        with suppress(StorageError):  # A home that cannot be written costs the next job a measurement, not this one its life.
            write_text(path, by_kind.model_dump_json())
    options = {
        layer.name: {o: by_kind.options[layer.name][_kind(o)] for o in layer.options if _kind(o) in by_kind.options[layer.name]}
        for layer in quantizable(evaluator.space)
    }
    return by_kind.model_copy(update={"options": options})


def timed_models(space: SearchSpace) -> int:
    """How many models are timed for a table: the original, one for each kind, two with borders."""
    return 1 + len(_kinds(quantizable(space))) + 2


def quantizable(space: SearchSpace) -> list[LayerChoices]:
    """The parameters that are about the type of numbers."""
    return [layer for layer in space.layers if layer.step == QUANTIZE]


def cost_cache() -> Path:
    """Where tables are kept between jobs: ACCUTUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("ACCUTUNE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "accutune")
    return Path(root) / "costs"


def _measure(evaluator: Evaluator, kinds: list[str]) -> LatencyTable:
    """The table with kinds in place of options."""
    layers, threads = quantizable(evaluator.space), evaluator.job.target.threads
    whole = _Whole(evaluator)
    own = _owners(evaluator)
    shares, fixed = attribute_times(kernel_times(evaluator.model.data, evaluator.feed, threads, whole.float_ms), own)
    table = {layer.name: {FLOAT: shares.get(layer.name, 0.0)} for layer in layers}
    for kind in kinds:
        evaluator.between()
        chosen = _uniform(layers, kind)
        applied, data = evaluator.build(_plan(chosen), {})
        times = kernel_times(data, evaluator.feed, threads, whole.of(data))
        shares, _ = attribute_times(times, own | _conversions(evaluator, applied.layers))
        for name, option in chosen.items():
            table[name].setdefault(_kind(option), shares.get(name, 0.0))
    return LatencyTable(options=table, fixed_ms=fixed, links=_borders(evaluator, whole, table, fixed, kinds))


class _Whole:
    """Milliseconds of whole models, all on the scale of one measurement of the original: each is timed in turn with it, so that
    a machine that changes its speed in between does not bend the table."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.float_ms = evaluator.time(evaluator.timed_baseline, *PRECISE).baseline_ms

    def of(self, model: bytes) -> float:
        candidate = Session(model, self.evaluator.job.target.threads)
        return self.float_ms / self.evaluator.time(candidate, *PRECISE).ratio.value


def _borders(
    evaluator: Evaluator, whole: _Whole, table: dict[str, dict[str, float]], fixed: float, kinds: list[str]
) -> tuple[tuple[str, str, float], ...]:
    """(writer, reader, ms) for every pair of neighbours. The price per element is what two models with every other layer in
    float take beyond the sum of their layers, over the elements that cross a border in them."""
    elements: dict[tuple[str, str], float] = {}
    names = {layer.name for layer in quantizable(evaluator.space)}
    for writer, reader, tensor in links(evaluator.prepared, evaluator.target):
        if writer in names and reader in names and writer != reader:
            elements[writer, reader] = elements.get((writer, reader), 0.0) + _elements(evaluator, tensor)
    surplus = crossed = 0.0
    for odd in (0, 1) if elements and kinds else ():
        evaluator.between()
        uniform = _uniform(quantizable(evaluator.space), kinds[-1])
        layers = [name for name in uniform if not name.startswith(OPERATOR_PREFIX)]
        mixed = {name: option for name, option in uniform.items() if name not in layers[odd::2]}
        own = sum(table[name][_kind(mixed[name]) if name in mixed else FLOAT] for name in table)
        surplus += whole.of(evaluator.build(_plan(mixed), {})[1]) - own - fixed
        crossed += sum(count for (a, b), count in elements.items() if (a in mixed) != (b in mixed))
    price = max(surplus * 1e6 / crossed if crossed else 0.0, LEAST_BORDER_NS)
    return tuple((a, b, price * count * 1e-6) for (a, b), count in elements.items())


def _plan(chosen: dict[str, str]) -> CompressionPlan:
    return CompressionPlan(steps=(Step(name=QUANTIZE, layers=dict(chosen)),))


def _uniform(layers: Iterable[LayerChoices], kind: str) -> dict[str, str]:
    """Every layer that has the kind, at its first option of it; operator types and tables at what goes with it."""
    found = {layer.name: next((o for o in layer.options if _kind(o) == kind), _same_activation(layer, kind)) for layer in layers}
    return {name: option for name, option in found.items() if option}


def _kinds(layers: Iterable[LayerChoices]) -> list[str]:
    """Every kind of scheme in the space whose kernel times are wanted, those of layers with a weight first."""
    kinds = dict.fromkeys(_kind(option) for layer in layers for option in layer.options if option != FLOAT and "/" in option)
    kinds |= dict.fromkeys(_kind(option) for layer in layers for option in layer.options if option != FLOAT)
    heads = {kind.split("/")[0] for kind in kinds if "/" in kind}
    return [kind for kind in kinds if "/" in kind or kind not in heads]


def _kind(option: str) -> str:
    return option if option == FLOAT else QuantScheme.parse(option).kind


def _same_activation(layer: LayerChoices, kind: str) -> str:
    """For an operator type or a table, which do not have the kind of other layers: the first option with the same activation
    dtype, so that operators between quantized layers join; empty where there is none."""
    if not (layer.name.startswith(OPERATOR_PREFIX) or layer.op == "Gather"):
        return ""
    heads = (kind.split("/")[0], FLOAT)
    return next((o for o in layer.options if o != FLOAT and _kind(o).split("/")[0] in heads), "")


def _owners(evaluator: Evaluator) -> dict[str, list[str]]:
    """{node or tensor name: layer} for kernels named after a layer's node, its output or what absorbed it."""
    model, names = evaluator.prepared, {layer.name for layer in quantizable(evaluator.space)}
    owners: dict[str, list[str]] = {}
    for node in model.nodes.values():
        owner = node.name if node.name in names else OPERATOR_PREFIX + node.op_type
        if owner not in names:
            continue
        owners[node.name] = owners[node.output[0]] = [owner]
        readers = model.consumers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type in evaluator.target.absorbed:
            owners[readers[0].name] = owners[readers[0].output[0]] = [owner]
    return owners


def _conversions(evaluator: Evaluator, quantized: dict[str, LayerQuant]) -> dict[str, list[str]]:
    """{conversion node: the layers it serves}: a tensor's conversions belong to the quantized layers that read it."""
    model, names = evaluator.prepared, {layer.name for layer in quantizable(evaluator.space)}
    found: dict[str, list[str]] = {}
    for tensor, readers in model.consumers.items():
        served = [n.name if n.name in names else OPERATOR_PREFIX + n.op_type for n in readers if n.name in quantized]
        served = [name for name in served if name in names]
        if served:
            found |= {f"{tensor}_q": served, f"{tensor}_dq": served}
    return found


def _elements(evaluator: Evaluator, tensor: str) -> float:
    """Elements of a tensor in one batch of the target's size, from what calibration counted."""
    statistics = evaluator.statistics.get(tensor)
    batch = evaluator.fixed_batch or evaluator.job.target.batch
    return statistics.count / len(evaluator.roles.calibration) * batch if statistics is not None else 0.0
