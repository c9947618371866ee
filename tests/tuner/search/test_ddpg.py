"""Gradients against finite differences, and an agent that finds the best action of a known reward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tuner.search.ddpg import (
    Adam,
    Agent,
    Params,
    Transitions,
    actor_gradient,
    backward,
    critic_gradient,
    forward,
    network,
    policy,
    sigmoid,
    values,
)


def numerical(params: Params, loss: Callable[[], float], step: float = 1e-6) -> Params:
    """Central differences of a loss that reads `params`, which are put back."""
    found = []
    for p in params:
        slopes = np.zeros_like(p)
        for index in np.ndindex(p.shape):
            kept = p[index]
            p[index] = kept + step
            above = loss()
            p[index] = kept - step
            slopes[index] = (above - loss()) / (2 * step)
            p[index] = kept
        found.append(slopes)
    return found


def small(width: int, source: np.random.Generator) -> Params:
    """A network whose last layer is not nearly zero, so that errors would show."""
    params = network([width, 5, 4, 1], source)
    return [p + source.normal(0, 0.5, p.shape) for p in params]


def same(one: Params, two: Params) -> None:
    for a, b in zip(one, two, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_the_gradient_of_a_network_is_that_of_finite_differences() -> None:
    source = np.random.default_rng(0)
    params, x, weight = small(3, source), source.normal(size=(7, 3)), source.normal(size=7)
    gradient, by_input = backward(params, forward(params, x)[1], weight)
    same(gradient, numerical(params, lambda: float(weight @ forward(params, x)[0])))
    same([by_input], numerical([x], lambda: float(weight @ forward(params, x)[0])))


def test_the_critic_descends_its_squared_error() -> None:
    source = np.random.default_rng(1)
    critic, states, actions, wanted = small(4, source), source.normal(size=(6, 3)), source.uniform(size=6), source.normal(size=6)
    gradient = critic_gradient(critic, states, actions, wanted)
    same(gradient, numerical(critic, lambda: float(np.mean((wanted - values(critic, states, actions)) ** 2))))


def test_the_actor_ascends_what_the_critic_says_of_its_actions() -> None:
    source = np.random.default_rng(2)
    actor, critic, states = small(3, source), small(4, source), source.normal(size=(6, 3))
    gradient = actor_gradient(actor, critic, states)
    same(gradient, numerical(actor, lambda: -float(np.mean(values(critic, states, policy(actor, states))))))


def test_a_new_agent_is_undecided() -> None:
    source = np.random.default_rng(3)
    agent = Agent(4, source)
    np.testing.assert_allclose(agent.act(source.uniform(size=(50, 4))), 0.5, atol=0.02)


def test_adam_starts_with_steps_of_its_rate() -> None:
    params = [np.array([1.0, -1.0])]
    step = Adam(params, 0.1)
    step(params, [np.array([3.0, -1e-4])])
    np.testing.assert_allclose(params[0], [0.9, -0.9], atol=1e-4)


def test_sigmoid_holds_at_the_ends() -> None:
    assert sigmoid(np.array([0.0, 1e9, -1e9])) == pytest.approx([0.5, 1.0, 0.0])


def bandit(best: Callable[[np.ndarray], np.ndarray], source: np.random.Generator, count: int = 800) -> Transitions:
    """Episodes of one step whose reward falls with the square of the distance from the best action."""
    states, actions = source.uniform(size=(count, 2)), source.uniform(size=count)
    rewards = -4 * (actions - best(states)) ** 2
    return Transitions(states, actions, rewards, np.zeros_like(states), np.ones(count, dtype=bool))


def test_the_agent_learns_the_best_action_of_each_state() -> None:
    source = np.random.default_rng(4)
    agent = Agent(2, source)
    agent.learn(bandit(lambda states: 0.2 + 0.6 * states[:, 0], source), 800, source)
    found = agent.act(np.array([[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]]))
    assert found == pytest.approx([0.2, 0.5, 0.8], abs=0.12)


def test_what_follows_counts_as_much_as_what_is_earned_at_once() -> None:
    """The first action earns nothing but leads to a state whose value is the action itself."""
    source = np.random.default_rng(5)
    first = source.uniform(size=400)
    start, middle = np.zeros((400, 2)), np.column_stack([first, np.ones(400)])
    one = Transitions(start, first, np.zeros(400), middle, np.zeros(400, dtype=bool))
    two = Transitions(middle, source.uniform(size=400), first, np.zeros((400, 2)), np.ones(400, dtype=bool))
    both = Transitions(*(np.concatenate([a, b]) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)))
    agent = Agent(2, source)
    agent.learn(both, 800, source)
    assert agent.act(np.zeros((1, 2)))[0] > 0.8
    last = Transitions(both.state, both.action, both.reward, both.after, np.ones(800, dtype=bool))
    blind = Agent(2, np.random.default_rng(5))
    blind.learn(last, 300, np.random.default_rng(5))
    assert values(agent.critic, np.zeros((1, 2)), np.ones(1))[0] > values(blind.critic, np.zeros((1, 2)), np.ones(1))[0] + 0.3
