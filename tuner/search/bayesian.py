"""Strategies that learn from the history, on Optuna: "tpe" and "nsga2".

The study is rebuilt in memory for every question, so that the recorded history is all there is to know."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from optuna import Study, create_study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from search_spaces.space import SearchSpace
from tuner.results import Assignment, TrialResult, TrialState
from tuner.search.base import STRATEGIES, Problem, float_assignment
from tuner.search.exhaustive import draw

STARTUP = 10
"""Trials asked for at random before there is something to learn from; also the size of a generation of "nsga2"."""

_NAME = "accutune"
# Optuna announces every new study; this silences ours and nobody else's.
logging.getLogger("optuna.storages._in_memory").addFilter(lambda record: not record.getMessage().endswith(f": {_NAME}"))


@STRATEGIES.register("tpe")
def tpe(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment | None:
    """Tree-structured Parzen estimator over all layers together (Watanabe, 2023, arXiv:2304.11127)."""
    return _ask(problem, history, attempt, TPESampler(multivariate=True, n_startup_trials=STARTUP, seed=_seed(problem, attempt)))


@STRATEGIES.register("nsga2")
def nsga2(problem: Problem, history: Sequence[TrialResult], attempt: int) -> Assignment | None:
    """Elitist genetic search for several objectives (Deb et al., 2002, doi:10.1109/4235.996017)."""
    return _ask(problem, history, attempt, NSGAIISampler(population_size=STARTUP, seed=_seed(problem, attempt)))


def least_damage(problem: Problem) -> Assignment:
    """Every layer compressed by the option that is predicted to do the least harm."""
    chosen: Assignment = {}
    for layer in problem.space.layers:
        harm = problem.damage.get(layer.name, {})
        chosen[layer.name] = min(layer.options[1:], key=lambda option: harm.get(option, 0.0), default=layer.rest)
    return chosen


def _ask(problem: Problem, history: Sequence[TrialResult], attempt: int, sampler: BaseSampler) -> Assignment:
    if attempt == 0:
        return least_damage(problem)
    distributions = _distributions(problem.space)
    trials = _told(problem, history, distributions)
    if sum(trial.state == OptunaState.COMPLETE for trial in trials) < STARTUP:
        return draw(problem.space, problem.random(attempt))
    study = _study(trials, problem, sampler)
    params = study.ask(distributions).params
    return {name: params[name] for name in distributions}


def _seed(problem: Problem, attempt: int) -> int:
    return problem.random(attempt).getrandbits(32)


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    return {layer.name: CategoricalDistribution(layer.options) for layer in space.layers}


def _study(trials: Sequence[FrozenTrial], problem: Problem, sampler: BaseSampler) -> Study:
    study = create_study(study_name=_NAME, directions=["minimize"] * len(problem.objectives), sampler=sampler)
    for trial in trials:
        study.add_trial(trial)
    return study


def _told(problem: Problem, history: Sequence[TrialResult], distributions: dict[str, BaseDistribution]) -> list[FrozenTrial]:
    """The history in Optuna's words, in order of number.

    NSGA-II keeps each trial's generation among its attributes. It fills one generation after the other, so the generation
    follows from the trial's place in the order."""
    key = NSGAIISampler._get_generation_key()
    trials: list[FrozenTrial] = []
    complete = 0
    for result in sorted(history, key=lambda result: result.number):
        params = {**float_assignment(problem.space), **result.assignment}
        if result.state == TrialState.RUNNING:
            trials.append(create_trial(state=OptunaState.RUNNING, params=params, distributions=distributions))
            continue
        values = problem.values(result)
        if not result.finished or not all(map(math.isfinite, values)):
            continue
        constraints, attributes = {"violation": _violation(result)}, {key: complete // STARTUP}
        trials.append(
            create_trial(values=values, params=params, distributions=distributions, constraints=constraints, system_attrs=attributes)
        )
        complete += 1
    return trials


def _violation(result: TrialResult) -> float:
    """The worst violation; infinite where the trial broke or was not judged, so that its like is not asked for again."""
    violation = result.violation
    broken = result.state == TrialState.FAILED or violation is None or math.isnan(violation)
    return math.inf if broken or violation is None else violation
