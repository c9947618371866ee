"""Rounds: what they ask for, how they end and what the next one begins with."""

from __future__ import annotations

import math
import random

import pytest

from tests.course_samples import trial_of, widths_problem
from tuner.results import TrialResult, TrialState
from tuner.search.autocompress import COLD, LENGTH, STEP, WARM, Round, autocompress, by_experience, fitted, replay
from tuner.search.base import Problem
from tuner.search.course import Ladders

SAVINGS = {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2, 4)}
DAMAGE = {"a": (0.1, 0.3, 0.9), "b": (0.01, 0.02, 0.04), "c": (0.2, 0.5, 0.8)}


@pytest.fixture
def problem() -> Problem:
    return widths_problem(SAVINGS, DAMAGE)


@pytest.fixture
def ladders(problem: Problem) -> Ladders:
    return Ladders(problem)


def test_the_first_plan_takes_from_what_suffers_least_for_what_it_saves(ladders: Ladders) -> None:
    # Harm per saving: b 0.01, 0.01, 0.02; a 0.1; c 0.2.
    assert by_experience(ladders, (0, 0, 0), 0.25) == (0, 3, 0)
    assert by_experience(ladders, (0, 0, 0), 0.4) == (1, 3, 0)
    assert by_experience(ladders, (0, 0, 1), 0.5) == (1, 3, 1)
    assert by_experience(ladders, (0, 0, 0), 2.0) == ladders.summit


@pytest.mark.parametrize("seed", range(30))
def test_a_proposal_saves_what_is_asked_for_and_no_rung_more(ladders: Ladders, seed: int) -> None:
    source = random.Random(seed)
    current = Round.begin(ladders, (1, 0, 1), STEP)
    drawn = tuple(source.randrange(4) for _ in range(3))
    found = fitted(ladders, current, drawn, source)
    assert current.holds(ladders, found)
    for index in range(3):
        lower = (*found[:index], found[index] - 1, *found[index + 1 :])
        assert not current.holds(ladders, lower)


def test_rounds_ask_for_a_quarter_of_what_is_left(ladders: Ladders) -> None:
    first = Round.begin(ladders, (0, 0, 0), STEP)
    assert (first.target, first.temperature) == (0.25, WARM)
    second = Round.begin(ladders, (2, 2, 0), STEP)
    assert second.target == pytest.approx(0.4 + 0.25 * 0.6)


def test_a_round_cools_and_after_eight_trials_its_best_is_the_next_start(ladders: Ladders) -> None:
    current = Round.begin(ladders, (0, 0, 0), STEP)
    for n in range(LENGTH - 1):
        current = current.after(ladders, (n % 4, 3, 0), -0.1 - 0.01 * (n == 2), chance=0.5)
    assert current.temperature == pytest.approx(COLD)
    assert (current.best, current.least) == ((2, 3, 0), -0.11)
    following = current.after(ladders, (0, 3, 1), 0.2, chance=0.5)
    assert (following.start, following.step, following.count, following.worst) == ((2, 3, 0), STEP, 0, 0.2)


def test_a_round_that_misses_is_repeated_for_half_as_much(ladders: Ladders) -> None:
    current = Round.begin(ladders, (0, 1, 0), STEP)
    for _ in range(LENGTH):
        current = current.after(ladders, (0, 3, 1), 0.3, chance=0.5)
    assert (current.start, current.step) == ((0, 1, 0), STEP / 2)
    assert current.target == pytest.approx(0.1 + 0.9 * STEP / 2)


def test_within_a_round_worse_accuracy_is_taken_by_chance(ladders: Ladders) -> None:
    one = Round.begin(ladders, (0, 0, 0), STEP, worst=0.5).after(ladders, (0, 3, 0), 0.1, chance=0.99)
    assert (one.state, one.harm) == ((0, 3, 0), 0.1)
    limit = math.exp(-((0.2 - 0.1) / 0.5) / one.temperature)
    assert one.after(ladders, (3, 0, 0), 0.2, chance=limit - 1e-6).state == (3, 0, 0)
    assert one.after(ladders, (3, 0, 0), 0.2, chance=limit + 1e-6).state == (0, 3, 0)


def test_what_saves_too_little_or_broke_only_counts(ladders: Ladders) -> None:
    begun = Round.begin(ladders, (0, 1, 0), STEP)
    for heights, harm in (((0, 2, 0), -0.5), ((3, 0, 3), -0.5), ((0, 3, 1), math.inf)):
        after = begun.after(ladders, heights, harm, chance=0.0)
        assert (after.state, after.best, after.count) == ((0, 1, 0), (), 1)


def test_rounds_are_replayed_from_finished_trials(problem: Problem, ladders: Ladders) -> None:
    history = [trial_of(n, ladders.assignment((n % 4, 3, 0)), -0.1) for n in range(LENGTH)]
    running = trial_of(LENGTH, ladders.assignment((3, 3, 3)), 0, TrialState.RUNNING)
    assert replay(problem, ladders, history).start == (0, 3, 0)
    assert replay(problem, ladders, [running, *history[::-1]]) == replay(problem, ladders, history)


def test_every_question_of_a_round_is_one_of_its_plans() -> None:
    problem = widths_problem(SAVINGS | {"d": (1, 2, 5), "e": (2, 3, 4)}, DAMAGE | {"d": (0.3, 0.5, 0.8), "e": (0.3, 0.4, 0.8)})
    ladders = Ladders(problem)
    history: list[TrialResult] = []
    for attempt in range(16):
        current = replay(problem, ladders, history)
        asked = ladders.heights(autocompress(problem, history, attempt))
        assert current.holds(ladders, asked)
        history.append(trial_of(len(history), ladders.assignment(asked), -0.1))
    assert ladders.heights(history[0].assignment) == by_experience(ladders, ladders.bottom, STEP)
