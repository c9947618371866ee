"""Problems whose layers have widths, and trials with a known violation, for tests of strategies that follow a course."""

from __future__ import annotations

from collections.abc import Mapping

from search_spaces.space import LayerChoices, SearchSpace
from tuner.results import Assignment, TrialResult, TrialState, Verdict
from tuner.search.base import LinearCost, Problem

WIDTHS = ("whole", "keep-12", "keep-8", "keep-4")
FIXED = 10.0


def widths_problem(
    savings: Mapping[str, tuple[float, ...]],
    damage: Mapping[str, tuple[float, ...]],
    *,
    seed: int = 0,
    links: tuple[tuple[str, str, float], ...] = (),
) -> Problem:
    """Groups of channels whose widths save so much each, in rising order, of a cost of 10; what is left alone counts as 0."""
    layers = tuple(
        LayerChoices(name=f"channels:{name}", op="Conv", input="", options=WIDTHS[: len(own) + 1], step="channels", layer=name)
        for name, own in savings.items()
    )
    costs = {f"channels:{name}": dict(zip(WIDTHS, (0.0, *(-saving for saving in own)), strict=False)) for name, own in savings.items()}
    harm = {f"channels:{name}": dict(zip(WIDTHS, (0.0, *own), strict=False)) for name, own in damage.items()}
    linear = LinearCost(FIXED, costs, links)
    return Problem(SearchSpace(name="widths", layers=layers), ("latency",), seed, harm, lambda a: (linear(a),), linear)


def widths(**chosen: str) -> Assignment:
    return {f"channels:{name}": option for name, option in chosen.items()}


def trial_of(
    number: int, assignment: Assignment, violation: float, state: TrialState = TrialState.COMPLETE, metric: str = "top1"
) -> TrialResult:
    verdict = Verdict(
        metric=metric, drop=0, lower=0, upper=0, confidence=0.95, decision="met" if violation <= 0 else "missed", violation=violation
    )
    verdicts = () if state in (TrialState.RUNNING, TrialState.FAILED) else (verdict,)
    return TrialResult(number=number, state=state, assignment=assignment, plan_digest=str(number), verdicts=verdicts)
