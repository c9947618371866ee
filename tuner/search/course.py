"""What strategies that follow a course have in common: how far each layer can go, what became of a plan, and where to look when the
course is over."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from weakref import WeakKeyDictionary

from tuner.job import COST_METRICS
from tuner.results import Assignment, TrialResult, TrialState
from tuner.search.base import Problem, float_assignment
from tuner.search.exhaustive import draw

DRAWS = 40
"""Plans that are drawn to find one that is new."""
ROUNDING = 1e-9

Heights = tuple[int, ...]
"""A plan as the rung of each ladder; 0 is a layer left alone."""

_keys: WeakKeyDictionary[Problem, dict[tuple[object, ...], bytes]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Rung:
    """One option on a layer's way from left alone to as small as it gets. saving: of the first objective's predicted cost."""

    option: str
    saving: float
    damage: float


class Ladders:
    """The rungs of every layer that can save something: the options that no other one matches in both saving and damage, the one that
    leaves the layer alone first, then by rising saving, which is by rising damage too."""

    def __init__(self, problem: Problem) -> None:
        found = {layer.name: _rungs(problem, layer.name, layer.options) for layer in problem.space.layers}
        self.problem = problem
        self.rungs = {name: rungs for name, rungs in found.items() if len(rungs) > 1}
        self.names = tuple(self.rungs)
        self.tops = tuple(rungs[-1].saving for rungs in self.rungs.values())
        self.total = sum(self.tops)
        """What all layers together can save."""
        self.bottom: Heights = (0,) * len(self.rungs)
        self.summit: Heights = tuple(len(rungs) - 1 for rungs in self.rungs.values())

    @cached_property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """The saving of each rung as a share of its ladder's top: from 0 to 1."""
        return tuple(tuple(rung.saving / top for rung in rungs) for rungs, top in zip(self.rungs.values(), self.tops, strict=True))

    def assignment(self, heights: Heights) -> Assignment:
        chosen = {name: rungs[height].option for (name, rungs), height in zip(self.rungs.items(), heights, strict=True)}
        return float_assignment(self.problem.space) | chosen

    def heights(self, assignment: Assignment) -> Heights:
        """Where a plan stands. An option that is no rung counts as the highest rung that saves no more."""
        return tuple(self._height(name, rungs, assignment) for name, rungs in self.rungs.items())

    def saved(self, heights: Heights) -> float:
        """The share of all that can be saved, conversions between layers apart."""
        return sum(rungs[height].saving for rungs, height in zip(self.rungs.values(), heights, strict=True)) / (self.total or 1.0)

    def _height(self, name: str, rungs: Sequence[Rung], assignment: Assignment) -> int:
        option = str(assignment.get(name, rungs[0].option))
        exact = next((index for index, rung in enumerate(rungs) if rung.option == option), None)
        if exact is not None:
            return exact
        saving = _saving(self.problem, name, option, rungs[0].option)
        return max((index for index, rung in enumerate(rungs) if rung.saving <= saving), default=0)


def plan_key(problem: Problem, assignment: Assignment) -> bytes:
    """Equal for assignments that decode to the same plan."""
    known = _keys.setdefault(problem, {})
    raw = tuple(assignment.get(layer.name, layer.rest) for layer in problem.space.layers)
    if raw not in known:
        known[raw] = blake2b(str(problem.space.decode(assignment)).encode(), digest_size=16).digest()
    return known[raw]


def harm_of(trial: TrialResult) -> float:
    """By how much a trial misses what is asked of its accuracy (0 or less: it does not), infinite where it broke or was not judged.

    A constraint on a cost counts only where there is no other: on the way to small plans every plan misses it."""
    if trial.state == TrialState.FAILED or not trial.verdicts:
        return math.inf
    accuracy = [verdict.violation for verdict in trial.verdicts if verdict.metric not in COST_METRICS]
    worst = max(accuracy or [verdict.violation for verdict in trial.verdicts])
    return math.inf if math.isnan(worst) else worst


def outcomes(problem: Problem, history: Iterable[TrialResult]) -> dict[bytes, float | None]:
    """{plan: its harm, None while it runs}, the original among them, which does none."""
    found: dict[bytes, float | None] = {plan_key(problem, float_assignment(problem.space)): 0.0}
    for trial in in_order(history):
        found[plan_key(problem, trial.assignment)] = harm_of(trial) if trial.finished else None
    return found


def in_order(history: Iterable[TrialResult]) -> list[TrialResult]:
    return sorted(history, key=lambda trial: trial.number)


def around(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    """A plan near the best one so far, for when a course is over or waits for trials that still run.

    One layer, sometimes more, gets another of all its options. Of a few such draws the first is taken that is new and predicted to
    cost less than the best plan (to do less harm, where no plan met the target yet), else one that is new."""
    source = problem.random(attempt)
    best, met = _best(problem, history)
    known = outcomes(problem, history)
    merit = problem.linear if met else problem.total_damage
    new: Assignment | None = None
    for _ in range(DRAWS):
        near = _nearby(problem, best, source)
        if plan_key(problem, near) in known:
            continue
        if merit(near) < merit(best):
            return near
        new = new or near
    return new or draw(problem.space, source)


def _best(problem: Problem, history: Sequence[TrialResult]) -> tuple[Assignment, bool]:
    """The cheapest plan that met the target, else the one that missed it by least; and whether it met it."""
    finished = [trial for trial in in_order(history) if trial.finished]
    met = [trial for trial in finished if trial.feasible]
    if met:
        return min(met, key=lambda trial: problem.linear(trial.assignment)).assignment, True
    nearest = min(finished, key=harm_of, default=None)
    return (float_assignment(problem.space), True) if nearest is None else (nearest.assignment, False)


def _nearby(problem: Problem, assignment: Assignment, source: random.Random) -> Assignment:
    layers = problem.space.layers
    changes = 1
    while changes < len(layers) and source.random() < 0.5:
        changes += 1
    chosen = {layer.name: assignment.get(layer.name, layer.rest) for layer in layers}
    for layer in source.sample(layers, min(changes, len(layers))):
        others = [option for option in layer.options if option != chosen[layer.name]]
        chosen[layer.name] = source.choice(others) if others else layer.rest
    return chosen


def _rungs(problem: Problem, name: str, options: Sequence[str]) -> tuple[Rung, ...]:
    harm = problem.damage.get(name, {})
    rungs = [Rung(option, _saving(problem, name, option, options[0]), harm.get(option, 0.0)) for option in options[1:]]
    kept: list[Rung] = []
    least = math.inf
    for rung in sorted(rungs, key=lambda rung: (-rung.saving, rung.damage)):
        if math.isfinite(rung.saving) and rung.saving > 0 and rung.damage < least:
            kept.append(rung)
            least = rung.damage
    return (Rung(options[0], 0.0, 0.0), *reversed(kept))


def _saving(problem: Problem, name: str, option: str, rest: str) -> float:
    costs = problem.linear.options.get(name, {})
    own = costs.get(rest, 0.0)
    return own - costs.get(option, own)
