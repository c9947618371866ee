"""What a job's figures are about: the accuracy lost, the first objective and the first cost, each with the words of its axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from server.store.trial_lists import Recorded
from tuner.job import COST_METRICS, COSTS, JobSpec
from tuner.report.wording import COST_NAMES, DropWords, axis_unit, is_share
from tuner.results import TrialResult

if TYPE_CHECKING:
    from tuner.search.drawing import History, Quantity

MEASURED = dict(zip(COSTS, COST_METRICS, strict=True))
UNITS = {"%": ", % of the original’s value", "points": ", percentage points"}


def history_of(job: JobSpec, recorded: Sequence[Recorded], now: datetime) -> History:
    """Everything that the figures of a job show. job: without `auto`."""
    # Not above: Optuna is slow to load, and most servers are never asked for a figure.
    from tuner.search.drawing import History

    trials = tuple(one.trial for one in recorded)
    cost = cost_quantity(next((name for name in job.objectives if name in COSTS), "size"), trials)
    objective = cost if job.objectives[0] in COSTS else metric_quantity(job.objectives[0], trials)
    return History(trials, drop_quantity(job), objective, cost, {one.trial.number: when(one, now) for one in recorded})


def when(one: Recorded, now: datetime) -> tuple[datetime, datetime]:
    """From when to when a trial ran the last time: it may have been cut off and begun anew, or scored again at the end."""
    if one.finished is None:
        return min(one.created, now), now
    spent = sum(one.trial.timings.values())
    return (one.finished - timedelta(seconds=spent) if spent else one.created), one.finished


def drop_quantity(job: JobSpec) -> Quantity:
    """By how much a trial is worse than the original, by the first constraint on a metric."""
    from tuner.search.drawing import Quantity

    words = DropWords(job.accuracy_constraint)

    def of(trial: TrialResult) -> float | None:
        return words.factor * trial.verdicts[0].drop if trial.verdicts else None

    return Quantity(f"accuracy lost ({words.metric}){UNITS.get(words.unit.strip(), '')}", of)


def cost_quantity(cost: str, trials: Iterable[TrialResult]) -> Quantity:
    """A cost as it is told in figures: latency as a speed-up, because milliseconds drift with the machine's load."""
    from tuner.search.drawing import Quantity

    if cost == "latency":
        return Quantity("speed-up over the original, ×", lambda trial: trial.speedup.value if trial.speedup else None, higher=True)
    key = MEASURED[cost]
    scale, unit = axis_unit(key, max((trial.value(key) or 0.0 for trial in trials), default=0.0))
    name = COST_NAMES[key][0].lower() + COST_NAMES[key][1:]
    return _measured(key, f"{name}, {unit}" if unit else name, 1 / scale)


def metric_quantity(metric: str, trials: Iterable[TrialResult]) -> Quantity:
    """A metric as it was measured."""
    known = (trial.measurements[metric] for trial in trials if metric in trial.measurements)
    higher = next((measurement.direction == "higher" for measurement in known), True)
    share = is_share(metric)
    return _measured(metric, f"{metric}, %" if share else metric, 100.0 if share else 1.0, higher)


def _measured(key: str, title: str, factor: float, higher: bool = False) -> Quantity:
    from tuner.search.drawing import Quantity

    def of(trial: TrialResult) -> float | None:
        value = trial.value(key)
        return None if value is None else factor * value

    return Quantity(title, of, higher)
