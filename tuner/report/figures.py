"""The report's four charts, made from what a job recorded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from search_spaces.structure import rest_of
from tuner.job import COST_METRICS, COSTS, JobSpec
from tuner.report.charts import Axis, Bar, Cell, Point, bars, chip, finite, plain, scatter, steps, strip, swatch
from tuner.report.wording import COST_NAMES, DropWords, axis_unit, choice_words, number, quantity
from tuner.results import JobResult, SensitivityRow, TrialResult, TrialState, Verdict

WIDE, NARROW = 880.0, 340.0
"""Each chart is drawn twice; the style sheet shows the one that fits."""
LAYERS_DRAWN = 25
OUTLIER = 5
"""A drop this many times the allowed one (or the best plan's) is not drawn to scale."""
OBJECTIVE_COSTS = dict(zip(COSTS, COST_METRICS, strict=True))

KINDS = {
    "feasible": "meets the target",
    "infeasible": "misses the target",
    "stopped": "stopped early: it was certain to miss",
    "failed": "failed (drawn on the top edge)",
    "original": "the original model",
}


@dataclass(frozen=True)
class Figure:
    """A chart with its legend: (mark, words) for each kind of mark that occurs."""

    chart: Markup
    legend: tuple[tuple[Markup, str], ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What the search made small: the first objective that is a cost, else latency."""

    key: str
    original: float | None
    saved: Mapping[str, float] = field(default_factory=dict)
    """{layer: share of the original's latency that compressing it saves}, for predictions."""

    @classmethod
    def of(cls, job: JobSpec, result: JobResult, sensitivity: Sequence[SensitivityRow]) -> Cost:
        key = next((OBJECTIVE_COSTS[name] for name in job.objectives if name in OBJECTIVE_COSTS), "latency_ms")
        baseline = result.baseline.measurements.get(key)
        original = baseline.value if baseline else None
        return cls(key, original, _savings(sensitivity, original or 0.0) if key == "latency_ms" else {})

    @property
    def name(self) -> str:
        return COST_NAMES[self.key].removesuffix(" (MACs)").lower()

    @property
    def gain_name(self) -> str:
        return "speed-up over the original" if self.key == "latency_ms" else f"{self.name}: times smaller than the original"

    def measured(self, trial: TrialResult) -> float | None:
        """The measured cost. A speed-up is told in milliseconds of the original, because ratios do not drift with the machine's load."""
        if self.key == "latency_ms" and trial.speedup is not None and self.original is not None:
            return self.original / trial.speedup.value
        return trial.value(self.key)

    def predicted(self, trial: TrialResult) -> float | None:
        """The original's latency less what the compressed layers were measured to save one by one."""
        if not self.saved or self.original is None:
            return None
        compressed = (layer for layer, choice in trial.assignment.items() if choice != rest_of(layer))
        return self.original * (1 - sum(self.saved.get(layer, 0.0) for layer in compressed))

    def known(self, trial: TrialResult) -> float | None:
        measured = self.measured(trial)
        return self.predicted(trial) if measured is None else measured

    def gain(self, trial: TrialResult) -> float | None:
        """How many times smaller than the original's, where measured."""
        cost = self.measured(trial)
        return self.original / cost if cost and self.original else None


class Judged:
    """The constraint that the charts are about: the first on a metric, else the first."""

    def __init__(self, job: JobSpec, trials: Sequence[TrialResult]) -> None:
        self.constraint = job.accuracy_constraint
        self.words = DropWords(self.constraint)
        self.allowed = self._allowed(trials)

    def verdict(self, trial: TrialResult) -> Verdict | None:
        return next((v for v in trial.verdicts if v.metric == self.constraint.metric), None)

    def _allowed(self, trials: Sequence[TrialResult]) -> float | None:
        """The largest drop that meets the target. For a limit it depends on the baseline, so it is read off a verdict on all rows."""
        if self.words.is_cost:
            return 0.0
        if self.constraint.max_drop is not None:
            return self.constraint.max_drop
        full = (v for t in trials if (v := self.verdict(t)) is not None and v.rule != "anytime-valid test")
        return next(((v.upper if self.constraint.confidence else v.drop) - v.violation for v in full), None)


def kind_of(trial: TrialResult) -> str:
    if trial.state == TrialState.FAILED:
        return "failed"
    if trial.feasible:
        return "feasible"
    return "stopped" if trial.state == TrialState.STOPPED else "infeasible"


def trade_off(result: JobResult, trials: Sequence[TrialResult], cost: Cost, judged: Judged) -> Figure:
    """Drop against cost, one mark per trial."""
    words, allowed = judged.words, judged.allowed
    seen = [(t, v) for t in trials if t.state != TrialState.FAILED and (v := judged.verdict(t)) is not None and cost.known(t) is not None]
    top = _ceiling([v.drop for _, v in seen], allowed, result.best.drop.value)
    y = _drop_axis([v for _, v in seen], words, top, allowed)
    scale, unit = axis_unit(cost.key, max([cost.known(t) or 0.0 for t, _ in seen] + finite((cost.original,)), default=0.0))
    points = [_trial_point(t, v, cost, words, scale, t.number == result.best.trial) for t, v in seen]
    failed = [_failed_point(t, cost, scale, y.high) for t in trials if t.state == TrialState.FAILED]
    origin = None if cost.original is None else cost.original / scale
    original = Point(origin, 0.0, "original", f"original model: {quantity(cost.key, cost.original)}")
    drawn = [*failed, *points, original] if points else []
    x = Axis.around(", ".join(filter(None, (cost.name, unit))), [p.x for p in drawn])
    target = None if allowed is None else (words.factor * allowed, f"target: at most {words.short(allowed)}")
    full = [(c / scale, words.factor * v.drop) for t, v in seen if t.state == TrialState.COMPLETE and (c := cost.measured(t)) is not None]
    label = f"{words.axis} against {cost.name} for {len(points)} {'trial' if len(points) == 1 else 'trials'}"
    chart = _both(lambda width: scatter(drawn, x, y, label=label, width=width, target=target, front=pareto_front(full)))
    above = sum(v.drop > top for _, v in seen)
    missing = len(trials) - len(points) - len(finite(p.x for p in failed))
    return Figure(chart, _legend(drawn), _trade_off_remarks(judged, above, missing, any(p.hollow for p in points)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates (smaller is better), by rising x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def history(trials: Sequence[TrialResult], cost: Cost) -> Figure:
    """The best gain among feasible trials so far, by trial number."""
    gains = {t.number: g for t in trials if t.feasible and (g := cost.gain(t)) is not None}
    best, values = -math.inf, []
    for trial_number, gain in sorted(gains.items()):
        best = max(best, gain)
        values.append((float(trial_number), best))
    points = [Point(n, g, "feasible", f"trial {n}: {g:.2f}×") for n, g in gains.items()]
    failed = [float(t.number) for t in trials if t.state == TrialState.FAILED]
    x = Axis.around("trial", [float(t.number) for t in trials])
    y = Axis.around(cost.gain_name, [1.0, *gains.values()], show=lambda value: f"{plain(value)}×")
    winner = max(gains, key=lambda n: gains[n], default=None)
    reached = "no trial met the target and was measured" if winner is None else f"{best:.2f}×, first reached by trial {winner}"
    label = f"Best {cost.gain_name} so far: {reached}"
    chart = _both(lambda width: steps(values, x, y, label=label, width=width, points=points, failed=failed))
    legend = [("feasible", KINDS["feasible"])] * bool(gains) + [("failed", "failed")] * bool(failed)
    return Figure(chart, tuple((Markup(swatch(kind)), words) for kind, words in legend), (f"{label}.",))


@dataclass(frozen=True)
class LayerRow:
    """One layer and what the best plan does to it."""

    number: int
    name: str
    op: str
    code: str
    fill: int | None
    scheme: str
    row: SensitivityRow | None


def layer_rows(
    result: JobResult, trials: Sequence[TrialResult], sensitivity: Sequence[SensitivityRow], space_layers: Sequence[str]
) -> list[LayerRow]:
    """Every layer in graph order. Schemes get letters and fills by how often they occur."""
    chosen = _chosen(result, trials, space_layers)
    order = [scheme for scheme, _ in Counter(s for name, s in chosen.items() if s != rest_of(name)).most_common()]
    known = {row.layer: row for row in sensitivity}
    rows = []
    for position, (name, scheme) in enumerate(chosen.items(), start=1):
        row, rank = known.get(name), order.index(scheme) if scheme in order else None
        op = row.op if row else ""
        rows.append(LayerRow(position, name, op, "·" if rank is None else _letter(rank), rank, choice_words(name, scheme), row))
    return rows


def layer_strip(rows: Sequence[LayerRow]) -> Figure:
    cells = [Cell(row.code, row.fill, f"{row.number}. {row.name}: {row.scheme}") for row in rows]
    counts = Counter((row.code, row.fill, row.scheme) for row in rows).most_common()
    label = "Choice per layer: " + ", ".join(f"{count} × {scheme}" for (_, _, scheme), count in counts)
    legend = tuple((Markup(chip(Cell(code, fill, ""))), f"{scheme}: {count}") for (code, fill, scheme), count in counts)
    return Figure(_both(lambda width: strip(cells, label=label, width=width)), legend)


def sensitivity_bars(rows: Sequence[SensitivityRow]) -> Figure:
    """The layers that change the output most, worst first."""
    worst = sorted(rows, key=lambda row: -row.divergence)[:LAYERS_DRAWN]
    drawn = [
        Bar(
            r.layer, r.divergence, number(r.divergence, 2), f"{r.layer} ({r.op}, {choice_words(r.layer, r.scheme)}): {number(r.divergence)}"
        )
        for r in worst
    ]
    label = f"Sensitivity of {len(drawn)} layers, worst first" + (f"; the worst is {worst[0].layer}" if worst else "")
    return Figure(_both(lambda width: bars(drawn, label=label, axis="change of the output relative to its variance", width=width)))


def _savings(sensitivity: Sequence[SensitivityRow], original_ms: float) -> dict[str, float]:
    """{layer: share of the latency saved}. Layers timed one by one can add up to more than the whole; then their sum is the whole."""
    timed = [(row.layer, row.float_ms, row.scheme_ms) for row in sensitivity if row.float_ms is not None and row.scheme_ms is not None]
    whole = max(original_ms, sum(float_ms for _, float_ms, _ in timed))
    return {layer: (float_ms - scheme_ms) / whole for layer, float_ms, scheme_ms in timed} if whole else {}


def _both(draw: Callable[[float], str]) -> Markup:
    """One drawing for wide and one for narrow screens. The charts escape what they are given."""
    return Markup(f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>')


def _ceiling(drops: Sequence[float], allowed: float | None, best: float) -> float:
    """The largest drop that is drawn to scale, so that a broken trial does not flatten all others."""
    scale = max(allowed or 0.0, best)
    return max((drop for drop in drops if drop <= OUTLIER * scale or scale <= 0), default=scale)


def _drop_axis(verdicts: Sequence[Verdict], words: DropWords, top: float, allowed: float | None) -> Axis:
    """Holds 0, the target and every drop up to `top`, with error bars as far as they are of that size too."""
    limit = 1.2 * max(top, allowed or 0.0)
    drops = [v.drop for v in verdicts if v.drop <= top] + [0.0, allowed or 0.0]
    bounds = [bound for v in verdicts for bound in (v.lower, v.upper) if abs(bound) <= limit]
    return Axis.around(words.axis, [words.factor * value for value in (*drops, *bounds)])


def _trial_point(trial: TrialResult, verdict: Verdict, cost: Cost, words: DropWords, scale: float, best: bool) -> Point:
    known = cost.known(trial)
    assert known is not None
    hollow = cost.measured(trial) is None
    tip = f"trial {trial.number}, {KINDS[kind_of(trial)]}: {words.say(verdict.drop)}, {quantity(cost.key, known)}{' (predicted)' * hollow}"
    low, high = words.factor * verdict.lower, words.factor * verdict.upper
    return Point(known / scale, words.factor * verdict.drop, kind_of(trial), tip, low, high, "best" if best else "", hollow)


def _failed_point(trial: TrialResult, cost: Cost, scale: float, edge: float) -> Point:
    known = cost.known(trial)
    return Point(None if known is None else known / scale, edge, "failed", f"trial {trial.number} failed")


def _legend(points: Sequence[Point]) -> tuple[tuple[Markup, str], ...]:
    kinds = Counter(p.kind for p in points if p.x is not None)
    return tuple(
        (Markup(swatch(kind)), words if kind == "original" else f"{words}: {kinds[kind]}") for kind, words in KINDS.items() if kinds[kind]
    )


def _trade_off_remarks(judged: Judged, above: int, missing: int, hollow: bool) -> tuple[str, ...]:
    decides = "the upper end of its bar" if judged.constraint.confidence else "the mark itself"
    remarks = [f"Bars reach from the lower to the upper bound on the drop; a trial meets the target where {decides} is not above the line."]
    if hollow:
        remarks.append("Hollow marks: latency predicted from layers timed one by one. Only trials that meet the target are timed whole.")
    if above:
        remarks.append(f"{above} trial{'s' * (above > 1)} with a larger drop than the axis shows: drawn on its top edge.")
    if missing:
        remarks.append(f"{missing} trial{'s' * (missing > 1)} without a drop or a cost: not drawn.")
    return tuple(remarks)


def _chosen(result: JobResult, trials: Sequence[TrialResult], space_layers: Sequence[str]) -> dict[str, str]:
    """{layer: scheme in the best plan}. An operator type stands for many nodes, so its choice is the assignment's."""
    best = next((t.assignment for t in trials if t.number == result.best.trial), {})
    asked = {name: str(best.get(name, rest_of(name))) for name in space_layers if name.startswith("op:")}
    return {name: result.best.layers.get(name, asked.get(name, rest_of(name))) for name in space_layers}


def _letter(rank: int) -> str:
    return chr(ord("A") + rank % 26) + (str(rank // 26) if rank >= 26 else "")
