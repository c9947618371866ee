"""Accuracy, paired row by row with the original model, over rows in a fixed random order and blocks that grow.

The original's outputs on a split are computed once and kept on disk; a candidate is scored against them and the scoring ends as
soon as every constraint is decided."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.dataset import Dataset
from tuner.data.metrics import Metric
from tuner.measure.judge import Allowance, drop_interval
from tuner.measure.latency import computing
from tuner.measure.order import Draw, doubt_weights, draw_order
from tuner.measure.sequential import SequentialTest
from tuner.measure.statistics import bootstrap_bound
from tuner.results import Decision, Interval, Measurement

Scores = NDArray[np.float64]
Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
"""A batch of inputs -> the model's first output."""
Progress = Callable[[int, int], None]

FIRST_BLOCK = 128
BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Split:
    """A data role as accuracy sees it: rows, their scoring order, and the original's outputs."""

    name: str
    dataset: Dataset
    batch: int
    reference: NDArray[np.float32]
    """The original's first output for every row, memory-mapped, in the dataset's order."""
    draw: Draw
    """The random order in which candidates are scored."""
    scores: dict[str, Scores] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def labels(self) -> NDArray[Any] | None:
        return self.dataset.labels(np.arange(len(self)))

    def base_scores(self, metric: Metric) -> Scores | None:
        """The original's score for every row; None for a metric of whole splits."""
        if metric.score is None:
            return None
        if metric.name not in self.scores:
            self.scores[metric.name] = np.asarray(metric.per_sample(self.reference, self.labels, self.reference))
        return self.scores[metric.name]

    def base_value(self, metric: Metric) -> float:
        scores = self.base_scores(metric)
        return float(scores.mean()) if scores is not None else metric.value(self.reference, self.labels, self.reference)


@dataclass(frozen=True)
class Scored:
    """A candidate's scores for the rows `rows` of a split, in the order they were scored."""

    rows: NDArray[np.int64]
    scores: dict[str, Scores]
    """Per-row metrics, shape [n] each."""
    outputs: NDArray[np.float32] | None
    """First outputs, [n, …]; kept only where a metric of whole splits needs them."""
    decisions: tuple[Decision, ...]
    """Of the tests that were handed in, in their order."""
    complete: bool


@dataclass(frozen=True)
class EarlyTest:
    """A constraint on a per-row metric with known bounds, to be decided as early as possible: is the drop at most `aim`?"""

    metric: Metric
    allowance: Allowance
    aim: float
    alpha: float

    @property
    def width(self) -> float:
        """The largest drop of one row."""
        low, high = self.metric.bounds or (0.0, 1.0)
        return high - low

    def start(self, weights: NDArray[np.float64]) -> SequentialTest:
        """weights: of all rows in the order they will be scored."""
        return SequentialTest(len(weights), self.aim, -self.width, self.width, self.alpha, weights)


def silent(_done: int, _total: int) -> None:
    """Progress that nobody asked for."""


def open_split(name: str, dataset: Dataset, run: Run, batch: int, seed: int, cache: Path, progress: Progress = silent) -> Split:
    """The split with the original's outputs, computed now or read from `cache` where an earlier run left them. progress: told how
    many rows of how many have outputs."""
    path = cache / f"reference-{name}.npy"
    if path.is_file():
        progress(len(dataset), len(dataset))
    else:
        _write_reference(path, dataset, run, batch, progress)
    reference = np.load(path, mmap_mode="r", allow_pickle=False)
    return Split(name, dataset, batch, reference, draw_order(doubt_weights(reference), seed))


def score(
    split: Split, run: Run, metrics: Sequence[Metric], tests: Sequence[EarlyTest] = (), between_blocks: Callable[[], None] = lambda: None
) -> Scored:
    """Score a candidate. Ends early once a test is missed or all are met; with no tests every row is scored.

    `between_blocks` is called after each block and may raise to end the scoring (cancelling)."""
    running = [test.start(split.draw.weights) for test in tests]
    seen: list[NDArray[np.int64]] = []
    scores: dict[str, list[Scores]] = {metric.name: [] for metric in metrics if metric.score}
    kept: list[NDArray[np.float32]] = []
    for rows in _growing_blocks(split.draw.rows):
        outputs = _forward(split, run, rows)
        labels = None if split.labels is None else split.labels[rows]
        for metric in metrics:
            if metric.score:
                scores[metric.name].append(np.asarray(metric.per_sample(outputs, labels, split.reference[rows])))
        if len(scores) < len(metrics):
            kept.append(outputs)
        seen.append(rows)
        for early, test in zip(tests, running, strict=True):
            base = split.base_scores(early.metric)
            assert base is not None
            test.update(early.allowance.sign * (base[rows] - scores[early.metric.name][-1]))
        if tests and _settled([test.decision for test in running]):
            break
        between_blocks()
    rows = np.concatenate(seen)
    return Scored(
        rows=rows,
        scores={name: np.concatenate(parts) for name, parts in scores.items()},
        outputs=np.concatenate(kept) if kept else None,
        decisions=tuple(test.decision for test in running),
        complete=len(rows) == len(split),
    )


def measure(metric: Metric, scored: Scored, split: Split, seconds: float, target: str) -> Measurement:
    """The metric's value over all rows of the split, estimated where only some were scored, with its standard error where rows
    have scores. A metric of whole splits is never ended early."""
    stderr = None
    if metric.score and not scored.complete:
        base = split.base_scores(metric)
        assert base is not None
        # The original's mean over all rows is known; only the difference has to be estimated.
        difference, stderr = split.draw.estimate(scored.scores[metric.name] - base[scored.rows])
        value = float(base.mean()) + difference
    elif metric.score:
        scores = scored.scores[metric.name]
        value = float(scores.mean())
        stderr = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
    else:
        assert scored.outputs is not None
        labels = None if split.labels is None else split.labels[scored.rows]
        value = metric.value(scored.outputs, labels, split.reference[scored.rows])
    return Measurement(
        metric=metric.name,
        value=value,
        unit=metric.unit,
        direction=metric.direction,
        stderr=stderr,
        samples=len(scored.rows),
        seconds=seconds,
        target=target,
    )


def paired_drop(metric: Metric, scored: Scored, split: Split, confidence: float, seed: int, resamples: int = 1000) -> Interval:
    """How much worse the candidate is than the original on the rows scored, with one-sided bounds at `confidence`.

    Per-row metrics are compared row by row; a metric of whole splits by a bootstrap over rows, the same for both models."""
    sign = 1 if metric.direction == "higher" else -1
    base = split.base_scores(metric)
    if base is not None:
        return drop_interval(base[scored.rows], scored.scores[metric.name], sign, confidence, seed)
    reference, outputs = split.reference[scored.rows], scored.outputs
    labels = None if split.labels is None else split.labels[scored.rows]
    assert outputs is not None

    def drop(rows: NDArray[np.int64]) -> float:
        of = None if labels is None else labels[rows]
        return sign * (metric.value(reference[rows], of, reference[rows]) - metric.value(outputs[rows], of, reference[rows]))

    return bootstrap_bound(drop, len(scored.rows), confidence, seed, resamples)


def baseline_scored(split: Split, metrics: Sequence[Metric]) -> Scored:
    """The original's own scores, in the form of a candidate's."""
    scores = {metric.name: base for metric in metrics if (base := split.base_scores(metric)) is not None}
    outputs = np.asarray(split.reference) if len(scores) < len(metrics) else None
    return Scored(np.arange(len(split)), scores, outputs, (), True)


def batch_rows(dataset: Dataset, fixed: int | None) -> int:
    """Rows to score at once: the model's own batch where that is fixed, else at most 32 and 8 MiB of input."""
    if fixed is not None:
        return fixed
    row = sum(array.nbytes for array in dataset.batch(np.arange(1)).values())
    return int(np.clip(BATCH_BYTES // max(row, 1), 1, 32))


def run_rows(dataset: Dataset, run: Run, rows: NDArray[np.int64], batch: int) -> Iterator[NDArray[np.float32]]:
    """First outputs of `rows`, a batch at a time; the last batch may be short."""
    for first in range(0, len(rows), batch):
        with computing():
            output = run(dataset.batch(rows[first : first + batch]))
        yield np.asarray(output, np.float32)


def _forward(split: Split, run: Run, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.concatenate(list(run_rows(split.dataset, run, rows, split.batch)))


def _growing_blocks(order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """128 rows at a time, later a quarter of those seen: few looks, and at most a quarter of the work too many."""
    first = 0
    while first < len(order):
        size = max(FIRST_BLOCK, first // 4)
        yield order[first : first + size]
        first += size


def _settled(decisions: Sequence[Decision]) -> bool:
    return "missed" in decisions or all(decision == "met" for decision in decisions)


def _write_reference(path: Path, dataset: Dataset, run: Run, batch: int, progress: Progress) -> None:
    """Written under another name and renamed, so that a file that is there is whole."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    target: NDArray[np.float32] | None = None
    first = 0
    for block in run_rows(dataset, run, np.arange(len(dataset)), batch):
        if target is None:
            target = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(dataset), *block.shape[1:]))
        target[first : first + len(block)] = block
        first += len(block)
        progress(first, len(dataset))
    if target is not None:
        target.flush()  # type: ignore[attr-defined]
    partial.replace(path)
