"""NetAdapt by hand, on three layers of a network that costs 10."""

from __future__ import annotations

import pytest

from tests.course_samples import trial_of, widths, widths_problem
from tuner.results import Assignment, TrialResult, TrialState
from tuner.search.base import Problem
from tuner.search.course import Ladders
from tuner.search.netadapt import DECAY, PROPOSALS, STEP, netadapt, proposals_from

SAVINGS = {"a": (0.5, 1.5, 2.5), "b": (0.9, 1.8, 2.7), "c": (1.0, 2.0, 3.0)}
DAMAGE = {"a": (0.1, 0.3, 0.9), "b": (0.2, 0.4, 0.8), "c": (0.1, 0.2, 0.6)}


def make() -> Problem:
    return widths_problem(SAVINGS, DAMAGE)


def chosen(assignment: Assignment) -> dict[str, str]:
    return {name.removeprefix("channels:"): str(option) for name, option in assignment.items() if option != "whole"}


def test_the_first_iteration_asks_for_the_least_of_each_layer_that_saves_a_tenth() -> None:
    """A tenth of 10 is 1: keep-12 saves too little in a and b, and just enough in c; less predicted damage goes first."""
    problem = make()
    history: list[TrialResult] = []
    asked = []
    for _ in range(3):
        asked.append(netadapt(problem, history, len(history)))
        history.append(trial_of(len(history), asked[-1], -0.1))
    assert [chosen(each) for each in asked] == [{"c": "keep-12"}, {"a": "keep-8"}, {"b": "keep-8"}]


@pytest.mark.parametrize(
    ("violations", "winner"),
    [((-0.3, -0.2, -0.1), {"c": "keep-12"}), ((-0.1, -0.2, -0.3), {"b": "keep-8"}), ((0.1, -0.2, 0.3), {"a": "keep-8"})],
)
def test_the_most_accurate_proposal_is_where_the_next_iteration_begins(violations: tuple[float, ...], winner: dict[str, str]) -> None:
    problem = make()
    first = [widths(c="keep-12"), widths(a="keep-8"), widths(b="keep-8")]
    history = [trial_of(n, plan, violation) for n, (plan, violation) in enumerate(zip(first, violations, strict=True))]
    following = chosen(netadapt(problem, history, 3))
    assert set(winner) <= set(following)
    # 0.96 of the first step: one more width of c, which saves 1.0, is enough.
    assert following == (winner | {"c": "keep-12"} if "c" not in winner else {"c": "keep-8"})


def test_each_proposal_meets_the_cost_with_one_layer_and_no_lower_rung_does() -> None:
    problem = make()
    ladders = Ladders(problem)
    start, step = (1, 0, 1), STEP * DECAY
    found = proposals_from(problem, ladders, start, step)
    allowed = problem.linear(ladders.assignment(start)) - 10 * step
    for heights in found:
        (index,) = [i for i in range(3) if heights[i] != start[i]]
        lower = (*heights[:index], heights[index] - 1, *heights[index + 1 :])
        assert problem.linear(ladders.assignment(heights)) <= allowed + 1e-9
        assert problem.linear(ladders.assignment(lower)) > allowed
    assert sorted(found) == [(1, 0, 2), (1, 2, 1), (2, 0, 1)]


def test_where_all_miss_the_step_is_halved_from_the_same_start() -> None:
    first = [widths(c="keep-12"), widths(a="keep-8"), widths(b="keep-8")]
    history = [trial_of(n, plan, 0.1) for n, plan in enumerate(first)]
    # Half a tenth: keep-12 of a saves 0.5 and keep-12 of b 0.9; that of c is known.
    assert chosen(netadapt(make(), history, 3)) == {"a": "keep-12"}
    history.append(trial_of(3, widths(a="keep-12"), 0.1))
    assert chosen(netadapt(make(), history, 4)) == {"b": "keep-12"}


def test_a_broken_proposal_is_never_the_start() -> None:
    first = [widths(c="keep-12"), widths(a="keep-8"), widths(b="keep-8")]
    states = (TrialState.FAILED, TrialState.COMPLETE, TrialState.FAILED)
    history = [trial_of(n, plan, -0.1, state) for n, (plan, state) in enumerate(zip(first, states, strict=True))]
    assert chosen(netadapt(make(), history, 3))["a"] == "keep-8"


def test_while_a_proposal_runs_it_asks_for_something_else() -> None:
    first = [widths(c="keep-12"), widths(a="keep-8"), widths(b="keep-8")]
    history = [trial_of(n, plan, -0.1, TrialState.RUNNING if n == 1 else TrialState.COMPLETE) for n, plan in enumerate(first)]
    answers = [chosen(netadapt(make(), history, attempt)) for attempt in range(3, 9)]
    assert all(answer not in [chosen(plan) for plan in first] for answer in answers)
    assert len({str(answer) for answer in answers}) > 1


def test_of_many_layers_the_least_damaging_are_proposed() -> None:
    names = [f"l{i}" for i in range(12)]
    problem = widths_problem(dict.fromkeys(names, (2.0,)), {name: (0.1 * (12 - i),) for i, name in enumerate(names)})
    found = proposals_from(problem, Ladders(problem), (0,) * 12, STEP / 2)
    assert [heights.index(1) for heights in found] == list(range(11, 11 - PROPOSALS, -1))
