from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from fake_executor import ALLOWED, GOOD, LAYERS, POOR, TWIN, drop_of, findings, space

from search_spaces.schemes import FLOAT
from tuner.results import Assignment, TrialResult, TrialState, Verdict
from tuner.search.allocate import front
from tuner.search.auto import LEVELS, _bisect, _boundary, auto
from tuner.search.base import Problem
from tuner.search.cost import build_problem

Judge = Callable[[Assignment], bool]


@pytest.fixture
def problem() -> Problem:
    return build_problem(space((FLOAT, GOOD, TWIN, POOR)), findings(), ("latency",), 0)


def trial(number: int, assignment: Assignment, good: bool, state: TrialState = TrialState.COMPLETE) -> TrialResult:
    violation = -0.01 if good else 0.01
    verdict = Verdict(
        metric="top1", drop=0, lower=0, upper=0, confidence=0.95, decision="met" if good else "missed", violation=violation
    )
    return TrialResult(number=number, state=state, assignment=assignment, plan_digest=str(number), verdicts=(verdict,))


def walk(problem: Problem, plans: list[Assignment], judge: Callable[[int], bool]) -> list[int]:
    """The plans of the front that the bisection asks for, in its order."""
    history: list[TrialResult] = []
    asked: list[int] = []
    while (index := _bisect(problem, plans, history)) is not None:
        assert index not in asked
        asked.append(index)
        history.append(trial(len(history), plans[index], judge(index)))
    return asked


def test_the_front_goes_from_cheap_and_harmful_to_dear_and_safe(problem: Problem) -> None:
    plans = front(problem, LEVELS)
    costs = [problem.linear(plan) for plan in plans]
    harms = [problem.total_damage(plan) for plan in plans]
    assert len(plans) > 4
    assert costs == sorted(costs)
    assert harms == sorted(harms, reverse=True)


@pytest.mark.parametrize("border", range(9))
def test_the_bisection_finds_where_the_target_breaks(problem: Problem, border: int) -> None:
    """The cheapest good plan and the dearest bad one are both tried, after no more questions than halving takes."""
    plans = front(problem, LEVELS)
    border = min(border, len(plans))
    asked = walk(problem, plans, lambda index: index >= border)
    assert asked[0] == 0
    assert len(asked) <= 2 + len(plans).bit_length()
    if 0 < border < len(plans):
        assert {border, border - 1} <= set(asked)
    if border == 0:
        assert asked == [0]


@pytest.mark.parametrize("bad", [{0, 3}, {0, 1, 4}, {0, 2}, {0, 5}])
def test_a_front_that_is_not_monotone_ends_the_bisection_at_a_safe_border(problem: Problem, bad: set[int]) -> None:
    plans = front(problem, LEVELS)
    asked = walk(problem, plans, lambda index: index not in bad)
    tried_bad, tried_good = sorted(bad & set(asked)), sorted(set(asked) - bad)
    assert len(asked) <= 2 + len(plans).bit_length()
    border = max(tried_bad)
    assert border + 1 in tried_good or border == len(plans) - 1


def test_where_even_the_safest_plan_breaks_the_bisection_is_over(problem: Problem) -> None:
    plans = front(problem, LEVELS)
    assert walk(problem, plans, lambda _: False) == [0, len(plans) - 1]


def test_a_broken_or_running_trial_counts_as_bad(problem: Problem) -> None:
    plans = front(problem, LEVELS)
    last = len(plans) - 1
    failed = TrialResult(number=0, state=TrialState.FAILED, assignment=plans[0], plan_digest="0")
    running = failed.model_copy(update={"state": TrialState.RUNNING})
    for first in (failed, running):
        assert _bisect(problem, plans, [first]) == last
        assert _bisect(problem, plans, [first, trial(1, plans[last], True)]) == last // 2


def test_no_plans_ask_nothing(problem: Problem) -> None:
    assert _bisect(problem, [], []) is None


def play(problem: Problem, judge: Judge, questions: int) -> list[TrialResult]:
    history: list[TrialResult] = []
    for attempt in range(questions):
        assignment = auto(problem, history, attempt)
        assert assignment is not None
        assert set(assignment) == set(LAYERS)
        if problem.space.decode(assignment) not in [problem.space.decode(each.assignment) for each in history]:
            history.append(trial(len(history), assignment, judge(assignment)))
    return history


def test_the_search_finds_the_cheapest_plan_that_passes(problem: Problem) -> None:
    """Predictions are right here, so the bisection alone gets there."""
    history = play(problem, lambda assignment: drop_of(assignment) <= ALLOWED, 12)
    good = [problem.linear(each.assignment) for each in history if each.feasible]
    plans: list[Assignment] = [dict(zip(LAYERS, options, strict=True)) for options in product((FLOAT, GOOD, POOR), repeat=4)]
    assert min(good) == pytest.approx(min(problem.linear(plan) for plan in plans if drop_of(plan) <= ALLOWED))


def test_after_the_bisection_it_looks_around_with_other_plans(problem: Problem) -> None:
    history = play(problem, lambda assignment: drop_of(assignment) <= ALLOWED, 30)
    on_front = [problem.space.decode(plan) for plan in front(problem, LEVELS)]
    others = [each for each in history if problem.space.decode(each.assignment) not in on_front]
    assert len(others) > 3


def test_the_same_question_gets_the_same_answer(problem: Problem) -> None:
    again = build_problem(space((FLOAT, GOOD, TWIN, POOR)), findings(), ("latency",), 0)
    first, second = (play(each, lambda assignment: drop_of(assignment) <= ALLOWED, 15) for each in (problem, again))
    assert [each.assignment for each in first] == [each.assignment for each in second]


def test_the_boundary_lies_between_what_passed_and_what_did_not(problem: Problem) -> None:
    passed: Assignment = {"a": GOOD}
    failed: Assignment = {"d": GOOD}
    assert _boundary(problem, [trial(0, passed, True), trial(1, failed, False)]) == pytest.approx((0.002 * 0.016) ** 0.5)
    assert _boundary(problem, [trial(0, failed, False)]) == pytest.approx(0.008)
    assert _boundary(problem, [trial(0, passed, True)]) == pytest.approx(0.004)
    # Predictions that were wrong: what passed is predicted to be worse than what failed.
    assert _boundary(problem, [trial(0, failed, True), trial(1, passed, False)]) == pytest.approx(0.016)
    assert _boundary(problem, []) == pytest.approx(2 * 0.03)
