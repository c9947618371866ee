"""Pruners: how weights go while the rest is trained. All leave the zeros that their schemes ask for, exactly.

Each is a function from {initializer: SparsityScheme} and options to a hook for the training loop; the options are its parameters.
Those that take `scores`, {initializer: [out, in, *kernel]}, rate weights by them; without, by their magnitude of the moment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tuner.compress.hooks import TrainingHook
from tuner.compress.pruning.admm import Admm
from tuner.compress.pruning.masking import MaskedTraining, Schemes
from tuner.compress.pruning.movement import Movement
from tuner.compress.pruning.rewinding import Lottery, Rounds
from tuner.compress.pruning.schedules import Timing
from tuner.compress.pruning.slimming import Slimming
from tuner.errors import PlanError, UnknownName
from tuner.registry import Registry

Factory = Callable[..., TrainingHook]
Scores = Mapping[str, Tensor] | None

PRUNERS: Registry[Factory] = Registry("pruner")


def make_pruner(name: str, schemes: Schemes, **options: Any) -> TrainingHook:
    """The pruner `name` for these weights. UnknownName where it or an option is not known."""
    factory = PRUNERS[name]
    known = tuple(inspect.signature(factory).parameters)[1:]
    for option in options:
        if option not in known:
            raise UnknownName(f"option of the pruner {name}", option, known)
    return factory(schemes, **options)


@PRUNERS.register("level")
def level(schemes: Schemes, *, scores: Scores = None) -> TrainingHook:
    """Everything at once, before training; the mask is held."""
    return MaskedTraining(schemes, Timing("one-shot"), given=scores)


@PRUNERS.register("criterion")
def criterion(
    schemes: Schemes,
    *,
    scores: Mapping[str, Tensor],
    schedule: str = "one-shot",
    start: float = 0.0,
    end: float = 0.5,
    every: int = 10,
    rounds: int = 4,
) -> TrainingHook:
    """By scores that were computed before training, such as those of SNIP or Wanda, by any schedule."""
    return MaskedTraining(schemes, Timing(schedule, start, end, every, rounds), given=scores)


@PRUNERS.register("linear")
def linear(schemes: Schemes, *, start: float = 0.0, end: float = 0.5, every: int = 10, scores: Scores = None) -> TrainingHook:
    """The same number of weights in every step; what is gone stays gone."""
    return MaskedTraining(schemes, Timing("linear", start, end, every), given=scores)


@PRUNERS.register("exponential")
def exponential(schemes: Schemes, *, start: float = 0.0, end: float = 0.5, every: int = 10, scores: Scores = None) -> TrainingHook:
    """The same share of what is left in every step; what is gone stays gone."""
    return MaskedTraining(schemes, Timing("exponential", start, end, every), given=scores)


@PRUNERS.register("agp")
def agp(schemes: Schemes, *, start: float = 0.0, end: float = 0.5, every: int = 10) -> TrainingHook:
    """Automated gradual pruning (Zhu and Gupta, 2017, arXiv:1710.01878): cubic, by magnitude, and weights may come back on the way."""
    return MaskedTraining(schemes, Timing("cubic", start, end, every), revives=True)


@PRUNERS.register("iterative")
def iterative(schemes: Schemes, *, rounds: int = 4, scores: Scores = None) -> TrainingHook:
    """Prune, train, prune what is left (Han et al., 2015, arXiv:1506.02626), the same share of it in every round."""
    return Rounds(schemes, prunings=rounds, given=scores)


@PRUNERS.register("lottery")
def lottery(schemes: Schemes, *, prunings: int = 3, rewind: float = 0.0) -> TrainingHook:
    """Prune and rewind (Frankle and Carbin, 2019, arXiv:1803.03635); training is cut into `prunings` + 1 rounds."""
    return Lottery(schemes, prunings=prunings, rewind=rewind)


@PRUNERS.register("admm")
def admm(schemes: Schemes, *, rho: float = 0.01, end: float = 0.5, every: int = 20) -> TrainingHook:
    """Drawn to a sparse point by ADMM until `end`, then cut and trained on (Zhang et al., 2018, arXiv:1804.03294)."""
    return Admm(schemes, Timing("linear", 0.0, end, every), rho=rho)


@PRUNERS.register("movement")
def movement(schemes: Schemes, *, start: float = 0.1, end: float = 0.5, every: int = 1) -> TrainingHook:
    """By how training moves weights (Sanh et al., 2020, arXiv:2005.07683), cubic. Made for few training steps from a pretrained model."""
    return Movement(schemes, Timing("cubic", start, end, every))


@PRUNERS.register("slim")
def slim(schemes: Schemes, *, strength: float = 1e-4) -> TrainingHook:
    """Presses the scales of BatchNormalization to zero (Liu et al., 2017, arXiv:1708.06519), to show which channels can go. No masks."""
    if schemes:
        raise PlanError(f"slim sets no weights to zero, got a sparsity for '{next(iter(schemes))}'. Use another pruner, such as agp.")
    return Slimming(strength=strength)
