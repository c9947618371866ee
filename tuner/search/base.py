"""What a strategy is, and what it is told.

A strategy is a function without state: everything it knows is the problem and the recorded history, so a job that was killed
goes on with the same questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_spaces.schemes import FLOAT
from search_spaces.space import SearchSpace
from tuner.job import COSTS
from tuner.registry import Registry
from tuner.results import Assignment, TrialResult

LEAST_SHARE = 1e-3
"""Of what the original costs: savings of layers are predicted one by one and may add up to more than there is."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A search space with what is known about it before the first trial.

    All predictions are functions of the assignment alone, so that the same job asks for the same plans on every run."""

    space: SearchSpace
    objectives: tuple[str, ...]
    seed: int
    damage: dict[str, dict[str, float]]
    """{layer: {option: predicted harm to the output}}; leaving a layer alone does none; harms add up."""
    predict: Callable[[Assignment], tuple[float, ...]]
    """Assignment -> predicted value of each objective, smaller is better."""
    linear: LinearCost
    """The first objective's prediction in a form that a mixed-integer programme can take."""

    def values(self, trial: TrialResult) -> tuple[float, ...]:
        """The objectives of a finished trial as the search sees them, smaller is better: a metric as measured, a cost whose
        measurement would not repeat (latency) as predicted."""
        predicted = self.predict(trial.assignment)
        measured = (trial.measurements.get(name) for name in self.objectives)
        return tuple(
            guess if found is None else -found.value if found.direction == "higher" else found.value
            for guess, found in zip(predicted, measured, strict=True)
        )

    def predicted_gain(self, assignment: Assignment) -> float | None:
        """How many times less than the original an assignment costs by the first objective; None where that is a metric."""
        original = self.predict(float_assignment(self.space))[0]
        if self.objectives[0] not in COSTS or original <= 0:
            return None
        return original / max(self.predict(assignment)[0], LEAST_SHARE * original)

    def total_damage(self, assignment: Assignment) -> float:
        """Predicted harm of an assignment; layers left out are left alone."""
        return sum(self.damage.get(layer, {}).get(str(choice), 0.0) for layer, choice in assignment.items())

    def random(self, attempt: int) -> random.Random:
        """A random source that depends on the job's seed and on how many questions were asked."""
        return random.Random(f"{self.seed}/{attempt}")


@dataclass(frozen=True)
class LinearCost:
    """cost = fixed + Σ option costs + Σ over links of `cost` where exactly one end is in float.

    Costs may be negative, as savings are where a layer that is left alone counts as 0."""

    fixed: float
    options: dict[str, dict[str, float]]
    """{layer: {option: cost}}, the option that leaves the layer alone first."""
    links: tuple[tuple[str, str, float], ...] = ()
    """(layer, layer, cost) of the conversion between two layers of which one is in float."""

    def __call__(self, assignment: Assignment) -> float:
        chosen = {layer: str(assignment.get(layer, next(iter(options)))) for layer, options in self.options.items()}
        own = sum(self.options[layer][choice] for layer, choice in chosen.items())
        crossings = sum(cost for a, b, cost in self.links if (chosen.get(a, FLOAT) == FLOAT) != (chosen.get(b, FLOAT) == FLOAT))
        return self.fixed + own + crossings


Strategy = Callable[[Problem, Sequence[TrialResult], int], Assignment | None]
"""(problem, history, attempt) -> the next assignment, or None when there is nothing left to ask.

`attempt` counts all questions asked so far, also those whose answer turned out to be a duplicate: an honest strategy answers
another question differently. The history holds finished trials and those still running (state `running`)."""

STRATEGIES: Registry[Strategy] = Registry("strategy")


def float_assignment(space: SearchSpace) -> Assignment:
    """Every layer left alone."""
    return {layer.name: layer.rest for layer in space.layers}
