"""Judges measurements against constraints. One way for all: every constraint on a metric is an allowed drop.

A drop is always "how much worse than the original", whatever the metric's direction. `max_drop` allows a fixed drop, or a share of
the baseline's magnitude; `at_least` and `at_most` allow what lies between the baseline and the limit (a negative drop is a
demand to improve)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from search_spaces.schemes import Frozen
from tuner.errors import JobError
from tuner.job import COST_METRICS, Constraint
from tuner.measure.statistics import mean_bound, paired_proportions_bound
from tuner.results import Decision, Direction, Interval, Measurement, Verdict

Scores = NDArray[np.float64]

REPORTED_CONFIDENCE = 0.95
"""The confidence of bounds that are only reported, because the constraint asks for none."""


class Allowance(Frozen):
    """How much worse one metric may be on one split."""

    constraint: Constraint
    direction: Direction
    allowed: float
    """The largest drop that meets the constraint, in the metric's unit."""
    scale: float
    """What drops are divided by for the report: the baseline's magnitude for a relative constraint, else 1."""

    @property
    def sign(self) -> int:
        """+1 where higher is better."""
        return 1 if self.direction == "higher" else -1

    @property
    def confidence(self) -> float:
        return self.constraint.confidence or REPORTED_CONFIDENCE


def allowance(constraint: Constraint, direction: Direction, baseline: float) -> Allowance:
    """The allowed drop of a metric whose original value on the split is `baseline`. A relative drop of a zero baseline allows none.

    JobError for a limit on the wrong side (at_least on an error metric)."""
    sign = 1 if direction == "higher" else -1
    if constraint.max_drop is not None:
        scale = abs(baseline) if constraint.relative and baseline != 0 else 1.0
        allowed = constraint.max_drop * (abs(baseline) if constraint.relative else 1.0)
        return Allowance(constraint=constraint, direction=direction, allowed=allowed, scale=scale)
    limit, right = (constraint.at_least, "higher") if constraint.at_least is not None else (constraint.at_most, "lower")
    assert limit is not None
    if right != direction:
        asked, better = ("at_least", "at_most") if direction == "lower" else ("at_most", "at_least")
        raise JobError(
            f"constraint on {constraint.metric}: {asked} {limit:g} bounds the wrong side, because {direction} is better; use {better}",
            field="constraints",
        )
    return Allowance(constraint=constraint, direction=direction, allowed=sign * (baseline - limit), scale=1.0)


def nth_confidence(confidence: float, attempt: int) -> float:
    """The confidence at which the n-th finalist shown to the holdout is tested: the error (1 - confidence) / 2ⁿ, so that the chance
    that any of them is certified wrongly stays within 1 - confidence (union bound)."""
    return 1 - (1 - confidence) * 0.5**attempt


def drop_interval(base: Scores, candidate: Scores, sign: int, confidence: float, seed: int) -> Interval:
    """The mean drop over rows with one-sided bounds, paired row by row.

    base, candidate: scores per row, shape [n]. Scores that are all 0 or 1 get Tango's score bound for paired proportions,
    any others a bootstrap of the mean difference."""
    drops = sign * (base - candidate)
    binary = bool(np.isin(base, (0.0, 1.0)).all() and np.isin(candidate, (0.0, 1.0)).all())
    if binary:
        return paired_proportions_bound(int((drops > 0).sum()), int((drops < 0).sum()), len(drops), confidence)
    return mean_bound(drops, confidence, seed)


def judge_drop(allowance: Allowance, drop: Interval, samples: int, split: str) -> Verdict:
    """The verdict on a drop measured on all rows of a split. With a confidence the bounds decide, without one the estimate."""
    limit = allowance.allowed
    if allowance.constraint.confidence is None:
        decision: Decision = "met" if drop.value <= limit else "missed"
        worst, rule = drop.value, "point estimate"
    else:
        decision = "met" if drop.upper <= limit else "missed" if drop.lower > limit else "undecided"
        worst, rule = drop.upper, f"{drop.confidence:.4g} bound"
    return _verdict(allowance, drop, decision, worst - limit, samples, split, rule)


def judge_early(allowance: Allowance, decision: Decision, aim: float, drop: float, samples: int, alpha: float) -> Verdict:
    """The verdict of a test that ended after `samples` rows, where the drop over all rows is estimated as `drop`: it lies on its
    side of `aim` with confidence 1 - alpha. Nothing is claimed about the other side, whose bound is the estimate itself; about
    neither where the test is undecided because another constraint was decided first."""
    lower, upper = min(aim, drop) if decision == "missed" else drop, max(aim, drop) if decision == "met" else drop
    over = drop - allowance.allowed
    # Chance may have put the estimate on the other side of the aim than the verdict.
    violation = min(over, aim - allowance.allowed) if decision == "met" else max(over, 1e-9) if decision == "missed" else over
    bounds = Interval(value=drop, lower=lower, upper=upper, confidence=1 - alpha)
    return _verdict(allowance, bounds, decision, violation, samples, "validation", "anytime-valid test")


def judge_cost(constraint: Constraint, measurements: Mapping[str, Measurement]) -> Verdict:
    """The verdict on a limit for size, latency or another cost; the violation is relative to the limit."""
    if constraint.at_most is None:
        raise JobError(f"constraint on {constraint.metric}: a cost can only be limited with at_most", field="constraints")
    measurement = measurements.get(constraint.metric)
    if measurement is None:
        return Verdict(
            metric=constraint.metric, drop=0, lower=0, upper=0, confidence=1, decision="undecided", violation=0, rule="not measured"
        )
    over = measurement.value - constraint.at_most
    return Verdict(
        metric=constraint.metric,
        drop=over,
        lower=over,
        upper=over,
        confidence=1.0,
        decision="met" if over <= 0 else "missed",
        violation=over / abs(constraint.at_most) if constraint.at_most else over,
        samples=measurement.samples,
        rule="measured",
    )


def is_cost(constraint: Constraint) -> bool:
    return constraint.metric in COST_METRICS


def _verdict(allowance: Allowance, drop: Interval, decision: Decision, violation: float, samples: int, split: str, rule: str) -> Verdict:
    scale = allowance.scale
    return Verdict.model_validate(
        {
            "metric": allowance.constraint.metric,
            "drop": drop.value / scale,
            "lower": drop.lower / scale,
            "upper": drop.upper / scale,
            "confidence": drop.confidence,
            "decision": decision,
            "violation": violation / scale,
            "split": split,
            "samples": samples,
            "rule": rule,
        }
    )
