"""Strategy "amc": an agent that walks through the layers and learns how far to compress each."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist
from weakref import WeakKeyDictionary

import numpy as np

from tuner.results import Assignment, TrialResult
from tuner.search.annealing import energy
from tuner.search.base import STRATEGIES, Problem
from tuner.search.course import DRAWS, ROUNDING, Heights, Ladders, around, harm_of, in_order, outcomes, plan_key
from tuner.search.ddpg import Agent, Array, Transitions
from tuner.search.sensitivity import at_limit

WARM_UP = 10
"""Judged trials before the agent learns."""
NOISE, CALMING, LEAST_NOISE = 0.25, 0.95, 0.05
"""Standard deviation of the exploration during the warm-up, what each later trial leaves of it, and where that ends."""
UPDATES = 400
BASELINE_DECAY = 0.95
MOST_ENERGY = 2.0
FEATURES = 8
PATIENCE = 4
"""Misses in a row after which the cost that is asked for comes halfway back to what met the target."""

_agents: WeakKeyDictionary[Problem, tuple[tuple[tuple[bytes, float], ...], Agent]] = WeakKeyDictionary()


@STRATEGIES.register("amc")
def amc(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    """An agent compresses layer after layer and learns from the accuracy of the whole (He et al., 2018, arXiv:1802.03494).

    As in the paper, DDPG maps a layer's state to a ratio from 0 to 1: here the share of what the layer can save by the first
    objective's prediction, taken at the nearest option. The state holds the layer's place, its part of all savings, its
    predicted damage at a quarter, half and all of its way, what is saved so far, what later layers can still save, and the
    action before. Exploration is truncated normal noise around the action, constant for 10 trials and then calming. Every step
    of a trial earns the trial's reward, less a moving average as baseline; γ is 1. As in the paper's search under a limit on
    resources, actions are bounded from below so that later layers can still reach the cost that is asked for.

    Differences: the limit is not given. Each question draws it below the cost of the cheapest plan that met the target, from a
    range that shrinks with every miss. The paper's reward where accuracy is guaranteed, −error · log(cost), needs an error
    from 0 to 1; here it is minus the energy of strategy `annealing`, which serves the same end in any metric. Trials are few: until
    there are 10 to learn from, the noise is around the plan of strategy `sensitivity` at the limit, and narrower than in the
    paper. The networks have 32 units in place of 300, and are trained anew for each history, with the job's seed, in 400
    updates: the history is the replay buffer."""
    ladders, known = Ladders(problem), outcomes(problem, history)
    judged = [trial for trial in in_order(history) if trial.finished]
    source = problem.random(attempt)
    learns = len(judged) >= WARM_UP and bool(ladders.names)
    agent = trained(problem, ladders, judged) if learns else None
    noise = max(LEAST_NOISE, NOISE * CALMING ** max(0, len(judged) - WARM_UP))
    for count in range(DRAWS):
        limit = limit_of(ladders, judged, source)
        asked = ladders.assignment(episode(ladders, agent, limit, min(NOISE, noise * 2 ** (count // 8)), source))
        if plan_key(problem, asked) not in known:
            return asked
    return around(problem, history, attempt)


def limit_of(ladders: Ladders, judged: Sequence[TrialResult], source: random.Random) -> float:
    """The share of all savings that a plan is asked to have: drawn from what met the target up to halfway to all, less with misses."""
    best, misses = 0.0, 0
    for trial in judged:
        saved = ladders.saved(ladders.heights(trial.assignment))
        improved = harm_of(trial) <= 0 and saved > best
        best, misses = (saved, 0) if improved else (best, misses + 1)
    return best + (1 - best) * math.pow(0.5, 1 + misses / PATIENCE) * (1 - source.random())


def episode(ladders: Ladders, agent: Agent | None, limit: float, noise: float, source: random.Random) -> Heights:
    """One pass through the layers. limit: the share of all savings to reach."""
    heights: list[int] = []
    reduced, before, left = 0.0, 0.0, ladders.total
    features, plain = embedding(ladders), at_limit(ladders, limit)
    for index, (shares, top) in enumerate(zip(ladders.shares, ladders.tops, strict=True)):
        left -= top
        mean = shares[plain[index]]
        if agent is not None:
            state = np.array([*features[index], reduced / ladders.total, left / ladders.total, before])
            mean = float(agent.act(state[None])[0])
        needed = (limit * ladders.total - reduced - left) / top
        action = max(truncated_normal(mean, noise, source.random()), needed)
        height = nearest(shares, action, needed)
        heights.append(height)
        before, reduced = shares[height], reduced + shares[height] * top
    return tuple(heights)


def nearest(shares: Sequence[float], action: float, needed: float) -> int:
    """The rung nearest to the action among those that save what is needed; the top where none does."""
    enough = [index for index, share in enumerate(shares) if share >= needed - ROUNDING]
    return min(enough, key=lambda index: abs(shares[index] - action), default=len(shares) - 1)


def truncated_normal(mean: float, deviation: float, chance: float) -> float:
    """The quantile at `chance` of a normal distribution cut off below 0 and above 1."""
    normal = NormalDist(mean, deviation)
    low, high = normal.cdf(0.0), normal.cdf(1.0)
    at = low + chance * (high - low)
    return min(1.0, max(0.0, normal.inv_cdf(at))) if 0 < at < 1 else float(at >= 1)


def trained(problem: Problem, ladders: Ladders, judged: Sequence[TrialResult]) -> Agent:
    """The agent that these trials make, the same for the same trials and seed. The last one is kept: a question whose answer turns out
    to be known is asked again with the same history."""
    told = tuple((plan_key(problem, trial.assignment), harm_of(trial)) for trial in judged)
    if problem in _agents and _agents[problem][0] == told:
        return _agents[problem][1]
    source = np.random.default_rng(random.Random(f"{problem.seed}/agent").getrandbits(64))
    agent = Agent(FEATURES, source)
    agent.learn(transitions(ladders, judged), UPDATES, source)
    _agents[problem] = told, agent
    return agent


def transitions(ladders: Ladders, judged: Sequence[TrialResult]) -> Transitions:
    """Every step of every trial, [trials · layers]. The reward of a step is that of its trial, less the baseline."""
    heights = [ladders.heights(trial.assignment) for trial in judged]
    actions = np.array([[shares[h] for shares, h in zip(ladders.shares, each, strict=True)] for each in heights])
    rewards = rewards_of([ladders.saved(each) for each in heights], [harm_of(trial) for trial in judged])
    states = states_of(ladders, actions)
    after = np.concatenate([states[:, 1:], np.zeros_like(states[:, :1])], axis=1)
    last = np.zeros(actions.shape, dtype=bool)
    last[:, -1] = True
    wide = np.repeat(rewards - baseline(rewards), actions.shape[1])
    return Transitions(states.reshape(-1, FEATURES), actions.ravel(), wide, after.reshape(-1, FEATURES), last.ravel())


def states_of(ladders: Ladders, actions: Array) -> Array:
    """[trials, layers, features] for actions [trials, layers], as `episode` builds them one by one."""
    tops = np.array(ladders.tops)
    saved = actions * tops
    reduced = (np.cumsum(saved, axis=1) - saved) / ladders.total
    left = np.broadcast_to((ladders.total - np.cumsum(tops)) / ladders.total, actions.shape)
    before = np.concatenate([np.zeros((len(actions), 1)), actions[:, :-1]], axis=1)
    fixed = np.broadcast_to(embedding(ladders), (*actions.shape, FEATURES - 3))
    return np.concatenate([fixed, np.stack([reduced, left, before], axis=2)], axis=2)


def embedding(ladders: Ladders) -> Array:
    """[layers, 5] of what is known of each layer: its place, its part of all savings, and the predicted damage at a quarter, half and all
    of its way, in straight lines between options, over the largest of any layer."""
    count = len(ladders.names)
    curves = [np.array([rung.damage for rung in rungs]) for rungs in ladders.rungs.values()]
    largest = max((float(curve[-1]) for curve in curves), default=0.0) or 1.0
    damage = [np.interp([0.25, 0.5, 1.0], shares, curve / largest) for shares, curve in zip(ladders.shares, curves, strict=True)]
    return np.array([[i / count, top / ladders.total, *damage[i]] for i, top in enumerate(ladders.tops)]).reshape(count, FEATURES - 3)


def rewards_of(saved: Sequence[float], harms: Sequence[float]) -> Array:
    """Minus the energies over their spread; a broken trial counts as the worst one. saved: shares of all savings; harms: violations."""
    worst = max((harm for harm in harms if math.isfinite(harm)), default=0.0)
    found = -np.array([min(MOST_ENERGY, energy(share, harm, worst)) for share, harm in zip(saved, harms, strict=True)])
    return np.asarray(found / (float(found.std()) or 1.0))


def baseline(rewards: Sequence[float] | Array) -> float:
    """The exponential moving average of the rewards, in their order."""
    average = float(rewards[0])
    for reward in rewards:
        average += (1 - BASELINE_DECAY) * (float(reward) - average)
    return average
