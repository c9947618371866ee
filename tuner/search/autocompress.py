"""Strategy "autocompress": rounds of annealing, each from the best plan of the one before and for less cost."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tuner.results import Assignment, TrialResult
from tuner.search.annealing import acceptance, chance_of, perturbed
from tuner.search.base import STRATEGIES, Problem
from tuner.search.course import DRAWS, ROUNDING, Heights, Ladders, Rung, around, harm_of, in_order, outcomes, plan_key

LENGTH = 8
"""Judged trials of a round."""
STEP = 0.25
"""Of what can still be saved, how much a round asks for."""
SMALLEST = STEP / 16
WARM, COLD = 0.5, 0.02
"""Temperatures at the begin and the end of a round, in units of the largest violation so far."""


@STRATEGIES.register("autocompress")
def autocompress(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    """Goes down in rounds; in each it anneals how the cost of that round is best shared by the layers (Liu et al., 2020,
    arXiv:1907.03141).

    As in the paper, a round asks for a given cost, annealing searches the ratio of each layer with measured accuracy as the energy,
    its first proposal comes from experience, and the best plan of the round is the start of the next, which only goes further.
    A round asks for a quarter of the savings that are left by the first objective's prediction, and lasts for 8 judged trials.
    Every proposal is a perturbed state, made to save just what the round asks for; the first takes from the layers that are
    predicted to suffer least.

    Differences: the paper stops at a given cost, this where accuracy breaks: if the best of a round misses the target, the next
    round begins where that one did and asks for half as much; at a sixteenth, plans around the best are drawn. How weights are
    pruned and trained is not the strategy's affair: the paper's training by ADMM is the space's `pruner: admm`. Rounds are replayed
    from the history."""
    ladders = Ladders(problem)
    current = replay(problem, ladders, history)
    known = outcomes(problem, history)
    if current.step >= SMALLEST:
        for heights in proposals(ladders, current, problem.random(attempt)):
            asked = ladders.assignment(heights)
            if plan_key(problem, asked) not in known:
                return asked
    return around(problem, history, attempt)


@dataclass(frozen=True)
class Round:
    """A round so far. worst: the largest finite violation of the whole search."""

    start: Heights
    target: float
    """The share of all savings that its plans have at least."""
    step: float
    state: Heights
    harm: float = math.inf
    """Of the state; infinite before the first judged trial."""
    best: Heights = ()
    least: float = math.inf
    count: int = 0
    worst: float = 0.0

    @classmethod
    def begin(cls, ladders: Ladders, start: Heights, step: float, worst: float = 0.0) -> Round:
        saved = ladders.saved(start)
        return cls(start, saved + step * (1 - saved), step, start, worst=worst)

    @property
    def temperature(self) -> float:
        """Falls geometrically within the round."""
        return float(WARM * (COLD / WARM) ** (self.count / (LENGTH - 1)))

    def holds(self, ladders: Ladders, heights: Heights) -> bool:
        """Whether a plan goes on from the start and saves what is asked for."""
        further = all(height >= least for height, least in zip(heights, self.start, strict=True))
        return further and ladders.saved(heights) >= self.target - ROUNDING

    def after(self, ladders: Ladders, heights: Heights, harm: float, chance: float) -> Round:
        """The round after one more judged trial, or the next round. A trial of another kind only counts."""
        worst = max(self.worst, harm) if math.isfinite(harm) else self.worst
        now = replace(self, count=self.count + 1, worst=worst)
        if math.isfinite(harm) and self.holds(ladders, heights):
            rise = (harm - self.harm) / (worst or 1.0)
            if chance < acceptance(rise, self.temperature):
                now = replace(now, state=heights, harm=harm)
            if harm < self.least:
                now = replace(now, best=heights, least=harm)
        return now if now.count < LENGTH else now.following(ladders)

    def following(self, ladders: Ladders) -> Round:
        if self.least > 0:
            return Round.begin(ladders, self.start, self.step / 2, self.worst)
        return Round.begin(ladders, self.best, self.step, self.worst)


def replay(problem: Problem, ladders: Ladders, history: Sequence[TrialResult]) -> Round:
    """The round that is on after every finished trial, in order of number."""
    current = Round.begin(ladders, ladders.bottom, STEP)
    for trial in in_order(history):
        if trial.finished:
            current = current.after(ladders, ladders.heights(trial.assignment), harm_of(trial), chance_of(problem, trial))
    return current


def proposals(ladders: Ladders, current: Round, source: random.Random) -> Iterator[Heights]:
    """Plans that the round may ask for next: before its first judged trial the one from experience, then perturbed states."""
    if not math.isfinite(current.harm):
        yield by_experience(ladders, current.start, current.target)
    for count in range(DRAWS):
        heat = min(1.0, current.temperature / WARM * 2 ** (count // 8))
        yield fitted(ladders, current, perturbed(ladders, current.state, heat, source), source)


def by_experience(ladders: Ladders, start: Heights, target: float) -> Heights:
    """From the start always the rung next that is predicted to do the least harm for what it saves, until the target is met."""
    heights = start
    while ladders.saved(heights) < target - ROUNDING and heights != ladders.summit:
        prices = [_price(rungs, height) for rungs, height in zip(ladders.rungs.values(), heights, strict=True)]
        heights = _moved(heights, prices.index(min(prices)), 1)
    return heights


def fitted(ladders: Ladders, current: Round, heights: Heights, source: random.Random) -> Heights:
    """A plan that goes on from the round's start and saves what is asked for, and nowhere more than that needs: first raised, then
    lowered, one rung at a time in layers drawn at random."""
    heights = tuple(max(pair) for pair in zip(heights, current.start, strict=True))
    while ladders.saved(heights) < current.target - ROUNDING and heights != ladders.summit:
        heights = _moved(heights, source.choice([i for i, top in enumerate(ladders.summit) if heights[i] < top]), 1)
    for index in source.sample(range(len(heights)), len(heights)):
        while heights[index] > current.start[index] and ladders.saved(_moved(heights, index, -1)) >= current.target - ROUNDING:
            heights = _moved(heights, index, -1)
    return heights


def _price(rungs: Sequence[Rung], height: int) -> float:
    """Predicted harm per saving of the rung above; infinite on top."""
    if height + 1 == len(rungs):
        return math.inf
    below, above = rungs[height], rungs[height + 1]
    return (above.damage - below.damage) / (above.saving - below.saving)


def _moved(heights: Heights, index: int, by: int) -> Heights:
    return (*heights[:index], heights[index] + by, *heights[index + 1 :])
