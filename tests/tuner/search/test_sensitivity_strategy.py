"""Ratios from damage curves, and where the level goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.course_samples import trial_of, widths_problem
from tuner.results import TrialResult
from tuner.search.base import Problem
from tuner.search.course import Ladders
from tuner.search.sensitivity import STEP, at_limit, chain, next_step, sensitivity, within

LINEAR = {"flat": (0.1, 0.2, 0.3), "steep": (0.3, 0.6, 0.9)}


@pytest.fixture
def problem() -> Problem:
    return widths_problem({"flat": (1, 2, 3), "steep": (1, 2, 3)}, LINEAR)


def walk(saved: Sequence[float], good: Callable[[int], bool]) -> list[int]:
    harms: list[float | None] = [0.0] + [None] * (len(saved) - 1)
    asked = []
    while (step := next_step(saved, harms)) is not None:
        assert harms[step] is None
        asked.append(step)
        harms[step] = -0.1 if good(step) else 0.1
    return asked


def test_ratios_are_in_inverse_proportion_to_the_slope_of_the_damage(problem: Problem) -> None:
    ladders = Ladders(problem)
    assert within(ladders, 0.3) == (3, 1)
    assert within(ladders, 0.29) == (2, 0)
    assert within(ladders, 0.0) == (0, 0)


def test_the_chain_only_goes_further_and_holds_every_level_once(problem: Problem) -> None:
    assert chain(Ladders(problem)) == [(0, 0), (1, 0), (2, 0), (3, 1), (3, 2), (3, 3)]


def test_a_limit_takes_the_lowest_level_that_reaches_it(problem: Problem) -> None:
    ladders = Ladders(problem)
    assert [at_limit(ladders, limit) for limit in (0.0, 0.1, 1 / 3, 0.5, 1.0)] == [(0, 0), (1, 0), (2, 0), (3, 1), (3, 3)]


def test_each_round_asks_for_a_tenth_more_of_all_savings() -> None:
    saved = [n / 40 for n in range(41)]
    assert walk(saved, lambda _: True) == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert STEP == 0.1


@pytest.mark.parametrize("last", range(41))
def test_it_ends_at_the_last_plan_that_meets_the_target(last: int) -> None:
    saved = [n / 40 for n in range(41)]
    asked = walk(saved, lambda step: step <= last)
    assert max((step for step in asked if step <= last), default=0) == last
    assert last == 40 or last + 1 in asked
    assert len(asked) <= 10 + 2


def test_steps_longer_than_a_round_are_taken_one_by_one() -> None:
    assert walk([0.0, 0.35, 0.4, 1.0], lambda _: True) == [1, 2, 3]


def test_it_asks_for_the_plans_of_the_chain(problem: Problem) -> None:
    ladders = Ladders(problem)
    history: list[TrialResult] = []
    for attempt in range(4):
        heights = ladders.heights(sensitivity(problem, history, attempt))
        # Each layer's share of 6 is 1/6: rounds of a tenth skip nothing until (3, 2), which misses.
        history.append(trial_of(attempt, ladders.assignment(heights), -0.1 if heights != (3, 2) else 0.2))
    assert [ladders.heights(trial.assignment) for trial in history] == [(1, 0), (2, 0), (3, 1), (3, 2)]
    assert ladders.heights(sensitivity(problem, history, 9)) not in [ladders.heights(trial.assignment) for trial in history]
