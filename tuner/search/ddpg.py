"""Deep deterministic policy gradient (Lillicrap et al., 2015, arXiv:1509.02971) for one action from 0 to 1, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Params = list[Array]
"""Weight [in, out] and bias [out] of each layer in turn."""

HIDDEN = 32
BATCH = 64
ACTOR_RATE, CRITIC_RATE = 3e-4, 1e-2
TARGET_RATE = 0.05
"""τ: how much of the learnt networks the target networks take over with each update."""


@dataclass(frozen=True)
class Transitions:
    """Steps that were made: states [n, d], actions [n], rewards [n], the states that followed [n, d], whether none did [n]."""

    state: Array
    action: Array
    reward: Array
    after: Array
    last: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.action)

    def take(self, rows: NDArray[np.int64]) -> Transitions:
        return Transitions(self.state[rows], self.action[rows], self.reward[rows], self.after[rows], self.last[rows])


class Agent:
    """Actor μ(s) and critic Q(s, a), each with its slowly following target network."""

    def __init__(self, width: int, source: np.random.Generator) -> None:
        self.actor = network([width, HIDDEN, HIDDEN, 1], source)
        self.critic = network([width + 1, HIDDEN, HIDDEN, 1], source)
        self.slow_actor, self.slow_critic = [p.copy() for p in self.actor], [p.copy() for p in self.critic]
        self._actor_step, self._critic_step = Adam(self.actor, ACTOR_RATE), Adam(self.critic, CRITIC_RATE)

    def act(self, states: Array) -> Array:
        """μ(s), from 0 to 1. states: [n, d]; returns [n]."""
        return policy(self.actor, states)

    def learn(self, seen: Transitions, updates: int, source: np.random.Generator) -> None:
        """Algorithm 1's inner loop on batches drawn from `seen`, with γ = 1: episodes end."""
        for _ in range(updates):
            batch = seen.take(source.integers(len(seen), size=min(BATCH, len(seen))))
            future = values(self.slow_critic, batch.after, policy(self.slow_actor, batch.after))
            wanted = batch.reward + np.where(batch.last, 0.0, future)
            self._critic_step(self.critic, critic_gradient(self.critic, batch.state, batch.action, wanted))
            self._actor_step(self.actor, actor_gradient(self.actor, self.critic, batch.state))
            for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
                for old, new in zip(slow, fast, strict=True):
                    old += TARGET_RATE * (new - old)


class Adam:
    """Adam (Kingma and Ba, 2014, arXiv:1412.6980, algorithm 1)."""

    def __init__(self, params: Params, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.mean, self.square = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]

    def __call__(self, params: Params, gradient: Params) -> None:
        """One step down, in place."""
        self.count += 1
        for p, g, m, v in zip(params, gradient, self.mean, self.square, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= self.rate * (m / (1 - 0.9**self.count)) / (np.sqrt(v / (1 - 0.999**self.count)) + 1e-8)


def network(widths: Sequence[int], source: np.random.Generator) -> Params:
    """Weights uniform in ±1/√in, the last layer's in ±0.003, so that first outputs are near 0 (section 7 of Lillicrap et al.)."""
    params: Params = []
    for index, (before, after) in enumerate(pairwise(widths)):
        bound = 3e-3 if index == len(widths) - 2 else before**-0.5
        params += [source.uniform(-bound, bound, (before, after)), np.zeros(after)]
    return params


def forward(params: Params, x: Array) -> tuple[Array, list[Array]]:
    """The last layer's sums [n] and what each layer read; rectified between layers. x: [n, in]."""
    read = [x]
    for index in range(0, len(params) - 2, 2):
        read.append(np.maximum(read[-1] @ params[index] + params[index + 1], 0.0))
    return (read[-1] @ params[-2] + params[-1])[:, 0], read


def backward(params: Params, read: Sequence[Array], slope: Array) -> tuple[Params, Array]:
    """(∂L/∂params, ∂L/∂x [n, in]) where slope [n] is ∂L/∂ the last layer's sums."""
    gradient: Params = []
    flowing = slope[:, None]
    for index in range(len(params) - 2, -1, -2):
        entered = read[index // 2]
        gradient = [entered.T @ flowing, flowing.sum(axis=0), *gradient]
        flowing = flowing @ params[index].T
        if index:
            flowing = flowing * (entered > 0)
    return gradient, flowing


def policy(actor: Params, states: Array) -> Array:
    return sigmoid(forward(actor, states)[0])


def values(critic: Params, states: Array, actions: Array) -> Array:
    """Q(s, a). states: [n, d], actions: [n]; returns [n]."""
    return forward(critic, np.column_stack([states, actions]))[0]


def critic_gradient(critic: Params, states: Array, actions: Array, wanted: Array) -> Params:
    """Of the mean of (wanted − Q(s, a))² by the critic's parameters. wanted: [n]."""
    found, read = forward(critic, np.column_stack([states, actions]))
    return backward(critic, read, 2 * (found - wanted) / len(found))[0]


def actor_gradient(actor: Params, critic: Params, states: Array) -> Params:
    """Of −mean Q(s, μ(s)) by the actor's parameters: the deterministic policy gradient, with its sign turned to be descended."""
    sums, read = forward(actor, states)
    actions = sigmoid(sums)
    _, entered = forward(critic, np.column_stack([states, actions]))
    by_action = backward(critic, entered, np.full(len(states), -1 / len(states)))[1][:, -1]
    return backward(actor, read, by_action * actions * (1 - actions))[0]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))
