"""Strategy "annealing": a random walk over plans that grows calm."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.results import Assignment, TrialResult
from tuner.search.base import STRATEGIES, Problem
from tuner.search.course import DRAWS, Heights, Ladders, around, harm_of, in_order, outcomes, plan_key

START, END, COOLING = 0.05, 0.005, 0.9
"""Temperatures, in units of the energy, and what a judged trial leaves of one."""
LEAST_MOVED = 3
"""Layers that a cold walk moves, in the mean."""


@STRATEGIES.register("annealing")
def annealing(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    """A walk by small random changes that takes worse plans less and less often (Kirkpatrick et al., 1983,
    doi:10.1126/science.220.4598.671).

    The state is a compression ratio per layer: the share of what the layer can save by the first objective's prediction, nothing
    at first. A question perturbs it, less as the temperature falls, as in the search of AutoCompress (Liu et al., 2020,
    arXiv:1907.03141): all layers when it is hot and about three when it is cold get a ratio drawn around their own, rounded by
    chance to one of the two options beside it. A judged trial is taken as the new state with the Metropolis probability
    exp(−ΔE/T), whose draw depends on the seed and the trial's number, and cools the walk by a tenth.

    Energy: the share of the savings that a plan leaves, 0 to 1, where it meets the target; else 1 and its violation over the
    largest violation so far. A plan that was asked for before is drawn again. The walk is replayed from the history."""
    ladders = Ladders(problem)
    walk = replay(problem, ladders, history)
    known = outcomes(problem, history)
    source = problem.random(attempt)
    for count in range(DRAWS):
        # Where nothing new lies near, the walk reaches out.
        heat = min(1.0, walk.temperature / START * 2 ** (count // 8))
        asked = ladders.assignment(perturbed(ladders, walk.heights, heat, source))
        if plan_key(problem, asked) not in known:
            return asked
    return around(problem, history, attempt)


@dataclass(frozen=True)
class Walk:
    """Where a walk is. `worst` is the largest finite violation so far."""

    heights: Heights
    saved: float = 0.0
    harm: float = 0.0
    worst: float = 0.0
    temperature: float = START

    def to(self, heights: Heights, saved: float, harm: float, chance: float) -> Walk:
        """The walk after one more judged trial. chance: uniform from 0 to 1, decides whether a worse plan is taken."""
        worst = max(self.worst, harm) if math.isfinite(harm) else self.worst
        rise = energy(saved, harm, worst) - energy(self.saved, self.harm, worst)
        cooler = max(END, self.temperature * COOLING)
        if chance < acceptance(rise, self.temperature):
            return Walk(heights, saved, harm, worst, cooler)
        return Walk(self.heights, self.saved, self.harm, worst, cooler)


def replay(problem: Problem, ladders: Ladders, history: Sequence[TrialResult]) -> Walk:
    """The walk through every finished trial, in order of number."""
    walk = Walk(ladders.bottom)
    for trial in in_order(history):
        if trial.finished:
            heights = ladders.heights(trial.assignment)
            walk = walk.to(heights, ladders.saved(heights), harm_of(trial), chance_of(problem, trial))
    return walk


def chance_of(problem: Problem, trial: TrialResult) -> float:
    """What decides whether a trial that is worse than the state is taken all the same."""
    return random.Random(f"{problem.seed}/accept/{trial.number}").random()


def energy(saved: float, harm: float, worst: float) -> float:
    """saved: share of all savings, 0 to 1; harm: violation, met at 0 or less; worst: the largest finite one."""
    if harm <= 0:
        return 1 - saved
    return 1 + harm / worst if worst > 0 else math.inf


def acceptance(rise: float, temperature: float) -> float:
    """The Metropolis probability of taking a state whose energy is higher by `rise`."""
    return 1.0 if rise <= 0 else math.exp(-rise / temperature)


def perturbed(ladders: Ladders, heights: Heights, heat: float, source: random.Random) -> Heights:
    """Ratios moved by uniform draws from ±1, within 0 to 1. heat: the share of layers that move, at least LEAST_MOVED of them."""
    share = max(heat, LEAST_MOVED / max(1, len(heights)))
    moved = []
    for shares, height in zip(ladders.shares, heights, strict=True):
        ratio = min(1.0, max(0.0, shares[height] + source.uniform(-1, 1)))
        moved.append(rounded(shares, ratio, source.random()) if source.random() < share else height)
    return tuple(moved)


def rounded(shares: Sequence[float], ratio: float, chance: float) -> int:
    """The rung below or above the ratio, so that the mean over `chance`, uniform from 0 to 1, is the ratio itself."""
    below = bisect_right(shares, ratio) - 1
    if below == len(shares) - 1:
        return below
    return below + (chance < (ratio - shares[below]) / (shares[below + 1] - shares[below]))
