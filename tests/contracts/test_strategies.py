"""What every registered strategy promises, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest

from search_spaces.schemes import FLOAT, WHOLE
from search_spaces.space import LayerChoices, SearchSpace
from tuner.results import Assignment, Decision, TrialFailure, TrialResult, TrialState, Verdict
from tuner.search import amc
from tuner.search.base import STRATEGIES, LinearCost, Problem, Strategy
from tuner.search.catalogue import load_strategies

load_strategies()

OPTIONS = (FLOAT, "u8-asym-minmax/s8-sym-tensor", "u8-asym-mse/s8-sym-tensor", "u8-asym-mse/s8-sym-channel")
WIDTHS = (WHOLE, "keep-12", "keep-8", "keep-4")
THRESHOLD = 0.5
BUILT_IN = {"amc", "annealing", "auto", "autocompress", "grid", "netadapt", "nsga2", "random", "sensitivity", "tpe"}


def fake_problem(layers: int = 6, options: int = 4, objectives: int = 1, seed: int = 0) -> Problem:
    """Layer i saves i + 1 of what it costs, and its options do harm of 0.3 / (i + 1), a half and a quarter of that."""
    choices = (LayerChoices(name=f"l{i}", op="Conv", input=f"t{i}", options=OPTIONS[:options]) for i in range(layers))
    space = SearchSpace(name="fake", layers=tuple(choices))
    damage = {f"l{i}": dict(zip(OPTIONS, (0.0, 0.3 / (i + 1), 0.15 / (i + 1), 0.075 / (i + 1)), strict=True)) for i in range(layers)}
    costs = {f"l{i}": {o: (i + 1.0) * (2 if o == FLOAT else 1) for o in OPTIONS} for i in range(layers)}
    linear = LinearCost(1.0, costs, (("l0", "l1", 0.5),))

    def predict(assignment: Assignment) -> tuple[float, ...]:
        return (linear(assignment), float(sum(choice == FLOAT for choice in assignment.values())))[:objectives]

    return Problem(space, ("latency", "size")[:objectives], seed, damage, predict, linear)


def joint_problem(layers: int = 2, seed: int = 0) -> Problem:
    """Layers that may lose channels and be quantized. Widths count from 0: what they save is a negative cost."""
    choices, damage, costs = [], {}, {}
    for i in range(layers):
        name, group, size = f"l{i}", f"channels:l{i}", i + 2.0
        choices.append(LayerChoices(name=group, op="Conv", input="", options=WIDTHS, step="channels", layer=name))
        costs[group] = {width: -0.3 * size * n for n, width in enumerate(WIDTHS)}
        damage[group] = {width: 0.02 * n * n * (layers - i) for n, width in enumerate(WIDTHS)}
    for i in range(layers):
        name, size = f"l{i}", i + 2.0
        choices.append(LayerChoices(name=name, op="Conv", input=f"t{i}", options=OPTIONS))
        costs[name] = {o: size * (0.8 if o == FLOAT else 0.3) for o in OPTIONS}
        damage[name] = dict(zip(OPTIONS, (0.0, 0.2 / (i + 1), 0.12 / (i + 1), 0.1 / (i + 1)), strict=True))
    linear = LinearCost(1.0, costs)
    return Problem(SearchSpace(name="joint", layers=tuple(choices)), ("latency",), seed, damage, lambda a: (linear(a),), linear)


def judged(problem: Problem, number: int, assignment: Assignment, threshold: float = THRESHOLD) -> TrialResult:
    violation = problem.total_damage(assignment) - threshold
    decision: Decision = "met" if violation <= 0 else "missed"
    verdict = Verdict(metric="top1", drop=0, lower=0, upper=0, confidence=0.95, decision=decision, violation=violation)
    return TrialResult(number=number, state=TrialState.COMPLETE, assignment=assignment, plan_digest=str(number), verdicts=(verdict,))


def other(trial: TrialResult, state: TrialState) -> TrialResult:
    """The same trial, still running or broken."""
    error = TrialFailure(type="TrialError", message="out of memory", step="measure") if state == TrialState.FAILED else None
    return trial.model_copy(update={"state": state, "verdicts": (), "error": error})


def search(strategy: Strategy, problem: Problem, trials: int, threshold: float = THRESHOLD) -> list[TrialResult]:
    """The loop in small: asks until `trials` different plans were judged, the strategy ends, or it asks for nothing new."""
    history: list[TrialResult] = []
    seen: set[str] = set()
    for attempt in range(10 * trials):
        asked = strategy(problem, history, attempt)
        if asked is None or len(history) == trials:
            break
        plan = str(problem.space.decode(asked))
        if plan not in seen:
            seen.add(plan)
            history.append(judged(problem, len(history), asked, threshold))
    return history


def drawn(problem: Problem, trials: int) -> list[TrialResult]:
    """A history that no strategy at hand made: each layer takes its options in turn, at its own pace."""
    turns = [(layer, pace) for pace, layer in enumerate(problem.space.layers, start=1)]
    choices = ({layer.name: layer.options[n // pace % len(layer.options)] for layer, pace in turns} for n in range(trials))
    return [judged(problem, number, dict(assignment)) for number, assignment in enumerate(choices)]


def with_every_state(problem: Problem, trials: int) -> list[TrialResult]:
    """Every third trial broke, the last two are still running."""
    history = [other(t, TrialState.FAILED) if t.number % 3 == 1 else t for t in drawn(problem, trials)]
    return history[:-2] + [other(t, TrialState.RUNNING) for t in history[-2:]]


@pytest.fixture(params=list(STRATEGIES))
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Strategy:
    monkeypatch.setattr(amc, "UPDATES", 20)  # How well its agent learns is tested with the agent.
    return STRATEGIES[request.param]


def histories(problem: Problem) -> list[Sequence[TrialResult]]:
    only_broken = [other(t, TrialState.FAILED) for t in drawn(problem, 12)]
    only_running = [other(t, TrialState.RUNNING) for t in drawn(problem, 3)]
    mixed = [with_every_state(problem, 5), with_every_state(problem, 25)]
    return [(), drawn(problem, 3), drawn(problem, 25), *mixed, only_broken, only_running]


def test_the_built_in_ones_are_here() -> None:
    assert set(STRATEGIES) >= BUILT_IN


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("layers", [1, 6])
def test_it_asks_only_for_what_the_space_accepts(strategy: Strategy, layers: int, objectives: int) -> None:
    problem = fake_problem(layers, objectives=objectives)
    for history in histories(problem):
        for attempt in (0, 1, 2, 3):
            asked = strategy(problem, history, attempt)
            assert asked is None or len(problem.space.decode(asked)) <= layers
    assert strategy(problem, (), 0) is not None


def test_it_asks_only_for_what_a_space_of_channels_and_numbers_accepts(strategy: Strategy) -> None:
    problem = joint_problem()
    for history in histories(problem):
        for attempt in (0, 1, 2):
            asked = strategy(problem, history, attempt)
            assert asked is not None
            assert set(asked) == set(problem.space.by_name)
            problem.space.decode(asked)


@pytest.mark.parametrize("objectives", [1, 2])
def test_the_same_question_has_the_same_answer(strategy: Strategy, objectives: int) -> None:
    for index in range(len(histories(fake_problem()))):
        one, two = fake_problem(objectives=objectives), fake_problem(objectives=objectives)
        for attempt in (0, 1, 2, 7):
            assert strategy(one, histories(one)[index], attempt) == strategy(two, histories(two)[index], attempt)


def test_the_history_is_left_as_it_was(strategy: Strategy) -> None:
    problem = fake_problem()
    history = with_every_state(problem, 25)
    for attempt in range(4):
        strategy(problem, history, attempt)
    assert history == with_every_state(problem, 25)


def test_another_attempt_has_another_answer(strategy: Strategy) -> None:
    problem = fake_problem()
    # Its own history: a strategy that follows a course may insist on its next step until that was tried.
    history = search(strategy, problem, trials=20)
    for state in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAILED):
        known = history[:-2] + [t if state == TrialState.COMPLETE else other(t, state) for t in history[-2:]]
        answers = [strategy(problem, known, attempt) for attempt in range(200, 220)]
        assert len({str(problem.space.decode(answer)) for answer in answers if answer is not None}) > 3


def test_a_tiny_space_is_walked_through_and_then_ends_or_repeats(strategy: Strategy) -> None:
    problem = fake_problem(layers=2, options=2)
    history = search(strategy, problem, trials=20)
    plans = {str(problem.space.decode(trial.assignment)) for trial in history}
    assert len(history) == len(plans) <= 4
    assert str(problem.space.decode({"l0": OPTIONS[1], "l1": OPTIONS[1]})) in plans


def test_it_finds_something_better_than_float(strategy: Strategy) -> None:
    listing = strategy is STRATEGIES["grid"]  # it would spend forty trials on the last three layers of six
    problem = fake_problem(layers=2, options=4) if listing else fake_problem()
    threshold = 0.12 if listing else THRESHOLD
    history = search(strategy, problem, trials=40, threshold=threshold)
    feasible = [trial for trial in history if trial.feasible]
    assert feasible
    best = min(problem.linear(trial.assignment) for trial in feasible)
    assert best < 0.75 * problem.linear({})


def test_it_finds_more_when_more_is_allowed(strategy: Strategy) -> None:
    problem = fake_problem(layers=3)

    def best(threshold: float) -> float:
        return min(problem.linear(t.assignment) for t in search(strategy, problem, 20, threshold) if t.feasible)

    assert best(0.6) <= best(0.04) < problem.linear({})


def test_two_objectives_give_more_than_one_trade_off(strategy: Strategy) -> None:
    problem = fake_problem(layers=3, objectives=2)
    history = search(strategy, problem, trials=20)
    assert len({problem.values(trial) for trial in history if trial.feasible}) > 1


def test_a_search_that_is_cut_off_goes_on_with_the_same_questions(strategy: Strategy) -> None:
    problem = joint_problem()
    history: list[TrialResult] = []
    asked: list[Assignment | None] = []
    for attempt in range(16):
        asked.append(strategy(problem, history, attempt))
        assert asked[-1] is not None
        history.append(judged(problem, attempt, asked[-1], 0.25).model_copy(update={"attempt": attempt}))
    for cut in (1, 9, 15):
        # Everything that was kept in memory is gone, and the trials come back in another order.
        assert strategy(joint_problem(), history[:cut][::-1], cut) == asked[cut]


def test_it_comes_near_the_best_plan_that_there_is(strategy: Strategy) -> None:
    problem = joint_problem()
    plans = [dict(zip(problem.space.by_name, options, strict=True)) for options in product(WIDTHS, WIDTHS, OPTIONS, OPTIONS)]
    best = min(problem.linear(plan) for plan in plans if problem.total_damage(plan) <= 0.25)
    listing = strategy is STRATEGIES["grid"]  # it begins with the layers that save least
    found = min(problem.linear(t.assignment) for t in search(strategy, problem, 256 if listing else 40, 0.25) if t.feasible)
    original = problem.linear({})
    assert (original - found) / (original - best) > (0.999 if listing or strategy is STRATEGIES["auto"] else 0.75)


def test_broken_trials_and_two_at_once_do_not_stop_it(strategy: Strategy) -> None:
    """Every fourth trial breaks, and a trial is still running when the next is asked for."""
    problem = joint_problem()
    history: list[TrialResult] = []
    seen: set[str] = set()
    for attempt in range(150):
        running = [other(t, TrialState.RUNNING) if t is history[-1] else t for t in history]
        asked = strategy(problem, running, attempt)
        if asked is None or len(history) == 24:
            break
        if str(problem.space.decode(asked)) not in seen:
            seen.add(str(problem.space.decode(asked)))
            trial = judged(problem, len(history), asked, 0.25)
            history.append(other(trial, TrialState.FAILED) if len(history) % 4 == 3 else trial)
    assert len(history) == 24
    assert any(trial.feasible and problem.linear(trial.assignment) < problem.linear({}) for trial in history)
