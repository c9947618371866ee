"""The walk against the physics that it borrows."""

from __future__ import annotations

import math
import random

import pytest

from tests.course_samples import trial_of, widths, widths_problem
from tuner.results import TrialState
from tuner.search.annealing import COOLING, END, LEAST_MOVED, START, Walk, acceptance, energy, perturbed, replay, rounded
from tuner.search.course import Ladders

PROBLEM = widths_problem({"a": (1, 2, 4), "b": (3,)}, {"a": (0.1, 0.2, 0.4), "b": (0.3,)})


def test_metropolis_takes_what_is_better_and_e_to_the_minus_rise_of_what_is_worse() -> None:
    assert acceptance(-0.3, 0.1) == acceptance(0.0, 0.1) == 1.0
    assert acceptance(0.1, 0.1) == pytest.approx(0.36787944)
    assert acceptance(0.05 * math.log(4), 0.05) == pytest.approx(0.25)
    assert acceptance(math.inf, 0.1) == 0.0


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_a_walk_of_that_rule_visits_states_as_often_as_boltzmann_says(temperature: float) -> None:
    energies = [0.0, 0.1, 0.3]
    source = random.Random(0)
    state, visits = 0, [0, 0, 0]
    for _ in range(60_000):
        to = source.choice([s for s in range(3) if s != state])
        state = to if source.random() < acceptance(energies[to] - energies[state], temperature) else state
        visits[state] += 1
    weights = [math.exp(-e / temperature) for e in energies]
    assert [n / 60_000 for n in visits] == pytest.approx([w / sum(weights) for w in weights], abs=0.015)


def test_every_plan_that_misses_lies_above_every_plan_that_meets() -> None:
    assert energy(0.0, 0.0, 0.5) == 1.0
    assert energy(0.75, -0.1, 0.5) == 0.25
    assert energy(0.9, 0.1, 0.5) == pytest.approx(1.2)
    assert energy(0.0, 0.5, 0.5) == 2.0
    assert energy(0.5, math.inf, 0.5) == math.inf


def test_a_ratio_between_two_options_is_the_mean_of_where_it_is_rounded() -> None:
    shares = (0.0, 0.25, 0.5, 1.0)
    assert [rounded(shares, 0.3, chance) for chance in (0.0, 0.19, 0.21, 0.99)] == [2, 2, 1, 1]
    for ratio in (0.0, 0.1, 0.25, 0.8, 1.0):
        mean = sum(shares[rounded(shares, ratio, (n + 0.5) / 1000)] for n in range(1000)) / 1000
        assert mean == pytest.approx(ratio, abs=1e-3)


def test_a_perturbation_moves_all_layers_when_hot_and_three_when_cold() -> None:
    names = [f"l{i}" for i in range(30)]
    ladders = Ladders(widths_problem(dict.fromkeys(names, (1, 2, 3)), dict.fromkeys(names, (0.1, 0.2, 0.3))))
    start = (1,) * 30

    def moved(heat: float) -> float:
        draws = [perturbed(ladders, start, heat, random.Random(seed)) for seed in range(300)]
        return sum(sum(a != b for a, b in zip(start, drawn, strict=True)) for drawn in draws) / 300

    hot = moved(1.0)
    assert moved(0.0) == pytest.approx(hot * LEAST_MOVED / 30, rel=0.2)
    assert moved(0.5) == pytest.approx(hot / 2, rel=0.1)
    # A ratio of a third stays with the chance of 1/6: the triangle of its rounding, a third high and wide, in a draw of width 2.
    assert hot == pytest.approx(25, rel=0.02)


def test_the_walk_takes_what_chance_allows_and_cools_with_every_trial() -> None:
    walk = Walk((0, 0))
    better = walk.to((1, 1), 0.6, -0.1, chance=0.99)
    assert (better.heights, better.saved, better.temperature) == ((1, 1), 0.6, START * COOLING)
    # A rise of 0.1 at 0.045: e^(-2.22) = 0.108.
    assert better.to((1, 0), 0.5, -0.1, chance=0.10).heights == (1, 0)
    kept = better.to((1, 0), 0.5, -0.1, chance=0.12)
    assert (kept.heights, kept.saved, kept.temperature) == ((1, 1), 0.6, pytest.approx(START * COOLING**2))
    broken = better.to((2, 1), 0.9, math.inf, chance=0.0)
    assert (broken.heights, broken.worst) == ((1, 1), 0.0)
    assert better.to((2, 1), 0.9, 0.3, chance=1e-9).worst == 0.3


def test_the_history_is_replayed_in_order_of_number_without_what_runs() -> None:
    ladders = Ladders(PROBLEM)
    trials = [
        trial_of(0, widths(a="keep-12"), -0.1),
        trial_of(1, widths(a="keep-8"), -0.1),
        trial_of(2, widths(a="keep-4", b="keep-12"), 0.5),
        trial_of(3, widths(b="keep-12"), 0, TrialState.FAILED),
        trial_of(4, widths(a="keep-4"), 0, TrialState.RUNNING),
    ]
    walk = replay(PROBLEM, ladders, trials)
    assert (walk.heights, walk.saved, walk.worst) == ((2, 0), pytest.approx(2 / 7), 0.5)
    assert walk.temperature == pytest.approx(START * COOLING**4)
    assert replay(PROBLEM, ladders, trials[::-1]) == walk
    assert replay(PROBLEM, ladders, [trial_of(n, {}, -0.1) for n in range(200)]).temperature == END
