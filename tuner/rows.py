"""Trials beside each other and beside the original, row by row: which rows changed, in which classes, and how the plans differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.schemes import Frozen
from search_spaces.structure import rest_of
from tuner.plan import AppliedPlan
from tuner.results import BaselineRows, RowScores

CHANGED = 1e-6
"""A row's score counts as changed by more than this."""
MOST_LISTED = 100
MOST_CLASSES = 1000

Floats = NDArray[np.float64]


class ClassScores(Frozen):
    """How many rows of one class are right: shares of `rows`, of the original and of each trial."""

    label: int
    rows: int
    original: float
    trials: tuple[float, ...]


class RowFlips(Frozen):
    """Where a trial's scores are not the original's. A metric that is right or wrong flips; another counts if it changed by more
    than 0.000001."""

    trial: int
    lost: int
    """Rows that the trial has worse than the original."""
    gained: int
    lost_rows: tuple[int, ...]
    """Those that changed most, first, at most 100, counted within the validation file."""
    gained_rows: tuple[int, ...]


class PlanChoices(Frozen):
    """What each trial did to one layer."""

    layer: str
    choices: tuple[str, ...]


class TrialComparison(Frozen):
    """Trials of one job beside each other and beside the original, on the validation rows that all of them were scored on."""

    metric: str
    """That of the first constraint."""
    rows: int
    whole: bool
    """Whether these are all validation rows."""
    trials: tuple[int, ...]
    classes: tuple[ClassScores, ...]
    """By label, at most 1000; empty where rows have no class or are not simply right or wrong."""
    flips: tuple[RowFlips, ...]
    """One for each trial, in the order asked."""
    plans: tuple[PlanChoices, ...]
    """Layers on which the trials differ; of a single trial all that it compressed."""


def compare_trials(baseline: BaselineRows, trials: Mapping[int, RowScores], plans: Sequence[AppliedPlan]) -> TrialComparison:
    """The trials on the rows that all of them were scored on. plans: of the trials, in their order."""
    count = min(len(baseline.scores), *(len(trial.scores) for trial in trials.values()))
    base = np.asarray(baseline.scores[:count], np.float64)
    own = [np.asarray(trial.scores[:count], np.float64) for trial in trials.values()]
    rows, sign = np.asarray(baseline.rows[:count], np.int64), 1 if baseline.direction == "higher" else -1
    right_or_wrong = all(np.isin(scores, (0.0, 1.0)).all() for scores in (base, *own))
    classes = np.asarray(baseline.classes[:count], np.int64) if baseline.classes and right_or_wrong else None
    return TrialComparison(
        metric=baseline.metric,
        rows=count,
        whole=count == baseline.total,
        trials=tuple(trials),
        classes=() if classes is None else _by_class(classes, base, own),
        flips=tuple(_flips(number, sign, base, scores, rows) for number, scores in zip(trials, own, strict=True)),
        plans=_choices([plan.choices for plan in plans]),
    )


def _flips(number: int, sign: int, base: Floats, own: Floats, rows: NDArray[np.int64]) -> RowFlips:
    with np.errstate(invalid="ignore"):  # Scores that are infinite in both have not changed.
        worse = sign * (base - own)
    lost, gained = np.flatnonzero(worse > CHANGED), np.flatnonzero(worse < -CHANGED)
    return RowFlips(
        trial=number,
        lost=len(lost),
        gained=len(gained),
        lost_rows=_most_changed(worse[lost], rows[lost]),
        gained_rows=_most_changed(-worse[gained], rows[gained]),
    )


def _most_changed(change: Floats, rows: NDArray[np.int64]) -> tuple[int, ...]:
    """The rows that changed most, first; those that changed alike by number."""
    return tuple(rows[np.lexsort((rows, -change))][:MOST_LISTED].tolist())


def _by_class(classes: NDArray[np.int64], base: Floats, own: Sequence[Floats]) -> tuple[ClassScores, ...]:
    labels, group, counts = np.unique(classes, return_inverse=True, return_counts=True)
    shares = np.stack([np.bincount(group, scores) / counts for scores in (base, *own)], axis=1)
    listed: list[tuple[Any, ...]] = list(zip(labels.tolist(), counts.tolist(), shares.tolist(), strict=True))[:MOST_CLASSES]
    return tuple(ClassScores(label=label, rows=rows, original=first, trials=tuple(rest)) for label, rows, (first, *rest) in listed)


def _choices(plans: Sequence[Mapping[str, str]]) -> tuple[PlanChoices, ...]:
    """The layers on which the plans differ; of a single plan all that it compresses. Layers stand as in the plan with the most."""
    layers = dict.fromkeys(layer for plan in sorted(plans, key=len, reverse=True) for layer in plan)
    found = [PlanChoices(layer=layer, choices=tuple(plan.get(layer, rest_of(layer)) for plan in plans)) for layer in layers]
    return tuple(row for row in found if len(plans) == 1 or len(set(row.choices)) > 1)
