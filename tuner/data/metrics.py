"""Metrics: how well a model's outputs fit the labels, or the outputs of the original model.

A metric is a function of `Rows` under a decorator. One that is a mean over rows is written as scores per row (`@per_row`),
which allows paired bounds and early stopping; any other is written over the whole split (`@whole_split`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import rankdata

from tuner.errors import DataError, JobError
from tuner.registry import Registry
from tuner.results import Direction

Array = NDArray[Any]
Scores = NDArray[np.float64]

BLOCK_VALUES = 1 << 22
"""Outputs scored at once: scores per row are computed in float64 on blocks, so that a large split needs no second copy."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a metric reads. outputs: the model's first output, [n, …]; labels: [n, …]; reference: the original's outputs."""

    outputs: Array
    labels: Array | None = None
    reference: Array | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    def part(self, first: int, end: int) -> Rows:
        labels, reference = (None if array is None else array[first:end] for array in (self.labels, self.reference))
        return Rows(self.outputs[first:end], labels, reference)

    def class_scores(self, at_least: int = 2) -> Array:
        """The outputs, [n, classes]; [n] counts as one column. DataError with fewer than `at_least` columns."""
        scores = self.outputs[:, None] if self.outputs.ndim == 1 else self.outputs
        if scores.ndim != 2 or scores.shape[1] < at_least:
            raise DataError(
                f"outputs must be one score per class, shape [n, classes] with at least {at_least} classes, got {_shape(self.outputs)}. "
                "For one score per row use auroc (labels 0 and 1) or mse; without labels, cosine."
            )
        return scores

    def classes(self, count: int) -> NDArray[np.int64]:
        """The labels as class numbers, [n]. DataError where they are not whole numbers in 0..count-1."""
        labels = self.labels
        if labels is None or labels.shape != (len(self),):
            got = "none" if labels is None else f"shape {_shape(labels)}"
            raise DataError(f"labels must be one class number per row, shape [n], got {got}. Use argmax over one-hot labels.")
        bad = labels[~((labels >= 0) & (labels < count) & (labels == np.floor(labels)))]
        if bad.size:
            raise DataError(
                f"labels must be whole numbers in 0..{count - 1}, the model's classes, got {bad[0]}. Number the classes from 0."
            )
        return labels.astype(np.int64)

    def pair(self) -> tuple[Scores, Scores]:
        """Outputs and what they should be, both [n, values]: the labels or, where there are none, the original's outputs."""
        truth = self.reference if self.labels is None else self.labels
        if truth is None or truth.size != self.outputs.size:
            got = "none" if truth is None else _shape(truth)
            raise DataError(f"labels must have the outputs' shape {_shape(self.outputs)}, got {got}. Save one label per output value.")
        return _flat(self.outputs), _flat(truth.reshape(self.outputs.shape))

    def original(self) -> Array:
        """The original's outputs. DataError where they are missing or of another shape."""
        if self.reference is None or self.reference.shape != self.outputs.shape:
            got = "none" if self.reference is None else _shape(self.reference)
            raise DataError(
                f"the original's outputs must have the outputs' shape {_shape(self.outputs)}, got {got}. Run it on the same rows."
            )
        return self.reference


@dataclass(frozen=True)
class Metric:
    """One metric. Exactly one of `score` (of each row) and `summary` (of the whole split) is set.

    bounds: the lowest and highest score of one row (the value of a whole split, for a summary); None where there is no bound.
    min_classes: the fewest columns of class scores that make sense; 0 where outputs are not class scores."""

    name: str
    direction: Direction = "higher"
    needs_labels: bool = True
    score: Callable[[Rows], Scores] | None = None
    summary: Callable[[Rows], float] | None = None
    bounds: tuple[float, float] | None = None
    min_classes: int = 0
    unit: str = ""

    @property
    def worst(self) -> float:
        """What outputs with NaN get: the worst there is, so that a broken model never passes."""
        low, high = self.bounds or (-np.inf, np.inf)
        return low if self.direction == "higher" else high

    @property
    def ends_early(self) -> bool:
        """Whether a drop can be decided before every row is scored: rows have scores, with known bounds."""
        return self.score is not None and self.bounds is not None

    def per_sample(self, outputs: Array, labels: Array | None = None, reference: Array | None = None) -> Scores | None:
        """Scores of shape [n] whose mean is the value; None for a metric of whole splits."""
        if self.score is None:
            return None
        rows, step = Rows(outputs, labels, reference), max(1, BLOCK_VALUES * len(outputs) // max(1, outputs.size))
        scores = np.concatenate([self.score(rows.part(first, first + step)) for first in range(0, len(rows), step)])
        return np.where(np.isnan(outputs).reshape(len(rows), -1).any(axis=1), self.worst, scores)

    def value(self, outputs: Array, labels: Array | None = None, reference: Array | None = None) -> float:
        """The metric over all rows."""
        if self.summary is None:
            return float(np.mean(np.asarray(self.per_sample(outputs, labels, reference))))
        return self.worst if np.isnan(outputs).any() else self.summary(Rows(outputs, labels, reference))


_TOP = re.compile(r"top([1-9]\d{0,5})")


class MetricRegistry(Registry[Metric]):
    """All metrics; `top<k>` is known for every k, whichever of them are listed."""

    def __getitem__(self, name: str) -> Metric:
        family = _TOP.fullmatch(name)
        return top(int(family[1])) if family else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return (isinstance(name, str) and _TOP.fullmatch(name) is not None) or super().__contains__(name)


METRICS = MetricRegistry("metric")


def per_row(name: str, **traits: Any) -> Callable[[Callable[[Rows], Scores]], Callable[[Rows], Scores]]:
    """Register a function that gives one score per row, [n]. traits: the other fields of Metric."""

    def enter(score: Callable[[Rows], Scores]) -> Callable[[Rows], Scores]:
        METRICS.register(name)(Metric(name, score=score, **traits))
        return score

    return enter


def whole_split(name: str, **traits: Any) -> Callable[[Callable[[Rows], float]], Callable[[Rows], float]]:
    """Register a function that gives one number for all rows. traits: the other fields of Metric."""

    def enter(summary: Callable[[Rows], float]) -> Callable[[Rows], float]:
        METRICS.register(name)(Metric(name, summary=summary, **traits))
        return summary

    return enter


def resolve_metric(name: str, has_labels: bool) -> Metric:
    """The metric that a job means by `name`. `auto`: top1 with labels, agreement with the original without.

    Raises UnknownName, and JobError for a metric that needs labels where there are none."""
    if name == "auto":
        return METRICS["top1" if has_labels else "agreement"]
    metric = METRICS[name]
    if metric.needs_labels and not has_labels:
        raise JobError(
            f"metric '{name}' needs labels, and the validation data has no array 'labels'. "
            "Add it, name the array that holds them with 'target', or use the metric agreement, which needs none.",
            field="metrics",
        )
    return metric


def check_classes(metric: Metric, outputs: Array, labels: Array | None) -> int | None:
    """How many classes the labels may number, for a metric that reads labels as classes; otherwise None.

    Raises DataError where outputs or labels of these rows do not fit the metric; a few rows are enough for the outputs."""
    if not (metric.min_classes and metric.needs_labels):
        return None
    rows = Rows(outputs, labels)
    count = max(2, int(rows.class_scores(metric.min_classes).shape[1]))
    rows.classes(count)
    return count


def check_pairs(metric: Metric, outputs: Array, labels: Array | None) -> None:
    """DataError where some rows' outputs and labels cannot be scored; for a metric of whole splits, which may need more rows than
    these, only whether labels have the outputs' shape where they must."""
    if metric.score is not None:
        metric.per_sample(outputs, labels, outputs)
    elif not metric.min_classes:
        Rows(outputs, labels, outputs).pair()


def degenerate(metric: Metric, value: float, outputs: Array, labels: Array | None = None) -> str | None:
    """Why the original's value says nothing that a drop could be measured from; None where it does."""
    wrong = "check the model, the preprocessing of the data and the order of the labels"
    if not np.isfinite(outputs).all():
        row = int(np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))[0])
        return f"the original model gives NaN or infinite outputs, first for row {row} of the split; {wrong}"
    if not np.isfinite(value):
        return f"{metric.name} of the original model is {value}; {wrong}"
    several = len(outputs) > 1 and (labels is None or bool((labels != labels[0]).any()))
    if several and (outputs == outputs[0]).all():
        return f"the original model gives the same output for all {len(outputs)} rows; {wrong}"
    if several and metric.min_classes and outputs.ndim == 2 and outputs.shape[1] > 1:
        picked = outputs.argmax(axis=1)
        if (picked == picked[0]).all():
            return f"the original model predicts class {picked[0]} for all {len(outputs)} rows; {wrong}"
    if value == metric.worst:
        return f"{metric.name} of the original model is {value:g}, the worst there is; {wrong}"
    return None


def _hits(k: int, rows: Rows) -> Scores:
    """1 where the label is among the k highest outputs. Of equal outputs the earlier class counts as higher, as in argmax."""
    scores = rows.class_scores(at_least=k + 1)
    label = rows.classes(scores.shape[1])[:, None]
    own = np.take_along_axis(scores, label, axis=1)
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < label))
    return _row_means(ahead.sum(axis=1) < k)


@cache
def top(k: int) -> Metric:
    """The share of rows whose label is among the k highest outputs."""
    return Metric(f"top{k}", score=partial(_hits, k), bounds=(0.0, 1.0), min_classes=k + 1)


METRICS.register("top1")(top(1))
METRICS.register("top5")(top(5))


@per_row("agreement", needs_labels=False, bounds=(0.0, 1.0), min_classes=2)
def agreement(rows: Rows) -> Scores:
    """1 where the highest output is the original's; for outputs [n, …, classes] the share of positions."""
    original = rows.original()
    if original.ndim < 2 or original.shape[-1] < 2:
        raise DataError(f"agreement needs one score per class, at least 2, got outputs of shape {_shape(original)}. Use mse or cosine.")
    same = (rows.outputs.argmax(axis=-1) == original.argmax(axis=-1)) & ~np.isnan(original).any(axis=-1)
    return _row_means(same)


@per_row("cosine", needs_labels=False, bounds=(-1.0, 1.0))
def cosine(rows: Rows) -> Scores:
    """Cosine of the angle between a row's outputs and the original's; two zero vectors agree, one zero vector is at 0."""
    x, y = _flat(rows.outputs), _flat(rows.original())
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    both_zero = ~(x.any(axis=1) | y.any(axis=1))
    cosines: Scores = np.where(lengths > 0, (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), both_zero)
    return cosines.clip(-1.0, 1.0)


@per_row("mse", direction="lower", needs_labels=False)
def mse(rows: Rows) -> Scores:
    """Mean squared difference from the labels, or from the original's outputs where there are none."""
    outputs, truth = rows.pair()
    return _row_means(np.square(outputs - truth))


@per_row("mae", direction="lower", needs_labels=False)
def mae(rows: Rows) -> Scores:
    """Mean absolute difference from the labels, or from the original's outputs where there are none."""
    outputs, truth = rows.pair()
    return _row_means(np.abs(outputs - truth))


@whole_split("macro_f1", bounds=(0.0, 1.0), min_classes=2)
def macro_f1(rows: Rows) -> float:
    """Mean F1 over the classes that are predicted or labelled at least once."""
    import torch
    from torchmetrics.functional.classification import multiclass_f1_score

    scores = rows.class_scores()
    count = scores.shape[1]
    predicted, labels = torch.from_numpy(scores.argmax(axis=1)), torch.from_numpy(rows.classes(count))
    return float(multiclass_f1_score(predicted, labels, num_classes=count, average="macro"))


@whole_split("auroc", bounds=(0.0, 1.0), min_classes=1)
def auroc(rows: Rows) -> float:
    """Area under the ROC curve; over more than two classes the mean of each class against the rest.

    One score per row ([n] or [n, 1]) belongs to class 1; of two columns the difference counts."""
    outputs = _flat(rows.class_scores(at_least=1))
    labels = rows.classes(max(2, outputs.shape[1]))
    if outputs.shape[1] == 2:
        outputs = outputs[:, 1:] - outputs[:, :1]
    if outputs.shape[1] == 1:
        return _area(outputs[:, 0], labels == 1)
    # Whether outputs are probabilities already is asked of the original, so that both models are scored alike.
    known = outputs if rows.reference is None else rows.reference
    scores = outputs if known.min() >= -1e-3 and known.max() <= 1 + 1e-3 else softmax(outputs, axis=1)
    return float(np.mean([_area(scores[:, c], labels == c) for c in np.unique(labels)]))


def _area(scores: Scores, positive: NDArray[np.bool_]) -> float:
    import torch
    from torchmetrics.functional.classification import binary_auroc

    if positive.all() or not positive.any():
        raise DataError(f"auroc needs rows of at least two classes, got {len(positive)} rows of one. Give rows of every class.")
    # Only the order counts; ranks escape the sigmoid that torchmetrics puts on logits, which turns large ones into ties.
    ranks = rankdata(scores) / len(scores)
    return float(binary_auroc(torch.from_numpy(ranks), torch.from_numpy(positive.astype(np.int64))))


@whole_split("r2")
def r2(rows: Rows) -> float:
    """The share of the labels' variance that the outputs explain, averaged over output columns."""
    import torch
    from torchmetrics.functional.regression import r2_score

    outputs, truth = _varying(rows, "r2")
    return float(r2_score(torch.from_numpy(outputs), torch.from_numpy(truth)))


@whole_split("pearson", bounds=(-1.0, 1.0))
def pearson(rows: Rows) -> float:
    """Linear correlation with the labels, averaged over output columns; a constant column has none, 0."""
    return _correlation(*_varying(rows, "pearson"))


@whole_split("spearman", bounds=(-1.0, 1.0))
def spearman(rows: Rows) -> float:
    """Correlation of the ranks (ties get their mean rank), averaged over output columns; a constant column has none, 0."""
    outputs, truth = _varying(rows, "spearman")
    return _correlation(rankdata(outputs, axis=0), rankdata(truth, axis=0))


def _correlation(x: Scores, y: Scores) -> float:
    import torch
    from torchmetrics.functional.regression import pearson_corrcoef

    columns = [(torch.from_numpy(a.copy()), torch.from_numpy(b.copy())) for a, b in zip(x.T, y.T, strict=True)]
    return float(np.mean([float(pearson_corrcoef(a, b)) if bool((a != a[0]).any()) else 0.0 for a, b in columns]))


def _varying(rows: Rows, name: str) -> tuple[Scores, Scores]:
    outputs, truth = rows.pair()
    if (truth == truth[0]).all(axis=0).any():
        raise DataError(f"{name} needs labels that vary, got the same one in all {len(truth)} rows. Use mse, or give more rows.")
    return outputs, truth


def _flat(array: Array) -> Scores:
    """[n, …] as float64 [n, values]."""
    return array.reshape(len(array), -1).astype(np.float64)


def _row_means(array: Array) -> Scores:
    means: Scores = _flat(array).mean(axis=1)
    return means


def _shape(array: Array) -> str:
    return str(["n", *array.shape[1:]]).replace("'", "")
