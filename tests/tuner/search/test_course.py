"""Ladders, outcomes and plans around the best."""

from __future__ import annotations

import math

import pytest

from search_spaces.schemes import FLOAT
from search_spaces.space import LayerChoices, SearchSpace
from tests.course_samples import WIDTHS, trial_of, widths, widths_problem
from tuner.results import Assignment, TrialState, Verdict
from tuner.search.base import LinearCost, Problem
from tuner.search.course import Ladders, around, harm_of, outcomes, plan_key

MINMAX, MSE, CHANNEL = "u8-asym-minmax/s8-sym-tensor", "u8-asym-mse/s8-sym-tensor", "u8-asym-mse/s8-sym-channel"
PROBLEM = widths_problem({"a": (1, 2, 3), "b": (2, 2.5, 4)}, {"a": (0.1, 0.2, 0.4), "b": (0.1, 0.3, 0.2)})


def quantization() -> Problem:
    layers = (
        LayerChoices(name="a", op="Conv", input="x", options=(FLOAT, MINMAX, MSE, CHANNEL)),
        LayerChoices(name="b", op="Conv", input="x", options=(FLOAT, MINMAX, MSE)),
        LayerChoices(name="c", op="Conv", input="z", options=(FLOAT, MINMAX)),
    )
    costs = {
        "a": {FLOAT: 4.0, MINMAX: 1.0, MSE: 1.0, CHANNEL: 2.0},
        "b": {FLOAT: 1.0, MINMAX: 1.5, MSE: 0.5},
        "c": {FLOAT: 1.0, MINMAX: 1.0},
    }
    damage = {
        "a": {FLOAT: 0.0, MINMAX: 0.3, MSE: 0.2, CHANNEL: 0.1},
        "b": {FLOAT: 0.0, MINMAX: 0.1, MSE: 0.2},
        "c": {FLOAT: 0.0, MINMAX: 0.1},
    }
    linear = LinearCost(1.0, costs)
    return Problem(SearchSpace(name="q", layers=layers), ("latency",), 0, damage, lambda a: (linear(a),), linear)


def test_a_ladder_holds_what_saves_and_nothing_that_another_option_beats() -> None:
    ladders = Ladders(quantization())
    assert {name: [rung.option for rung in rungs] for name, rungs in ladders.rungs.items()} == {
        "a": [FLOAT, CHANNEL, MSE],
        "b": [FLOAT, MSE],
    }
    assert [rung.saving for rung in ladders.rungs["a"]] == [0.0, 2.0, 3.0]
    assert ladders.total == 3.5
    assert ladders.shares == ((0.0, 2 / 3, 1.0), (0.0, 1.0))
    assert (ladders.bottom, ladders.summit) == ((0, 0), (2, 1))


def test_widths_are_rungs_by_what_they_save_from_nothing() -> None:
    ladders = Ladders(PROBLEM)
    # keep-8 of b does more harm than keep-4 and saves less.
    assert {name: [rung.option for rung in rungs] for name, rungs in ladders.rungs.items()} == {
        "channels:a": list(WIDTHS),
        "channels:b": ["whole", "keep-12", "keep-4"],
    }
    assert ladders.saved((3, 2)) == 1.0
    assert ladders.saved((1, 1)) == pytest.approx(3 / 7)


def test_heights_and_assignments_are_inverse_and_other_options_count_as_the_rung_below() -> None:
    ladders = Ladders(PROBLEM)
    for heights in ((0, 0), (3, 2), (1, 0)):
        assert ladders.heights(ladders.assignment(heights)) == heights
    assert ladders.heights(widths(b="keep-8")) == (0, 1)
    wide = Ladders(quantization())
    assert wide.heights({"a": MINMAX, "b": MINMAX, "c": MINMAX}) == (2, 0)
    assert wide.assignment((1, 1)) == {"a": CHANNEL, "b": MSE, "c": FLOAT}


def test_a_problem_without_any_saving_has_no_ladders() -> None:
    ladders = Ladders(widths_problem({"a": (-1, -2)}, {"a": (0.1, 0.2)}))
    assert (ladders.names, ladders.total, ladders.saved(())) == ((), 0.0, 0.0)


def test_assignments_that_mean_the_same_plan_have_the_same_key() -> None:
    problem = quantization()
    # a and b read one tensor, so b takes the range of a.
    one: Assignment = {"a": MINMAX, "b": MINMAX}
    assert plan_key(problem, one) == plan_key(problem, one | {"b": MSE})
    assert plan_key(problem, one) != plan_key(problem, {"a": MINMAX})
    assert plan_key(PROBLEM, {}) == plan_key(PROBLEM, widths(a="whole", b="whole"))


def test_harm_is_about_accuracy_unless_only_costs_are_limited() -> None:
    known = trial_of(0, {}, 0.02)
    slow = Verdict(metric="latency_ms", drop=9, lower=9, upper=9, confidence=0.95, decision="missed", violation=9)
    assert harm_of(known) == 0.02
    assert harm_of(known.model_copy(update={"verdicts": (slow, *known.verdicts)})) == 0.02
    assert harm_of(known.model_copy(update={"verdicts": (slow,)})) == 9
    assert harm_of(trial_of(0, {}, math.nan)) == math.inf
    assert harm_of(trial_of(0, {}, 0.0, TrialState.FAILED)) == math.inf


def test_the_original_does_no_harm_and_a_running_trial_is_not_known() -> None:
    history = [trial_of(0, widths(a="keep-4"), -0.1), trial_of(1, widths(a="keep-8"), 0, TrialState.RUNNING)]
    found = outcomes(PROBLEM, history)
    keys = [plan_key(PROBLEM, chosen) for chosen in ({}, widths(a="keep-4"), widths(a="keep-8"))]
    assert [found[key] for key in keys] == [0.0, -0.1, None]
    assert len(found) == 3


def test_plans_around_the_best_are_new_near_and_cheaper_where_they_can_be() -> None:
    history = [trial_of(0, widths(a="keep-8", b="keep-12"), -0.1), trial_of(1, widths(a="keep-4", b="keep-4"), 0.3)]
    best = history[0].assignment
    for attempt in range(50):
        near = around(PROBLEM, history, attempt)
        assert PROBLEM.linear(near) < PROBLEM.linear(best)
        assert near != history[1].assignment


def test_without_a_plan_that_met_the_target_plans_of_less_harm_are_near() -> None:
    history = [trial_of(0, widths(a="keep-8", b="keep-4"), 0.1), trial_of(1, widths(a="keep-4", b="keep-4"), 0.3)]
    for attempt in range(50):
        assert PROBLEM.total_damage(around(PROBLEM, history, attempt)) < 0.4


def test_where_everything_is_known_something_is_drawn_all_the_same() -> None:
    everything = [trial_of(n, widths(a=WIDTHS[n % 4], b=WIDTHS[n // 4]), 0.1) for n in range(16)]
    assert set(around(PROBLEM, everything, 3)) == set(PROBLEM.space.by_name)
