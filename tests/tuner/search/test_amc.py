"""What the agent is told, how its actions are bounded, and what it makes of a history."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tests.course_samples import trial_of, widths_problem
from tuner.results import TrialResult
from tuner.search.amc import (
    FEATURES,
    PATIENCE,
    WARM_UP,
    amc,
    baseline,
    embedding,
    episode,
    limit_of,
    nearest,
    rewards_of,
    states_of,
    trained,
    transitions,
    truncated_normal,
)
from tuner.search.base import Problem
from tuner.search.course import Ladders
from tuner.search.ddpg import Agent


@pytest.fixture
def problem() -> Problem:
    return widths_problem(
        {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2, 4)}, {"a": (0.1, 0.2, 0.4), "b": (0.01, 0.02, 0.03), "c": (0.1, 0.4, 0.8)}
    )


@pytest.fixture
def ladders(problem: Problem) -> Ladders:
    return Ladders(problem)


class Bold(Agent):
    """Always the same action; remembers what it was shown."""

    def __init__(self, action: float) -> None:
        self.action, self.shown = action, []

    shown: list[np.ndarray]

    def act(self, states: np.ndarray) -> np.ndarray:
        self.shown.append(states[0])
        return np.full(len(states), self.action)


def history(ladders: Ladders, count: int, seed: int = 0) -> list[TrialResult]:
    """Only the first layer does harm, in proportion to its height; the target allows it the first rung."""
    source = random.Random(seed)
    drawn = [tuple(source.randrange(4) for _ in range(3)) for _ in range(count)]
    return [trial_of(n, ladders.assignment(heights), 0.1 * heights[0] - 0.15) for n, heights in enumerate(drawn)]


def test_a_truncated_normal_has_its_known_quantiles() -> None:
    assert truncated_normal(0.5, 0.25, 0.5) == pytest.approx(0.5)
    # Of N(0, 1) between 0 and 1, half lies below Φ⁻¹(0.5 + 0.34134475 / 2).
    assert truncated_normal(0.0, 1.0, 0.5) == pytest.approx(0.44177, abs=1e-4)
    assert truncated_normal(0.3, 0.25, 0.0) == pytest.approx(0.0, abs=1e-9)
    draws = [truncated_normal(0.9, 0.3, (n + 0.5) / 5000) for n in range(5000)]
    assert 0 <= min(draws) < max(draws) <= 1
    low, high = (0 - 0.9) / 0.3, (1 - 0.9) / 0.3
    density = [math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) for z in (low, high)]
    inside = 0.5 * (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2)))
    assert sum(draws) / 5000 == pytest.approx(0.9 + 0.3 * (density[0] - density[1]) / inside, abs=1e-4)


def test_an_action_is_the_nearest_option_that_saves_enough() -> None:
    shares = (0.0, 0.25, 0.5, 1.0)
    assert [nearest(shares, action, -1.0) for action in (0.0, 0.1, 0.2, 0.6, 0.9)] == [0, 0, 1, 2, 3]
    assert nearest(shares, 0.1, 0.3) == 2
    assert nearest(shares, 0.1, 1.7) == 3


def test_later_layers_make_up_for_what_earlier_ones_left(ladders: Ladders) -> None:
    """All can save 10. With an agent that never compresses, half is reached by the last layers alone."""
    assert episode(ladders, Bold(0.0), 0.5, 1e-6, random.Random(0)) == (0, 1, 3)
    assert episode(ladders, Bold(0.0), 0.95, 1e-6, random.Random(0)) == (3, 3, 3)
    assert episode(ladders, Bold(1.0), 0.1, 1e-6, random.Random(0)) == (3, 3, 3)


@pytest.mark.parametrize("seed", range(20))
def test_every_episode_reaches_the_limit(ladders: Ladders, seed: int) -> None:
    source = random.Random(seed)
    limit = source.random()
    assert ladders.saved(episode(ladders, None, limit, 0.5, source)) >= limit - 1e-9


def test_the_state_says_what_is_done_and_what_is_left(ladders: Ladders) -> None:
    agent = Bold(1.0)
    episode(ladders, agent, 0.1, 1e-6, random.Random(0))
    first, second, third = agent.shown
    assert first == pytest.approx([0, 0.3, 0.09375, 0.1875, 0.5, 0, 0.7, 0])
    assert second[5:] == pytest.approx([0.3, 0.4, 1])
    assert third == pytest.approx([2 / 3, 0.4, 0.125, 0.5, 1.0, 0.6, 0, 1])
    assert np.stack(agent.shown) == pytest.approx(states_of(ladders, np.ones((1, 3)))[0])
    assert embedding(ladders).shape == (3, FEATURES - 3)


def test_rewards_have_no_unit_and_a_broken_trial_is_the_worst() -> None:
    saved = [0.2, 0.6, 0.6, 0.4, 0.9]
    found = rewards_of(saved, [-0.1, -0.1, 0.1, 0.2, math.inf])
    assert found == pytest.approx(rewards_of(saved, [-1e-4, -1e-4, 1e-4, 2e-4, math.inf]))
    # Energies 0.8, 0.4, 1.5, 2, 2: what meets the target by cost, then what misses it by how much.
    assert found == pytest.approx(-np.array([0.8, 0.4, 1.5, 2, 2]) / np.std([0.8, 0.4, 1.5, 2, 2]))
    assert list(rewards_of([0.5, 0.5], [math.inf, math.inf])) == [-2.0, -2.0]
    assert baseline([1.0, 1.0, 0.0]) == pytest.approx(0.95)


def test_a_history_gives_one_transition_per_trial_and_layer(ladders: Ladders) -> None:
    judged = history(ladders, 5)
    found = transitions(ladders, judged)
    assert len(found) == 15
    assert list(found.last) == [False, False, True] * 5
    assert np.array_equal(found.after[:2], found.state[1:3])
    rewards = found.reward.reshape(5, 3)
    assert np.array_equal(rewards, np.repeat(rewards[:, :1], 3, axis=1))
    best = max((trial.number for trial in judged if trial.feasible), key=lambda n: ladders.saved(ladders.heights(judged[n].assignment)))
    assert rewards[best, 0] == rewards.max()


def test_a_trained_agent_spares_the_layer_that_does_the_harm(problem: Problem, ladders: Ladders) -> None:
    agent = trained(problem, ladders, history(ladders, 120))
    first, second, third = episode(ladders, agent, 0.0, 1e-6, random.Random(0))
    # The target allows the first layer one rung.
    assert first == 1
    assert second + third >= 3


def test_the_limit_lies_beyond_what_met_the_target_and_comes_nearer_with_misses(ladders: Ladders) -> None:
    met = [trial_of(0, ladders.assignment((1, 1, 0)), -0.1)]
    missed = [trial_of(n, ladders.assignment((3, 3, 3)), 0.1) for n in range(1, 1 + 2 * PATIENCE)]
    draws = [[limit_of(ladders, judged, random.Random(seed)) for seed in range(500)] for judged in ([], met, met + missed)]
    assert [min(each) for each in draws] == pytest.approx([0.0, 0.2, 0.2], abs=0.01)
    assert [max(each) for each in draws] == pytest.approx([0.5, 0.6, 0.3], abs=0.01)


def test_the_agent_speaks_after_the_warm_up_and_the_same_each_time(problem: Problem, ladders: Ladders) -> None:
    judged = history(ladders, WARM_UP + 1)
    assert amc(problem, judged, 30) == amc(problem, judged[::-1], 30)
    fresh = widths_problem(
        {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2, 4)}, {"a": (0.1, 0.2, 0.4), "b": (0.01, 0.02, 0.03), "c": (0.1, 0.4, 0.8)}
    )
    one, two = trained(problem, ladders, judged), trained(fresh, Ladders(fresh), judged)
    assert one is trained(problem, ladders, judged) is not two
    assert all(np.array_equal(a, b) for a, b in zip(one.actor, two.actor, strict=True))
    asked = {str(amc(problem, judged[:count], attempt)) for count in (3, WARM_UP + 1) for attempt in range(4)}
    assert len(asked) > 4
