"""The best assignment that predictions can name: a mixed-integer programme over cost and damage (HiGHS through SciPy)."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from tuner.results import Assignment
from tuner.search.base import Problem, float_assignment

SECONDS = 5.0
"""Time for one programme; the best assignment found until then is taken."""
RELATIVE_GAP = 1e-6

_COST_RANGE = 1e6
"""What the costs are scaled to. The damage that breaks a tie counts at most 1, a millionth of it; HiGHS tells 1e-6 apart."""
_DAMAGE_RANGE = 1e4
"""What the damage level is scaled to. HiGHS lets a row be exceeded by 1e-6 and its presolve errs where numbers are that small:
with a level of 1 it returned wrong optima, from 1e3 on it did not."""
_ROUNDING = 1e-9
"""By how much of itself a damage level may be exceeded: sums of the same numbers in another order differ."""
_STDOUT = threading.Lock()


@dataclass(frozen=True)
class Option:
    """One way to compress one layer. `cost` counts from the layer left alone: less than 0 where it saves."""

    layer: str
    name: str
    cost: float
    damage: float


@dataclass(frozen=True)
class Link:
    """What it costs that exactly one of two layers is in float; `b` is None for an end that always is."""

    a: str
    b: str | None
    cost: float


def allocate(problem: Problem, max_damage: float) -> Assignment | None:
    """The assignment of least linear cost whose predicted damages sum to at most `max_damage`; of equal ones, the least damaging.

    None where not even leaving every layer alone is allowed, that is for a negative or undefined level."""
    if not max_damage >= 0:
        return None
    return _solve(problem, _options(problem), _links(problem), max_damage)


def front(problem: Problem, levels: int) -> list[Assignment]:
    """The best assignments for `levels` damage levels, from the cheapest (most damage) to the safest.

    The levels are spaced geometrically, from the damage of the unconstrained optimum down to the least positive damage of any option.
    Assignments that come up twice, that another one beats in both cost and damage, or that gain nothing over the original are left out."""
    options, links = _options(problem), _links(problem)
    found = [_solve(problem, options, links, math.inf)]
    top = problem.total_damage(found[0])
    positive = [option.damage for option in options if 0 < option.damage <= top]
    for level in np.geomspace(top, min(positive), levels)[1:] if positive else ():
        # An optimum stays one while the level falls to what it really does.
        if problem.total_damage(found[-1]) > level:
            found.append(_solve(problem, options, links, float(level)))
    return _undominated(problem, found)


def _undominated(problem: Problem, found: Iterable[Assignment]) -> list[Assignment]:
    kept: list[Assignment] = []
    least = math.inf
    for assignment in sorted(found, key=lambda a: (problem.linear(a), problem.total_damage(a))):
        damage = problem.total_damage(assignment)
        if damage < least and problem.linear(assignment) < problem.linear(float_assignment(problem.space)):
            kept.append(assignment)
            least = damage
    return kept


def _options(problem: Problem) -> list[Option]:
    """Every option that could be in an optimum: none that another option of its layer matches in both cost and damage."""
    kept: list[Option] = []
    for layer in problem.space.layers:
        costs, harm = problem.linear.options.get(layer.name, {}), problem.damage.get(layer.name, {})
        own = costs.get(layer.rest, 0.0)
        options = [Option(layer.name, name, costs.get(name, own) - own, harm.get(name, 0.0)) for name in layer.options[1:]]
        least = math.inf
        for option in sorted(options, key=lambda o: (o.cost, o.damage)):
            if math.isfinite(option.cost) and option.damage < least:
                kept.append(option)
                least = option.damage
    return kept


def _links(problem: Problem) -> list[Link]:
    names = problem.space.by_name
    links = []
    for a, b, cost in problem.linear.links:
        ends = sorted((end for end in {a, b} if end in names), key=(a, b).index)
        if cost and ends and a != b:
            links.append(Link(ends[0], ends[1] if len(ends) > 1 else None, cost))
    return links


def _solve(problem: Problem, options: Sequence[Option], links: Sequence[Link], max_damage: float) -> Assignment:
    """max_damage >= 0, so that leaving every layer alone is always a solution."""
    options = [option for option in options if option.damage <= max_damage * (1 + _ROUNDING)]
    chosen = float_assignment(problem.space)
    if not options:
        return chosen
    for room in (1.0, 1 - 1e-5):
        # Where HiGHS exceeded the level by its tolerance, it is given a little less room.
        picked = _programme(options, links, max_damage, room)
        if sum(option.damage for option in picked) <= max_damage * (1 + _ROUNDING):
            return chosen | {option.layer: option.name for option in picked}
    return chosen


def _programme(options: Sequence[Option], links: Sequence[Link], max_damage: float, room: float) -> list[Option]:
    """min Σ cost·x + Σ link·z over x binary, one z per link: Σ x <= 1 in each layer, Σ damage·x <= room · max_damage, z = |q_a − q_b|
    where q is the sum of a layer's x. Returns the options with x = 1.

    Costs and damages are scaled, because damages of one model lie up to eight orders of magnitude apart."""
    cost = np.array([option.cost for option in options] + [link.cost for link in links])
    damage = np.array([option.damage for option in options])
    level = min(max_damage, float(damage.sum())) or 1.0
    harm = np.append(damage / level, np.zeros(len(links)))
    rows, upper = _rows(options, links)
    within = LinearConstraint(harm[None] * _DAMAGE_RANGE, -np.inf, room * _DAMAGE_RANGE)
    with _muted():
        solution = milp(
            cost * (_COST_RANGE / (float(np.abs(cost).sum()) or 1.0)) + harm,
            integrality=np.append(np.ones(len(options)), np.zeros(len(links))),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(rows, -np.inf, upper), within],
            options={"time_limit": SECONDS, "mip_rel_gap": RELATIVE_GAP},
        )
    if solution.x is None:
        return []
    return [option for option, x in zip(options, solution.x[: len(options)], strict=True) if x > 0.5]


def _rows(options: Sequence[Option], links: Sequence[Link]) -> tuple[csr_array, NDArray[np.float64]]:
    """(A, upper) with A·(x, z) <= upper: one option per layer, and the two rows that push each z to |q_a − q_b|.

    A link that costs pulls z down, so it is held from below; one that saves pulls it up, so it is held from above."""
    layers = list(dict.fromkeys(option.layer for option in options))
    member = {layer: np.zeros(len(options) + len(links)) for layer in layers}
    for column, option in enumerate(options):
        member[option.layer][column] = 1
    rows, upper = [member[layer] for layer in layers], [1.0] * len(layers)
    nothing = np.zeros(len(options) + len(links))
    for column, link in enumerate(links, start=len(options)):
        a, b = member.get(link.a, nothing), member.get(link.b or "", nothing)
        z = np.eye(1, len(nothing), column)[0]
        rows += [a - b - z, b - a - z] if link.cost > 0 else [z - a - b, z + a + b]
        upper += [0.0, 0.0] if link.cost > 0 else [0.0, 2.0]
    return csr_array(np.array(rows)), np.array(upper)


@contextmanager
def _muted() -> Iterator[None]:
    """Sends the process's standard output nowhere: HiGHS 1.12 has a printf that no option turns off, and results are written there."""
    with _STDOUT:
        libc = ctypes.CDLL(None)
        libc.fflush(None)
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            yield
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)
