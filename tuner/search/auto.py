"""Strategy `auto`: predict, programme, bisect, then look around.

The usual plan comes first: every layer compressed in the least harmful way. A mixed-integer programme then gives the cheapest
plan for every level of predicted harm, and where on that front the target breaks is found by bisection: the cheapest plan,
the safest, then between. What is left of the budget goes, in turn, to the programme with its predictions shaken (a sample of
what they could as well have been) and to TPE on everything seen so far."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from tuner.results import Assignment, TrialResult
from tuner.search.allocate import allocate, front
from tuner.search.base import STRATEGIES, LinearCost, Problem
from tuner.search.bayesian import least_damage, tpe

LEVELS = 24
HARM_SPREAD = 0.6
COST_SPREAD = 0.1
"""Standard deviations of the logarithm of predicted harm and cost, from single-layer predictions against whole-plan outcomes."""

_fronts: WeakKeyDictionary[Problem, list[Assignment]] = WeakKeyDictionary()


@STRATEGIES.register("auto")
def auto(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment | None:
    """The next point of the bisection, and when that is over, shaken programmes and TPE in turn."""
    if problem not in _fronts:
        _fronts[problem] = front(problem, LEVELS)
    plans = _fronts[problem]
    # What one would try by hand; it has no border between float and integer layers, whose price is the least certain prediction.
    usual = least_damage(problem)
    if not _outcomes(problem, [usual], history):
        return usual
    step = _bisect(problem, plans, history)
    if step is not None:
        return plans[step]
    if attempt % 2:
        return tpe(problem, history, attempt)
    return _shaken(problem, history, attempt)


def _bisect(problem: Problem, plans: Sequence[Assignment], history: Sequence[TrialResult]) -> int | None:
    """Index of the front's next plan to try, cheapest first; None when the place where the target breaks is known."""
    outcomes = _outcomes(problem, plans, history)
    if not plans:
        return None
    if 0 not in outcomes and _more_harmful(problem, plans[0], history):
        outcomes[0] = False
    if 0 not in outcomes:
        return 0
    last = len(plans) - 1
    if outcomes[0] or last == 0:
        return None
    if last not in outcomes:
        return last
    # A plan of the front counts as good when it and everything safer that was tried is good.
    bad = max(index for index, good in outcomes.items() if not good)
    good = min((index for index, fine in outcomes.items() if fine and index > bad), default=None)
    if good is None or good - bad <= 1:
        return None
    return (good + bad) // 2


def _more_harmful(problem: Problem, plan: Assignment, history: Sequence[TrialResult]) -> bool:
    """Is a plan predicted to do more harm than one that missed the target? Then it need not be tried: a trial that trains is dear."""
    missed = [problem.total_damage(trial.assignment) for trial in history if trial.finished and trial.verdicts and not trial.feasible]
    return bool(missed) and problem.total_damage(plan) >= min(missed)


def _outcomes(problem: Problem, plans: Sequence[Assignment], history: Sequence[TrialResult]) -> dict[int, bool]:
    """{index of the front: was it feasible}. A broken or running trial counts as infeasible."""
    decoded = {str(problem.space.decode(trial.assignment)): trial.feasible for trial in history}
    keys = [str(problem.space.decode(plan)) for plan in plans]
    return {index: decoded[key] for index, key in enumerate(keys) if key in decoded}


def _shaken(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment | None:
    """The cheapest plan whose predicted harm stays near the boundary seen so far, under predictions drawn around ours."""
    source = problem.random(attempt)
    linear = LinearCost(problem.linear.fixed, _shake(problem.linear.options, COST_SPREAD, source), problem.linear.links)
    shaken = replace(problem, damage=_shake(problem.damage, HARM_SPREAD, source), linear=linear)
    return allocate(shaken, _boundary(problem, history) * math.exp(source.gauss(0, HARM_SPREAD)))


def _boundary(problem: Problem, history: Sequence[TrialResult]) -> float:
    """The predicted harm at which plans begin to fail: between the worst that passed and the least that did not."""
    passed = [problem.total_damage(trial.assignment) for trial in history if trial.feasible]
    failed = [problem.total_damage(trial.assignment) for trial in history if trial.finished and not trial.feasible]
    highest = max(passed, default=0.0)
    lowest = min((harm for harm in failed if harm > 0), default=highest * 4)
    everything = sum(max(options.values()) for options in problem.damage.values())
    if highest <= 0:
        return lowest / 2 or everything
    return math.sqrt(highest * max(lowest, highest))


def _shake(table: dict[str, dict[str, float]], spread: float, source: random.Random) -> dict[str, dict[str, float]]:
    """The table with every figure multiplied by a log-normal draw; what is nothing stays nothing, what saves still saves."""
    return {
        layer: {option: value * math.exp(source.gauss(0, spread)) if value else value for option, value in options.items()}
        for layer, options in table.items()
    }
