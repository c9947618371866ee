"""The report: one HTML file that explains what a job found, without scripts and without loading anything."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from search_spaces.schemes import FLOAT
from tuner.charts import COLOURS, Axis, Bar, Cell, Point, bars, finite, plain, scatter, steps, strip, swatch
from tuner.data.metrics import METRICS
from tuner.job import COST_METRICS, Constraint, JobSpec
from tuner.results import Interval, JobResult, Measurement, Outcome, SensitivityRow, TrialResult, TrialState, Verdict

WIDE, NARROW = 880, 340
"""Each chart is drawn twice; the style sheet shows the one that fits."""
TRIALS_SHOWN, LAYERS_DRAWN = 200, 25
PREDICTED = "predicted_"
"""Prefix of a cost that a trial carries as a prediction, because it was not worth measuring."""
NBSP = "\u00a0"

COST_NAMES = {
    "latency_ms": "Latency",
    "size_bytes": "File size",
    "compressed_size_bytes": "File size, compressed",
    "macs": "Multiply-accumulates (MACs)",
    "params": "Parameters",
    "peak_memory_bytes": "Peak memory",
}
OBJECTIVE_COSTS = dict(zip(("latency", "size", "compressed_size", "macs", "params", "peak_memory"), COST_METRICS, strict=True))

MARKS = {
    "met": ("✓", "Target met"),
    "missed": ("✗", "Target missed"),
    "undecided": ("?", "Undecided"),
    "nothing": ("=", "Nothing gained"),
}
KINDS = {
    "feasible": "meets the target",
    "infeasible": "misses the target",
    "stopped": "stopped early, a miss was certain",
    "failed": "failed, drawn on the top edge",
    "original": "original model",
}


def render_report(
    job: JobSpec, result: JobResult, trials: Sequence[TrialResult], sensitivity: Sequence[SensitivityRow], space_layers: Sequence[str]
) -> str:
    """The report as one HTML document. space_layers: every layer of the space in graph order."""
    cost = _Cost.of(job, result, trials)
    drop = _DropScale.of(job)
    return _template().render(
        job=job,
        result=result,
        mark=(verdict_mark(result), *MARKS[verdict_mark(result)]),
        targets=_targets(job, result),
        comparison=_comparison(job, result),
        trade_off=_trade_off(result, trials, cost, drop),
        history=_history(result, trials, cost),
        layers=_layers(result, trials, sensitivity, space_layers),
        sensitivity=_sensitivity(sensitivity),
        failures=[trial for trial in trials if trial.error is not None],
        trials=[_trial_row(trial, cost, drop) for trial in trials[:TRIALS_SHOWN]],
        trial_count=len(trials),
        cost_name=cost.name,
        digests={name: value for name, value in result.environment.items() if "sha256" in name},
        environment={name: value for name, value in result.environment.items() if "sha256" not in name},
        apply=f"tuner apply best.plan.json {shlex.quote(job.model)} -o best.onnx",
        duration=duration,
        percent=percent,
    )


@cache
def _template() -> Any:
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2")


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits with thousands grouped; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if exponent < -4:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(power)}".replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")


def percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}{NBSP}%".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 1:
        return f"{1000 * seconds:.0f}{NBSP}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s"
    return f"{minutes // 60:,}{NBSP}h {minutes % 60}{NBSP}min"


def is_share(metric: str) -> bool:
    """True for a metric from 0 to 1, which people read as per cent."""
    return metric in METRICS and METRICS[metric].bounds == (0.0, 1.0)


def quantity(metric: str, value: float | None, unit: str = "") -> str:
    """A value with its unit, scaled for people: 91.83 %, 0.612 ms, 273 KiB, 40.6 M."""
    if value is None or not math.isfinite(value):
        return "–"
    if is_share(metric):
        return percent(value)
    if metric.endswith("_bytes"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if metric in ("macs", "params"):
        return _scaled(value, 1000, ("", "k", "M", "G", "T"))
    unit = "ms" if metric == "latency_ms" else unit
    return f"{number(value)}{NBSP}{unit}" if unit else number(value)


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    step = 0
    while abs(value) >= base * 0.9995 and step < len(units) - 1:
        value, step = value / base, step + 1
    shown = f"{value:,.0f}" if step == 0 else number(value, 4 if abs(value) >= 1000 else 3)
    return f"{shown}{NBSP}{units[step]}".rstrip(NBSP)


def verdict_mark(result: JobResult) -> str:
    """met, missed, undecided, or nothing where the target is met by the model as it was."""
    if result.feasible:
        return "met" if result.best.layers else "nothing"
    return "undecided" if result.best.verdict == "undecided" else "missed"


@dataclass(frozen=True)
class _DropScale:
    """How drops of the main constraint are counted: the first one on a metric, else the first."""

    index: int
    metric: str
    factor: float
    unit: str
    words: str
    target: float | None
    """The allowed drop where the job fixes it."""

    @classmethod
    def of(cls, job: JobSpec) -> _DropScale:
        index = next((i for i, c in enumerate(job.constraints) if c.metric not in COST_METRICS), 0)
        return cls.on(job.constraints[index], index)

    @classmethod
    def on(cls, constraint: Constraint, index: int) -> _DropScale:
        metric, fixed = constraint.metric, 0.0 if constraint.metric in COST_METRICS else constraint.max_drop
        if metric in COST_METRICS:
            return cls(index, metric, 1, "", f"{metric} above its limit", fixed)
        if constraint.relative:
            return cls(index, metric, 100, f"{NBSP}%", f"drop in {metric}, % of the original's value", fixed)
        if is_share(metric):
            return cls(index, metric, 100, f"{NBSP}points", f"drop in {metric}, percentage points", fixed)
        return cls(index, metric, 1, "", f"drop in {metric}", fixed)

    def verdict(self, verdicts: Sequence[Verdict]) -> Verdict | None:
        return verdicts[self.index] if self.index < len(verdicts) else None

    def allowed(self, job_trials: Sequence[TrialResult]) -> float | None:
        """The height of the target line. A limit on a metric allows what the first fully judged trial's verdict says it does."""
        if self.target is not None:
            return self.target
        judged = (self.verdict(t.verdicts) for t in job_trials if t.state == TrialState.COMPLETE)
        return next(((v.drop if v.rule == "point estimate" else v.upper) - v.violation for v in judged if v is not None), None)

    def say(self, drop: float) -> str:
        """A drop in words: 0.42 points worse."""
        if self.metric in COST_METRICS:
            return f"{quantity(self.metric, abs(drop))} {'over' if drop > 0 else 'under'} the limit"
        amount = f"{abs(self.factor * drop):.2f}" if self.factor == 100 else number(abs(drop))
        return f"{amount}{self.unit} {'worse' if drop > 0 else 'better'}" if drop else "no change"

    def bounds(self, drop: Verdict | Interval) -> str:
        if drop.lower == drop.upper:
            return ""
        low, high = self.say(drop.lower), self.say(drop.upper)
        return f"between {low} and {high} (one-sided {percent(drop.confidence, 1).replace('.0', '')} bounds)"

    def short(self, drop: float | None) -> str:
        if drop is None:
            return "–"
        shown = f"{self.factor * drop:.2f}" if self.factor == 100 else number(drop)
        return f"{shown}{self.unit}".replace("-", "−")


@dataclass(frozen=True)
class _Cost:
    """What the search made small, as the charts show it."""

    key: str
    name: str
    original: float | None

    @classmethod
    def of(cls, job: JobSpec, result: JobResult, trials: Sequence[TrialResult]) -> _Cost:
        """The first objective that is a cost and known for some trial; else latency, else size."""
        wanted = [OBJECTIVE_COSTS[name] for name in job.objectives if name in OBJECTIVE_COSTS]
        known = {name.removeprefix(PREDICTED) for t in trials for name in t.measurements}
        known |= {"latency_ms"} if any(t.speedup for t in trials) else set()
        key = next((k for k in (*wanted, "latency_ms", "size_bytes") if k in known), "latency_ms")
        baseline = result.baseline.measurements.get(key)
        return cls(key, COST_NAMES[key], baseline.value if baseline else None)

    def measured(self, trial: TrialResult) -> float | None:
        """The measured cost. A speed-up comes from interleaved blocks and so is told in milliseconds of the original on the holdout."""
        if self.key == "latency_ms" and trial.speedup is not None and self.original is not None:
            return self.original / trial.speedup.value
        return trial.value(self.key)

    def __call__(self, trial: TrialResult) -> float | None:
        measured = self.measured(trial)
        return trial.value(PREDICTED + self.key) if measured is None else measured

    def gain(self, trial: TrialResult) -> float | None:
        """How many times smaller than the original's."""
        cost = self(trial)
        return self.original / cost if cost and self.original else None

    @property
    def gain_name(self) -> str:
        return "speed-up" if self.key == "latency_ms" else f"{self.name[0].lower()}{self.name[1:]}, times smaller"

    def show(self, value: float | None) -> str:
        return quantity(self.key, value)


def _targets(job: JobSpec, result: JobResult) -> list[dict[str, str]]:
    """Each constraint in words, with what the holdout says about it."""
    rows = []
    for index, constraint in enumerate(job.constraints):
        scale = _DropScale.on(constraint, index)
        found = scale.verdict(result.best.verdicts) or (result.best.drop if index == 0 else None)
        decision = found.decision if isinstance(found, Verdict) else result.best.verdict if found else "undecided"
        words = "not measured" if found is None else ": ".join(filter(None, (scale.say(found.value if isinstance(found, Interval) else found.drop), scale.bounds(found))))
        rows.append({"sentence": constraint.sentence(), "found": words, "decision": decision, "mark": MARKS[decision][0]})
    return rows


def _comparison(job: JobSpec, result: JobResult) -> list[dict[str, str]]:
    """Rows of the table original against best: metrics first, then costs."""
    names = [*dict.fromkeys((*result.baseline.measurements, *result.best.measurements))]
    metrics, costs = [n for n in names if n not in COST_METRICS], [n for n in COST_METRICS if n in names]
    rows = []
    for name in (*metrics, *costs):
        before, after = result.baseline.measurements.get(name), result.best.measurements.get(name)
        change = _cost_change(name, before, after, result.best) if name in costs else _metric_change(name, before, after)
        label = f"{COST_NAMES[name]}" if name in costs else name
        detail = f"{job.target.name}" if name == "latency_ms" else "" if name in costs else _direction(before or after)
        rows.append({"name": label, "detail": detail, "before": _measured(before), "after": _measured(after), "change": change})
    return rows


def _direction(measurement: Measurement | None) -> str:
    if measurement is None:
        return ""
    return f"{measurement.direction} is better, {measurement.samples:,} rows"


def _measured(measurement: Measurement | None) -> str:
    if measurement is None:
        return "–"
    value, unit = quantity(measurement.metric, measurement.value, measurement.unit), measurement.unit
    return f"{value} ± {quantity(measurement.metric, measurement.stderr, unit)}" if measurement.stderr else value


def _metric_change(name: str, before: Measurement | None, after: Measurement | None) -> str:
    if before is None or after is None:
        return "–"
    change = after.value - before.value
    amount = f"{abs(100 * change):.2f}{NBSP}points" if is_share(name) else number(abs(change))
    better = (change > 0) == (after.direction == "higher")
    return f"{amount} {'better' if better else 'worse'}" if change else "no change"


def _cost_change(name: str, before: Measurement | None, after: Measurement | None, best: Outcome) -> str:
    if name == "latency_ms":
        return speedup_words(best.speedup)
    if before is None or after is None or not before.value or not after.value:
        return "–"
    ratio = after.value / before.value
    if abs(ratio - 1) < 5e-4:
        return "unchanged"
    times = f"{number(1 / ratio)}× smaller" if ratio < 1 else f"{number(ratio)}× larger"
    return f"{percent(ratio, 1)} of the original, {times}"


def speedup_words(speedup: Interval) -> str:
    """The ratio of latencies with its interval; no claim where the interval holds 1."""
    span = f"{speedup.lower:.2f}× to {speedup.upper:.2f}×, {speedup.confidence:.0%} interval"
    if speedup.contains(1):
        return f"no measurable difference ({span})"
    word = f"{speedup.value:.2f}× faster" if speedup.value > 1 else f"{1 / speedup.value:.2f}× slower"
    return f"{word} (speed-up {span})"


def _kind(trial: TrialResult) -> str:
    if trial.state == TrialState.FAILED:
        return "failed"
    if trial.feasible:
        return "feasible"
    return "stopped" if trial.state == TrialState.STOPPED else "infeasible"


def _both(draw: Any, *values: Any, **named: Any) -> Markup:
    """One chart for wide and one for narrow screens. The charts escape what they are given."""
    wide, narrow = (draw(*values, **named, width=width) for width in (WIDE, NARROW))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


def _trade_off(result: JobResult, trials: Sequence[TrialResult], cost: _Cost, drop: _DropScale) -> dict[str, Any]:
    """The chart of drop against cost, its legend and what has to be said about it."""
    judged = [(t, v, cost(t)) for t in trials if t.state != TrialState.FAILED and (v := drop.verdict(t.verdicts)) is not None]
    allowed = drop.allowed(trials)
    top = _ceiling([v.drop for _, v, c in judged if c is not None], allowed, result.best.drop.value)
    points = [
        Point(c, drop.factor * v.drop, _kind(t), _tip(t, v, c, cost, drop), drop.factor * v.lower, drop.factor * v.upper, _best(t, result))
        for t, v, c in judged
    ]
    failed = [Point(cost(t), drop.factor * top, "failed", f"trial {t.number} failed") for t in trials if t.state == TrialState.FAILED]
    original = Point(cost.original, 0.0, "original", f"original: {cost.show(cost.original)}")
    shown = [p for p in points if len(finite((p.x, p.y))) == 2]
    heights = [p.y for p in shown] + [p.high for p in shown] + [0.0, drop.factor * (allowed or 0.0)]
    heights = [min(h, drop.factor * top) for h in finite(heights)]
    scale, unit = axis_unit(cost.key, [p.x for p in (*shown, original)])
    y = Axis.around(drop.words, heights)
    drawn = [_scale_x(p, scale) for p in (*failed, original, *shown)]
    x = Axis.around(f"{cost.name.lower()}{unit}", [p.x for p in drawn])
    line = (drop.factor * allowed, f"target: at most {drop.short(allowed)}") if allowed is not None else None
    complete = [(c / scale, drop.factor * v.drop) for t, v, c in judged if t.state == TrialState.COMPLETE and c is not None]
    words = f"{drop.words} against {cost.name.lower()} of {len(shown)} trials"
    kinds = Counter(p.kind for p in drawn if p.x is not None)
    return {
        "chart": _both(scatter, drawn, x, y, label=words, target=line, front=pareto_front(complete)) if shown else None,
        "legend": [(Markup(swatch(kind)), words, kinds[kind]) for kind, words in KINDS.items() if kinds[kind]],
        "predicted": sum(cost.measured(t) is None for t, _, c in judged if c is not None),
        "above": sum(v.drop > top for _, v, c in judged if c is not None),
        "unknown": len(trials) - len(shown) - sum(p.x is not None for p in failed),
        "name": cost.name.lower(),
    }


def _ceiling(drops: Sequence[float], allowed: float | None, best: float) -> float:
    """The largest drop that is drawn to scale, so that a broken trial does not flatten all others."""
    worst = max(drops, default=0.0)
    return min(worst, 5 * max(allowed or 0.0, best, 0.0)) or worst


def axis_unit(key: str, values: Sequence[float | None]) -> tuple[float, str]:
    """What to divide a cost by so that ticks are short, and the unit's name for the axis."""
    largest = max(finite(values), default=0.0)
    if key == "latency_ms":
        return 1.0, ", ms"
    base, units = (1024, ("B", "KiB", "MiB", "GiB")) if key.endswith("_bytes") else (1000, ("", "k", "M", "G"))
    step = min(3, int(math.log(largest, base))) if largest >= 1 else 0
    return float(base**step), f", {units[step]}" if units[step] else ""


def _scale_x(point: Point, scale: float) -> Point:
    x = None if point.x is None else point.x / scale
    return Point(x, point.y, point.kind, point.title, point.low, point.high, point.label)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates (smaller is better), by rising x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _best(trial: TrialResult, result: JobResult) -> str:
    return "best" if trial.number == result.best.trial else ""


def _tip(trial: TrialResult, verdict: Verdict, cost: float | None, scale: _Cost, drop: _DropScale) -> str:
    return f"trial {trial.number} ({KINDS[_kind(trial)]}): {drop.say(verdict.drop)}, {scale.show(cost)}"
