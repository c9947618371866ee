"""Two models side by side on the same rows: paired accuracy and paired latency, for any two ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from search_spaces.schemes import Frozen
from tuner.data.dataset import Dataset, InputInfo, check_dataset, check_labels, open_dataset
from tuner.data.metrics import Metric, check_classes, resolve_metric
from tuner.errors import DataError
from tuner.evaluator import first_output
from tuner.job import DataRef, Target
from tuner.measure.accuracy import Split, baseline_scored, batch_rows, measure, open_split, paired_drop, score
from tuner.measure.latency import alone, compare_latency
from tuner.measure.runtime import Session
from tuner.model.graph import Model
from tuner.results import Interval, Measurement


class Comparison(Frozen):
    """Model B against model A. Drops are how much worse B is; the speed-up is A's latency over B's."""

    first: dict[str, Measurement]
    second: dict[str, Measurement]
    drops: dict[str, Interval]
    speedup: Interval
    size_ratio: float
    rows: int


def compare(first: Path, second: Path, data: DataRef, metrics: Sequence[str], target: Target, seed: int = 0) -> Comparison:
    """Score both models on the same rows and time them in turn.

    Raises InputError where a model or the data cannot be used, or the models' inputs differ."""
    models = [Model.load(first), Model.load(second)]
    _same_inputs(models, (first, second))
    sessions = [Session(model.data, target.threads) for model in models]
    with tempfile.TemporaryDirectory(prefix="accutune-") as folder:
        cache = Path(folder)
        inputs = [InputInfo(i.name, i.dtype, i.shape) for i in models[0].inputs]
        dataset = open_dataset(data, inputs, cache)
        check_dataset(dataset, "comparison")
        fixed = next((i.shape[0] for i in inputs if i.shape and i.shape[0] is not None), None)
        split = open_split("comparison", dataset, first_output(sessions[0]), batch_rows(dataset, fixed), seed, cache)
        known = [resolve_metric(name, dataset.has_labels) for name in metrics]
        for metric in known:
            _check(metric, dataset, split)
        ours = score(split, first_output(sessions[1]), known)
        feed = dataset.batch(np.arange(fixed or target.batch) % len(dataset))
        with alone():
            latency = compare_latency(
                lambda: sessions[0].run(feed), lambda: sessions[1].run(feed), seconds=4.0, least_blocks=31, precision=0.01
            )
        base = baseline_scored(split, known)
        measurements = [{m.name: measure(m, scored, split, 0.0, target.name) for m in known} for scored in (base, ours)]
        drops = {metric.name: paired_drop(metric, ours, split, 0.95, seed) for metric in known}
    for found, model, milliseconds in zip(measurements, models, (latency.baseline_ms, latency.candidate_ms), strict=True):
        found["latency_ms"] = Measurement(metric="latency_ms", value=milliseconds, unit="ms", direction="lower", samples=latency.blocks)
        found["size_bytes"] = Measurement(metric="size_bytes", value=model.size_bytes, unit="bytes", direction="lower")
    return Comparison(
        first=measurements[0],
        second=measurements[1],
        drops=drops,
        speedup=latency.ratio,
        size_ratio=models[1].size_bytes / models[0].size_bytes,
        rows=len(dataset),
    )


def _same_inputs(models: Sequence[Model], paths: tuple[Path, Path]) -> None:
    described = [{(i.name, i.dtype) for i in model.inputs} for model in models]
    if described[0] != described[1]:
        names = [", ".join(sorted(f"{name} ({dtype})" for name, dtype in each)) for each in described]
        raise DataError(f"{paths[0]} reads {names[0]} but {paths[1]} reads {names[1]}; compare models with the same inputs")


def _check(metric: Metric, dataset: Dataset, split: Split) -> None:
    labels = None if split.labels is None else split.labels[:256]
    classes = check_classes(metric, np.asarray(split.reference[:256]), labels)
    if classes is not None:
        check_labels(dataset, classes)
