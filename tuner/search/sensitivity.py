"""Strategy "sensitivity": every layer goes as far as one common level of damage allows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from tuner.results import Assignment, TrialResult
from tuner.search.base import STRATEGIES, Problem
from tuner.search.course import ROUNDING, Heights, Ladders, around, outcomes, plan_key

STEP = 0.1
"""Of all savings, how much more each round asks for."""


@STRATEGIES.register("sensitivity")
def sensitivity(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    """Compresses layers that bear it far and sensitive ones little, more from round to round until accuracy breaks (Han et al., 2015,
    arXiv:1506.02626, section 4.1).

    As in the paper, each layer is compressed alone to find how its damage rises, and from these curves come the ratios of all layers:
    every one takes the strongest option whose predicted damage stays within a level, the same for all. Where damage rises in
    a straight line, ratios are then in inverse proportion to its slope. A round raises the level until a tenth more of all
    savings by the first objective's prediction is reached, and is one trial.

    Where the paper picks the point by hand: once a round misses the target, the level goes back to halfway between the last that met
    it and the first that missed, until none is left between. Then plans around the best are drawn. A broken trial counts as a miss."""
    ladders, known = Ladders(problem), outcomes(problem, history)
    plans = chain(ladders)
    keys = [plan_key(problem, ladders.assignment(heights)) for heights in plans]
    harms = [known.get(key) for key in keys]
    step = next_step([ladders.saved(heights) for heights in plans], harms)
    if step is None or keys[step] in known:
        return around(problem, history, attempt)
    return ladders.assignment(plans[step])


def chain(ladders: Ladders) -> list[Heights]:
    """The plans of every level of damage, from nothing to everything compressed."""
    levels = sorted({rung.damage for rungs in ladders.rungs.values() for rung in rungs})
    plans = [within(ladders, level) for level in levels]
    return list(dict.fromkeys([ladders.bottom, *plans]))


def within(ladders: Ladders, level: float) -> Heights:
    """For every layer the highest rung whose predicted damage is no more than the level."""
    return tuple(max((i for i, rung in enumerate(rungs) if rung.damage <= level), default=0) for rungs in ladders.rungs.values())


def at_limit(ladders: Ladders, limit: float) -> Heights:
    """The plan of the lowest level that reaches this share of all savings."""
    return next((heights for heights in chain(ladders) if ladders.saved(heights) >= limit - ROUNDING), ladders.summit)


def next_step(saved: Sequence[float], harms: Sequence[float | None]) -> int | None:
    """Which plan of the chain comes next; None when the last that meets the target is known. saved: shares, rising; harms: violations,
    None where not known."""
    missed = [index for index, harm in enumerate(harms) if harm is not None and harm > 0]
    met = [index for index, harm in enumerate(harms) if harm is not None and harm <= 0]
    bad = min(missed, default=len(saved))
    good = max((index for index in met if index < bad), default=0)
    if missed:
        return (good + bad) // 2 if bad - good > 1 else None
    if good == len(saved) - 1:
        return None
    wanted = (int(saved[good] / STEP + ROUNDING) + 1) * STEP
    return min(max(bisect_left(saved, wanted - ROUNDING), good + 1), len(saved) - 1)
