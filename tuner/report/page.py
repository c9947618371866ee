"""The report: one HTML file that explains what a job found, without scripts and without loading anything."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from search_spaces.structure import rest_of
from tuner.job import COST_METRICS, JobSpec
from tuner.plan import Structure
from tuner.report.figures import Cost, Judged, history, kind_of, layer_rows, layer_strip, sensitivity_bars, trade_off
from tuner.report.structure import removals
from tuner.report.wording import (
    COST_NAMES,
    NBSP,
    UNKNOWN,
    DropWords,
    choice_words,
    duration,
    is_share,
    number,
    percent,
    quantity,
    ratio_words,
    speedup_words,
)
from tuner.results import JobResult, Measurement, SensitivityRow, TrialResult

TRIALS_SHOWN = 200

MARKS = {
    "met": ("✓", "Target met"),
    "missed": ("✗", "Target missed"),
    "undecided": ("?", "Undecided"),
    "nothing": ("=", "Nothing gained"),
}
OUTCOMES = {"feasible": "met", "infeasible": "missed"}


def render_report(
    job: JobSpec,
    result: JobResult,
    trials: Sequence[TrialResult],
    sensitivity: Sequence[SensitivityRow],
    space_layers: Sequence[str],
    structure: Structure | None = None,
) -> str:
    """The report as one HTML document. space_layers: every parameter of the space, in graph order. structure: what the best plan took
    away."""
    cost, judged = Cost.of(job, result, sensitivity), Judged(job, trials)
    layers = layer_rows(result, trials, sensitivity, space_layers)
    sums = {name: value for name, value in result.environment.items() if "sha256" in name}
    return _template().render(
        job=job,
        result=result,
        mark=(verdict_mark(result), *MARKS[verdict_mark(result)]),
        facts=_facts(job, result, len(trials)),
        targets=_targets(job, result),
        comparison=_comparison(job, result),
        trade_off=trade_off(result, trials, cost, judged),
        history=history(trials, cost),
        layers=layers,
        removals=removals(structure),
        strip=layer_strip(layers),
        sensitivity=sensitivity_bars(sensitivity),
        sensitivity_rows=sorted(sensitivity, key=lambda row: -row.divergence),
        failures=[trial for trial in trials if trial.error is not None],
        trials=[_trial_row(trial, cost, judged) for trial in trials[:TRIALS_SHOWN]],
        trial_count=len(trials),
        cost_name=cost.name,
        digests=sums,
        environment={name: value for name, value in result.environment.items() if name not in sums},
        structured=structure is not None,
        apply=f"tuner apply best.plan.json {shlex.quote(job.model)} -o best.onnx",
        duration=duration,
        percent=percent,
        number=number,
        quantity=quantity,
        words=choice_words,
        unknown=UNKNOWN,
    )


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2")


def verdict_mark(result: JobResult) -> str:
    """met, missed or undecided; nothing, where the target is met by the model as it was."""
    if result.feasible:
        return "met" if result.best.layers else "nothing"
    return "undecided" if result.best.verdict == "undecided" else "missed"


def _facts(job: JobSpec, result: JobResult, trial_count: int) -> list[str]:
    """The line under the title."""
    finished = {"succeeded": "finished", "cancelled": "cancelled: the best of what was finished until then", "failed": "failed"}
    return [
        f"{finished[result.state]} after {duration(result.seconds)}",
        f"{trial_count:,} {'trial' if trial_count == 1 else 'trials'}",
        f"made for {job.target.name}",
        f"job {result.job_id}",
    ]


def _targets(job: JobSpec, result: JobResult) -> list[dict[str, str]]:
    """Each constraint in words, with what the holdout says about it. Verdicts on one metric stand in the order of its constraints."""
    waiting, rows = list(result.best.verdicts), []
    for constraint in job.constraints:
        words = DropWords(constraint)
        verdict = next((v for v in waiting if v.metric == constraint.metric), None)
        if verdict is not None:
            waiting.remove(verdict)
        decision = verdict.decision if verdict else "undecided"
        found = words.say(verdict.drop) if verdict else "not measured"
        bounds = words.bounds(verdict) if verdict else ""
        rows.append({"sentence": constraint.sentence(), "found": found, "bounds": bounds, "decision": decision, "mark": MARKS[decision][0]})
    return rows


def _comparison(job: JobSpec, result: JobResult) -> list[dict[str, str]]:
    """The rows of original against best: metrics first, then costs."""
    before, after = result.baseline.measurements, result.best.measurements
    names = [*dict.fromkeys((*before, *after))]
    rows = [_metric_row(name, before.get(name), after.get(name)) for name in names if name not in COST_METRICS]
    for name in (name for name in COST_METRICS if name in names):
        old, new = before.get(name), after.get(name)
        change = ratio_words(old.value if old else None, new.value if new else None)
        rows.append(
            {
                "name": COST_NAMES[name],
                "detail": job.target.name if name == "latency_ms" else "",
                "before": _measured(old),
                "after": _measured(new),
                "change": speedup_words(result.best.speedup) if name == "latency_ms" else change,
            }
        )
    return rows


def _metric_row(name: str, before: Measurement | None, after: Measurement | None) -> dict[str, str]:
    one = before or after
    assert one is not None
    change = after.value - before.value if after and before else None
    amount = f"{abs(100 * (change or 0)):.2f}{NBSP}points" if is_share(name) else number(abs(change or 0))
    better = "better" if ((change or 0) > 0) == (one.direction == "higher") else "worse"
    return {
        "name": name,
        "detail": f"{one.direction} is better, {one.samples:,} holdout rows",
        "before": _measured(before),
        "after": _measured(after),
        "change": UNKNOWN if change is None else f"{amount} {better}" if change else "no change",
    }


def _measured(measurement: Measurement | None) -> str:
    """A value and, behind ±, its standard error."""
    if measurement is None:
        return UNKNOWN
    value = quantity(measurement.metric, measurement.value, measurement.unit)
    return f"{value} ± {quantity(measurement.metric, measurement.stderr, measurement.unit)}" if measurement.stderr else value


def _trial_row(trial: TrialResult, cost: Cost, judged: Judged) -> dict[str, str]:
    verdict, measured, known = judged.verdict(trial), cost.measured(trial), cost.known(trial)
    short = judged.words.short
    return {
        "number": str(trial.number),
        "outcome": OUTCOMES.get(kind_of(trial), kind_of(trial)) if trial.finished else trial.state.value,
        "drop": short(verdict.drop if verdict else None),
        "bounds": f"{short(verdict.lower)} to {short(verdict.upper)}" if verdict else UNKNOWN,
        "cost": ("~" if measured is None and known is not None else "") + quantity(cost.key, known),
        "speedup": f"{trial.speedup.value:.2f}× ({trial.speedup.lower:.2f} to {trial.speedup.upper:.2f})" if trial.speedup else UNKNOWN,
        "layers": f"{sum(choice != rest_of(name) for name, choice in trial.assignment.items()):,} of {len(trial.assignment):,}",
        "seconds": duration(sum(trial.timings.values())) if trial.timings else UNKNOWN,
        "digest": trial.plan_digest[:8],
    }
