from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import optuna
import pytest

from search_spaces.schemes import FLOAT
from search_spaces.space import LayerChoices, SearchSpace
from tuner.results import Assignment, Decision, TrialResult, TrialState, Verdict
from tuner.search.base import LinearCost, Problem, Strategy, float_assignment
from tuner.search.bayesian import STARTUP, nsga2, tpe
from tuner.search.exhaustive import random_choice

OPTIONS = (FLOAT, *(f"u8-asym-{c}/s8-sym-{g}" for c in ("minmax", "kl", "mse") for g in ("tensor", "channel")))
BAD, GOOD = OPTIONS[1], OPTIONS[6]
BOTH = pytest.mark.parametrize("strategy", [tpe, nsga2])


def make_problem(layers: int = 8, objectives: int = 1) -> Problem:
    """Cost counts float layers; each option does as much harm as its index says, from 0.6 down to 0.1 for the last."""
    choices = (LayerChoices(name=f"l{i}", op="Conv", input=f"t{i}", options=OPTIONS) for i in range(layers))
    space = SearchSpace(name="fake", layers=tuple(choices))
    damage = {layer.name: {o: (7 - i) / 10 if i else 0.0 for i, o in enumerate(OPTIONS)} for layer in space.layers}
    linear = LinearCost(0.0, {layer.name: {o: float(o == FLOAT) for o in OPTIONS} for layer in space.layers})

    def predict(assignment: Assignment) -> tuple[float, ...]:
        return (linear(assignment), sum(damage[layer][str(o)] for layer, o in assignment.items()))[:objectives]

    return Problem(space, ("latency", "size")[:objectives], 0, damage, predict, linear)


def trial(
    problem: Problem, number: int, choices: Sequence[str], violation: float | None, state: TrialState = TrialState.COMPLETE
) -> TrialResult:
    verdict = [] if violation is None else [_verdict(violation)]
    assignment: Assignment = dict(zip(problem.space.by_name, choices, strict=True))
    return TrialResult(number=number, state=state, assignment=assignment, plan_digest=str(number), verdicts=tuple(verdict))


def _verdict(violation: float) -> Verdict:
    decision: Decision = "met" if violation <= 0 else "missed"
    return Verdict(metric="top1", drop=0.0, lower=0.0, upper=0.0, confidence=0.95, decision=decision, violation=violation)


def asked(strategy: Strategy, problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    answer = strategy(problem, history, attempt)
    assert answer is not None
    return answer


def count(answers: Sequence[Assignment], option: str) -> int:
    return sum(choice == option for answer in answers for choice in answer.values())


def known(problem: Problem, trials: int = 24) -> list[TrialResult]:
    """Random trials of which those with little harm are feasible."""
    drawn = [asked(random_choice, problem, (), attempt) for attempt in range(trials)]
    return [trial(problem, i, [str(v) for v in a.values()], problem.total_damage(a) - 1.2) for i, a in enumerate(drawn)]


@BOTH
def test_the_first_question_is_the_least_damaging_plan_without_float(strategy: Strategy) -> None:
    assert asked(strategy, make_problem(), (), 0) == dict.fromkeys((f"l{i}" for i in range(8)), GOOD)


@BOTH
def test_what_follows_is_random_until_there_is_something_to_learn_from(strategy: Strategy) -> None:
    problem = make_problem()
    history = known(problem, STARTUP)
    assert strategy(problem, history[:-1], 9) == random_choice(problem, (), 9)
    assert strategy(problem, history, 9) != random_choice(problem, (), 9)


@BOTH
def test_a_running_trial_is_nothing_to_learn_from(strategy: Strategy) -> None:
    problem = make_problem()
    history = known(problem, STARTUP)
    history[-1] = history[-1].model_copy(update={"state": TrialState.RUNNING, "verdicts": ()})
    assert strategy(problem, history, 9) == random_choice(problem, (), 9)


@BOTH
def test_questions_move_towards_what_was_feasible_and_cheap(strategy: Strategy) -> None:
    problem = make_problem()
    history = [trial(problem, i, [GOOD] * i + [FLOAT] * (8 - i), -0.1) for i in range(9)]
    history += [trial(problem, 9 + i, [BAD] * i + [FLOAT] * (8 - i), 1.0) for i in range(9)]
    answers = [asked(strategy, problem, history, attempt) for attempt in range(1, 31)]
    # Uniform draws would give each of the seven options 34 of the 240 choices.
    assert count(answers, GOOD) > 80
    assert count(answers, BAD) < 20 if strategy is nsga2 else count(answers, GOOD) > 3 * count(answers, BAD)


@BOTH
@pytest.mark.parametrize("broken", ["failed", "not judged", "undefined"])
def test_what_broke_is_not_asked_for_again(strategy: Strategy, broken: str) -> None:
    problem = make_problem()
    state = TrialState.FAILED if broken == "failed" else TrialState.COMPLETE
    violation = float("nan") if broken == "undefined" else None
    history = [trial(problem, i, [GOOD] * i + [FLOAT] * (8 - i), 1 - i / 10) for i in range(9)]
    # By cost alone these would be among the best.
    history += [trial(problem, 9 + i, [BAD] * 8, violation, state) for i in range(3)]
    answers = [asked(strategy, problem, history, attempt) for attempt in range(1, 21)]
    assert count(answers, BAD) < count(answers, GOOD) / 4


def test_tpe_stays_away_from_running_trials() -> None:
    problem = make_problem(layers=1)
    history = [trial(problem, i, [option], float(option != GOOD)) for i, option in enumerate(OPTIONS * 2)]
    running = [trial(problem, 14 + i, [GOOD], None, TrialState.RUNNING) for i in range(20)]
    free = [asked(tpe, problem, history, attempt) for attempt in range(1, 41)]
    held = [asked(tpe, problem, [*history, *running], attempt) for attempt in range(1, 41)]
    assert count(free, GOOD) > 35
    assert count(held, GOOD) < 20


def test_nsga2_breeds_a_generation_from_the_one_before() -> None:
    problem = make_problem()
    halves = [trial(problem, i, [OPTIONS[2 + i % 2]] * 4 + [OPTIONS[3 - i % 2]] * 4, 0.0) for i in range(STARTUP)]
    genes = {OPTIONS[2], OPTIONS[3]}
    answers = [asked(nsga2, problem, halves, attempt) for attempt in range(1, 41)]
    foreign = sum(choice not in genes for answer in answers for choice in answer.values())
    # Each choice mutates with probability 1/8, to one of the other five options with probability 5/7.
    assert 320 / 8 * 5 / 7 == pytest.approx(foreign, abs=16)
    assert any(len({answer[f"l{i}"] for i in range(4)} & genes) == 2 for answer in answers)


def test_nsga2_forgets_what_no_longer_is_among_the_best_of_a_generation() -> None:
    problem = make_problem()
    first = [trial(problem, i, [BAD] * 8, 1.0) for i in range(STARTUP)]
    second = [trial(problem, STARTUP + i, [GOOD] * 8, -1.0) for i in range(STARTUP)]
    early = [asked(nsga2, problem, [*first, *second[:-1]], attempt) for attempt in range(1, 21)]
    late = [asked(nsga2, problem, [*first, *second], attempt) for attempt in range(1, 21)]
    # Until the second generation is full its members have the first for parents, afterwards the second has replaced it.
    assert count(early, BAD) > 120
    assert count(late, GOOD) > 120


@BOTH
def test_the_order_in_which_trials_finished_does_not_matter(strategy: Strategy) -> None:
    problem = make_problem(objectives=2)
    history = known(problem)
    assert strategy(problem, history, 24) == strategy(problem, history[::-1], 24)


@BOTH
def test_an_assignment_that_names_only_some_layers_leaves_the_others_in_float(strategy: Strategy) -> None:
    problem = make_problem()
    history = known(problem)
    short = [t.model_copy(update={"assignment": {k: v for k, v in t.assignment.items() if v != FLOAT}}) for t in history]
    assert strategy(problem, history, 24) == strategy(problem, short, 24)


@BOTH
def test_a_value_that_is_no_number_is_left_out(strategy: Strategy) -> None:
    problem = make_problem()
    history = known(problem)
    everything_float = float_assignment(problem.space)
    holes = replace(problem, predict=lambda a: (float("nan") if a == everything_float else 1.0,))
    extra = trial(problem, 24, [FLOAT] * 8, -1.0)
    assert strategy(holes, [*history, extra], 25) == strategy(holes, history, 25)


def test_optuna_keeps_quiet_about_our_studies_and_only_ours(caplog: pytest.LogCaptureFixture) -> None:
    problem = make_problem()
    level = logging.getLogger("optuna").level
    tpe(problem, known(problem), 24)
    nsga2(problem, known(problem), 24)
    assert caplog.messages == []
    optuna.create_study(study_name="somebody else's")
    assert caplog.messages == ["A new study created in memory with name: somebody else's"]
    assert logging.getLogger("optuna").level == level


def test_tpe_learns_which_choices_go_together_also_with_two_objectives() -> None:
    problem = make_problem(layers=4, objectives=2)
    good = [trial(problem, i, [OPTIONS[2 + i % 2]] * 4, -1.0) for i in range(4)]
    bad = [t.model_copy(update={"number": 4 + t.number, "verdicts": (_verdict(1.0),)}) for t in known(problem, 36)]
    answers = [asked(tpe, problem, [*good, *bad], attempt) for attempt in range(1, 41)]
    # Learning each layer on its own never gave a plan of one option throughout.
    assert sum(len(set(answer.values())) == 1 for answer in answers) > 20
    assert {answer["l0"] for answer in answers} >= {OPTIONS[2], OPTIONS[3]}
