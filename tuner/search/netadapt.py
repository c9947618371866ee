"""Strategy "netadapt": layer by layer, always the step that costs the least accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.results import Assignment, TrialResult
from tuner.search.base import STRATEGIES, Problem
from tuner.search.course import ROUNDING, Heights, Ladders, around, outcomes, plan_key

STEP = 0.1
"""By which share of the original's predicted cost the first iteration lowers it."""
DECAY = 0.96
"""Of the step, from one iteration to the next."""
SMALLEST = STEP / 64
PROPOSALS = 8
"""Of an iteration, at most; those of least predicted damage."""


@STRATEGIES.register("netadapt")
def netadapt(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment:
    """Lowers the cost step by step, each time in the one layer where that costs the least measured accuracy (Yang et al., 2018,
    arXiv:1804.03230).

    As in the paper's algorithm 1, an iteration asks for a predicted cost that is a step below that of its start, the step shrinks by a
    fixed factor, every proposal compresses one layer by the least that meets the cost, each is a trial, and the one of best
    measured accuracy is the next start. The cost is the first objective as predicted; how a proposal is trained is the plan's affair.

    Differences: of an iteration's proposals only the 8 of least predicted damage become trials. The paper stops at a given cost, this
    where accuracy breaks: where every proposal misses the target, or no layer alone can save the step, the step is halved
    and the iteration repeated from its start. When it is a sixty-fourth, plans around the best are drawn."""
    ladders, known = Ladders(problem), outcomes(problem, history)
    start, step = ladders.bottom, STEP
    while step >= SMALLEST:
        proposals = proposals_from(problem, ladders, start, step)
        keys = [plan_key(problem, ladders.assignment(heights)) for heights in proposals]
        for heights, key in zip(proposals, keys, strict=True):
            if key not in known:
                return ladders.assignment(heights)
        harms = [harm for key in keys if (harm := known[key]) is not None]
        if len(harms) < len(keys):
            break  # One of them is still running; which is best is not known yet.
        if not harms or min(harms) > 0:
            step /= 2
            continue
        start, step = proposals[harms.index(min(harms))], step * DECAY
    return around(problem, history, attempt)


def proposals_from(problem: Problem, ladders: Ladders, start: Heights, step: float) -> list[Heights]:
    """For each layer that can, the lowest rung that lowers the predicted cost by the step, the least damaging layers first."""
    original = max(problem.linear(ladders.assignment(ladders.bottom)), ladders.total)
    allowed = problem.linear(ladders.assignment(start)) - step * original
    found = []
    for index, top in enumerate(ladders.summit):
        higher = ((*start[:index], height, *start[index + 1 :]) for height in range(start[index] + 1, top + 1))
        heights = next((h for h in higher if problem.linear(ladders.assignment(h)) <= allowed + ROUNDING * original), None)
        if heights is not None:
            found.append(heights)
    return sorted(found, key=lambda heights: problem.total_damage(ladders.assignment(heights)))[:PROPOSALS]
