"""Strategies that learn nothing: "grid" asks for everything in order, "random" draws."""

from __future__ import annotations

import random
from collections.abc import Sequence

from search_spaces.space import SearchSpace
from tuner.results import Assignment, TrialResult
from tuner.search.base import STRATEGIES, Problem


@STRATEGIES.register("grid")
def grid(problem: Problem, _history: Sequence[TrialResult], attempt: int) -> Assignment | None:
    """Every assignment once, the last layer's options changing fastest; None after the last one.

    Nothing is listed in advance, so a space of any size is accepted. A budget smaller than the space ends the search among
    the last layers, with the first ones still left alone: use it for spaces that the budget can walk through."""
    if attempt >= problem.space.size:
        return None
    chosen: Assignment = {}
    for layer in reversed(problem.space.layers):
        attempt, digit = divmod(attempt, len(layer.options))
        chosen[layer.name] = layer.options[digit]
    return dict(reversed(chosen.items()))


@STRATEGIES.register("random")
def random_choice(problem: Problem, _history: Sequence[TrialResult], attempt: int) -> Assignment | None:
    """Each layer drawn on its own, around a share of layers left alone that is itself drawn for each question."""
    return draw(problem.space, problem.random(attempt))


def draw(space: SearchSpace, source: random.Random) -> Assignment:
    """A random assignment. Uniform draws would almost never leave most layers alone where a layer has many options, so
    the share of layers left alone is drawn first, uniformly from 0 to 1, and then an option of each of the other layers."""
    share = source.random()
    chosen: Assignment = {}
    for layer in space.layers:
        others = layer.options[1:]
        chosen[layer.name] = layer.rest if source.random() < share or not others else source.choice(others)
    return chosen
