from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import JobError
from tuner.job import Constraint
from tuner.measure.judge import Allowance, allowance, drop_interval, judge_cost, judge_drop, judge_early
from tuner.results import Direction, Interval, Measurement

DIRECTIONS: tuple[Direction, ...] = ("higher", "lower")


def drop_of(allowed: Allowance, base: float, candidate: float) -> float:
    return allowed.sign * (base - candidate)


def exactly(value: float) -> Interval:
    return Interval(value=value, lower=value, upper=value)


@pytest.mark.parametrize(
    ("constraint", "direction", "baseline", "allowed", "scale"),
    [
        (Constraint(metric="top1", max_drop=0.02), "higher", 0.8, 0.02, 1.0),
        (Constraint(metric="top1", max_drop=0.02, relative=True), "higher", 0.8, 0.016, 0.8),
        (Constraint(metric="mse", max_drop=0.02), "lower", 0.5, 0.02, 1.0),
        (Constraint(metric="mse", max_drop=0.02, relative=True), "lower", 0.5, 0.01, 0.5),
        (Constraint(metric="r2", max_drop=0.1, relative=True), "higher", -2.0, 0.2, 2.0),
        (Constraint(metric="top1", max_drop=0.1, relative=True), "higher", 0.0, 0.0, 1.0),
        (Constraint(metric="top1", at_least=0.75), "higher", 0.8, 0.05, 1.0),
        (Constraint(metric="top1", at_least=0.85), "higher", 0.8, -0.05, 1.0),
        (Constraint(metric="mse", at_most=0.7), "lower", 0.5, 0.2, 1.0),
        (Constraint(metric="mse", at_most=0.4), "lower", 0.5, -0.1, 1.0),
    ],
)
def test_what_a_constraint_allows(constraint: Constraint, direction: Direction, baseline: float, allowed: float, scale: float) -> None:
    found = allowance(constraint, direction, baseline)
    assert found.allowed == pytest.approx(allowed)
    assert found.scale == scale


@pytest.mark.parametrize(
    ("constraint", "direction", "text"),
    [
        (
            Constraint(metric="mse", at_least=0.3),
            "lower",
            "constraint on mse: at_least 0.3 bounds the wrong side, because lower is better; use at_most",
        ),
        (
            Constraint(metric="top1", at_most=0.9),
            "higher",
            "constraint on top1: at_most 0.9 bounds the wrong side, because higher is better; use at_least",
        ),
    ],
)
def test_a_limit_on_the_wrong_side_is_refused(constraint: Constraint, direction: Direction, text: str) -> None:
    with pytest.raises(JobError) as caught:
        allowance(constraint, direction, 0.5)
    assert str(caught.value) == text
    assert caught.value.field == "constraints"


def test_a_zero_baseline_allows_no_relative_drop() -> None:
    allowed = allowance(Constraint(metric="top1", max_drop=0.5, relative=True), "higher", 0.0)
    assert judge_drop(allowed, exactly(0.0), 10, "validation").decision == "met"
    worse = judge_drop(allowed, exactly(1e-6), 10, "validation")
    assert worse.decision == "missed"
    assert worse.violation == pytest.approx(1e-6)


@given(
    st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 0.99), st.booleans(), st.sampled_from(DIRECTIONS), st.sampled_from(["drop", "limit"])
)
def test_a_point_estimate_meets_a_constraint_exactly_where_nothing_is_violated(
    candidate: float, baseline: float, bound: float, relative: bool, direction: Direction, kind: str
) -> None:
    if kind == "drop":
        constraint = Constraint(metric="m", max_drop=bound, relative=relative)
        limit = bound * (baseline if relative else 1.0)
    else:
        constraint = Constraint(metric="m", at_least=bound) if direction == "higher" else Constraint(metric="m", at_most=bound)
        limit = baseline - bound if direction == "higher" else bound - baseline
    allowed = allowance(constraint, direction, baseline)
    drop = drop_of(allowed, baseline, candidate)
    verdict = judge_drop(allowed, exactly(drop), 100, "holdout")
    assert verdict.decision == ("met" if drop <= limit else "missed")
    assert (verdict.violation <= 0) == (verdict.decision == "met")
    assert verdict.drop == pytest.approx(drop / (baseline if relative and kind == "drop" else 1.0))


@pytest.mark.parametrize(
    ("interval", "decision", "violation"),
    [((0.01, 0.005, 0.019), "met", -0.001), ((0.01, 0.0, 0.03), "undecided", 0.01), ((0.05, 0.03, 0.07), "missed", 0.05)],
)
def test_with_a_confidence_the_bounds_decide(interval: tuple[float, float, float], decision: str, violation: float) -> None:
    allowed = allowance(Constraint(metric="top1", max_drop=0.02, confidence=0.9), "higher", 0.8)
    value, lower, upper = interval
    verdict = judge_drop(allowed, Interval(value=value, lower=lower, upper=upper, confidence=0.9), 500, "holdout")
    assert (verdict.decision, verdict.split, verdict.samples, verdict.rule) == (decision, "holdout", 500, "0.9 bound")
    assert verdict.violation == pytest.approx(violation)


def test_without_a_confidence_the_estimate_decides_and_the_bounds_are_reported() -> None:
    allowed = allowance(Constraint(metric="top1", max_drop=0.02), "higher", 0.8)
    verdict = judge_drop(allowed, Interval(value=0.02, lower=-0.01, upper=0.5), 500, "validation")
    assert (verdict.decision, verdict.upper, verdict.confidence, verdict.rule) == ("met", 0.5, 0.95, "point estimate")


def test_a_relative_verdict_is_told_in_shares_of_the_baseline() -> None:
    allowed = allowance(Constraint(metric="mse", max_drop=0.1, relative=True), "lower", 4.0)
    verdict = judge_drop(allowed, Interval(value=0.8, lower=0.4, upper=1.2), 50, "validation")
    assert (verdict.drop, verdict.lower, verdict.upper) == pytest.approx((0.2, 0.1, 0.3))
    assert verdict.violation == pytest.approx(0.1)
    assert verdict.decision == "missed"


def test_binary_scores_get_the_paired_bound_and_others_a_bootstrap() -> None:
    base = np.array([1.0] * 90 + [0.0] * 10)
    candidate = np.array([1.0] * 85 + [0.0] * 13 + [1.0] * 2)
    found = drop_interval(base, candidate, 1, 0.95, seed=0)
    assert found.value == pytest.approx(0.03)
    assert 0.03 < found.upper < 0.1  # Five rows lost and two gained among 100.
    lower_is_better = drop_interval(base * 2, candidate * 2, -1, 0.95, seed=0)
    assert lower_is_better.value == pytest.approx(-0.06)
    assert lower_is_better.lower < -0.06 < lower_is_better.upper


def test_equal_rows_leave_doubt_only_for_a_sample() -> None:
    """No row differs, yet the bound is z² / (n + z²)."""
    scores = np.ones(100)
    found = drop_interval(scores, scores, 1, 0.95, seed=0)
    assert found.value == 0.0
    assert found.upper == pytest.approx(1.6449**2 / (100 + 1.6449**2), rel=1e-3)


def test_an_early_verdict_is_about_the_aim() -> None:
    allowed = allowance(Constraint(metric="top1", max_drop=0.1), "higher", 0.8)
    seen = np.array([0.0] * 95 + [1.0] * 5)
    met = judge_early(allowed, "met", 0.08, float(seen.mean()), len(seen), 0.05)
    assert (met.decision, met.drop, met.upper, met.confidence, met.samples) == ("met", 0.05, 0.08, 0.95, 100)
    assert met.lower == met.drop, 'nothing is claimed about the side that was not tested'
    assert met.violation == pytest.approx(-0.05)
    missed = judge_early(allowed, "missed", 0.08, 1.0, 100, 0.05)
    assert (missed.decision, missed.drop, missed.lower, missed.upper) == ("missed", 1.0, 0.08, 1.0)
    assert missed.violation == pytest.approx(0.9)


@pytest.mark.parametrize("decision", ["met", "missed"])
@pytest.mark.parametrize("hits", [0, 3, 50, 100])
def test_an_early_verdict_is_feasible_exactly_where_it_is_met(decision: str, hits: int) -> None:
    """Also where the rows seen happen to lie on the other side of the aim than the verdict."""
    allowed = allowance(Constraint(metric="top1", max_drop=0.03, relative=True), "higher", 0.5)
    verdict = judge_early(allowed, decision, 0.01, hits / 100, 100, 0.05)  # type: ignore[arg-type]
    assert (verdict.violation <= 0) == (decision == "met")
    assert verdict.lower <= verdict.drop <= verdict.upper


def cost(value: float) -> dict[str, Measurement]:
    return {"size_bytes": Measurement(metric="size_bytes", value=value, direction="lower")}


@pytest.mark.parametrize(("value", "decision", "violation"), [(900, "met", -0.1), (1000, "met", 0.0), (1200, "missed", 0.2)])
def test_costs_are_judged_by_their_limit(value: float, decision: str, violation: float) -> None:
    verdict = judge_cost(Constraint(metric="size_bytes", at_most=1000), cost(value))
    assert (verdict.decision, verdict.drop, verdict.rule) == (decision, value - 1000, "measured")
    assert verdict.violation == pytest.approx(violation)


def test_a_cost_that_was_not_measured_is_undecided_and_does_not_violate() -> None:
    verdict = judge_cost(Constraint(metric="latency_ms", at_most=1), cost(1))
    assert (verdict.decision, verdict.violation, verdict.rule) == ("undecided", 0.0, "not measured")


def test_a_cost_has_no_drop() -> None:
    with pytest.raises(JobError, match="constraint on size_bytes: a cost can only be limited with at_most"):
        judge_cost(Constraint(metric="size_bytes", max_drop=0.1), cost(1))
