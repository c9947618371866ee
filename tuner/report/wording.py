"""Numbers as people read them: three digits, always a unit, a dash for what is not known."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from search_spaces.schemes import WHOLE, ChannelScheme, RankScheme, SparsityScheme
from search_spaces.structure import CHANNELS, FACTORIZE, SPARSIFY
from tuner.job import COST_METRICS, Constraint
from tuner.results import Interval, Verdict

NBSP = "\u00a0"
UNKNOWN = "–"

SHARES = re.compile(r"top\d+|agreement|macro_f1|auroc")
"""Metrics from 0 to 1, which people read as per cent."""

COST_NAMES = dict(
    zip(
        COST_METRICS,
        ("Latency", "File size", "File size, compressed", "Multiply-accumulates (MACs)", "Parameters", "Peak memory"),
        strict=True,
    )
)


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, thousands grouped."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if int(exponent) < -4:
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - int(exponent))}f}".replace("-", "−")


def percent(share: float | None, digits: int = 2) -> str:
    if share is None or not math.isfinite(share):
        return UNKNOWN
    return f"{100 * share:.{digits}f}{NBSP}%".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}{NBSP}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s"
    return f"{minutes // 60:,}{NBSP}h {minutes % 60}{NBSP}min"


def is_share(metric: str) -> bool:
    return SHARES.fullmatch(metric) is not None


def quantity(metric: str, value: float | None, unit: str = "") -> str:
    """A value with its unit, scaled: 91.83 %, 0.612 ms, 273 KiB, 40.6 M."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if is_share(metric):
        return percent(value)
    if metric.endswith("_bytes"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if metric in ("macs", "params"):
        return _scaled(value, 1000, ("", "k", "M", "G", "T"))
    unit = "ms" if metric == "latency_ms" else unit
    return f"{number(value)}{NBSP}{unit}" if unit else number(value)


def axis_unit(metric: str, largest: float) -> tuple[float, str]:
    """What to divide a quantity by so that the ticks of an axis are short, and the name of the unit that this makes."""
    if metric.endswith("_bytes"):
        return _axis_step(largest, 1024, ("bytes", "KiB", "MiB", "GiB"))
    if metric in ("macs", "params"):
        return _axis_step(largest, 1000, ("", "thousand", "million", "billion"))
    return 1.0, "ms" if metric == "latency_ms" else ""


def choice_words(parameter: str, choice: str) -> str:
    """A plan's choice for a parameter of the space. Quantization is spelled as in the plan, everything else in words."""
    step = parameter.partition(":")[0]
    if choice == WHOLE or step not in (CHANNELS, FACTORIZE, SPARSIFY):
        return choice
    if step == CHANNELS:
        channels = ChannelScheme.parse(choice)
        return f"{channels.keep:,} kept" if channels.cut is None else f"{percent(channels.cut, 0)} of all channels gone"
    if step == FACTORIZE:
        split = RankScheme.parse(choice)
        return f"{split.method}, {percent(split.ratio, 0)} fewer MACs"
    zeros = SparsityScheme.parse(choice)
    where = {":": f", {zeros.pattern} stay", "x": f" in blocks of {zeros.pattern.replace('x', ' × ')}"}
    return f"{percent(zeros.ratio, 0)} zeros{next((words for mark, words in where.items() if mark in zeros.pattern), '')}"


def speedup_words(speedup: Interval) -> str:
    """The ratio of latencies with its interval; no claim where the interval holds 1."""
    span = f"{speedup.lower:.2f}× to {speedup.upper:.2f}×, {speedup.confidence:.0%} interval".replace("%", f"{NBSP}%")
    if speedup.lower == speedup.upper == 1:
        return "unchanged"
    if speedup.contains(1):
        return f"no measurable difference ({span})"
    word = f"{speedup.value:.2f}× faster" if speedup.value > 1 else f"{1 / speedup.value:.2f}× slower"
    return f"{word} ({span})"


def ratio_words(before: float | None, after: float | None) -> str:
    """A cost compared with the original's."""
    if not before or not after:
        return UNKNOWN
    ratio = after / before
    if abs(ratio - 1) < 5e-4:
        return "unchanged"
    times = f"{number(1 / ratio)}× smaller" if ratio < 1 else f"{number(ratio)}× larger"
    return f"{percent(ratio, 1)} of the original, {times}"


class DropWords:
    """How drops under one constraint are said: per cent of the original's value, percentage points, or plain numbers."""

    def __init__(self, constraint: Constraint) -> None:
        self.metric = constraint.metric
        self.is_cost = constraint.metric in COST_METRICS
        share = is_share(constraint.metric)
        self.factor = 100.0 if constraint.relative or share else 1.0
        self.unit = f"{NBSP}%" if constraint.relative else f"{NBSP}points" if share else ""

    @property
    def axis(self) -> str:
        if self.is_cost:
            return f"{self.metric} above its limit"
        unit = {f"{NBSP}%": ", % of the original’s value", f"{NBSP}points": ", percentage points"}.get(self.unit, "")
        return f"drop in {self.metric}{unit}"

    def short(self, drop: float | None) -> str:
        if drop is None or not math.isfinite(drop):
            return UNKNOWN
        if self.is_cost:
            return quantity(self.metric, drop)
        return (f"{self.factor * drop:.2f}" if self.factor > 1 else number(drop)).replace("-", "−") + self.unit

    def say(self, drop: float) -> str:
        """A drop in words: 0.42 points worse."""
        worse, better = ("over the limit", "under the limit") if self.is_cost else ("worse", "better")
        return f"{self.short(abs(drop))} {worse if drop > 0 else better}" if drop else "no change"

    def bounds(self, drop: Verdict | Interval) -> str:
        """The one-sided bounds on a drop; empty where there is no doubt."""
        if drop.lower == drop.upper:
            return ""
        sure = percent(drop.confidence, 1).replace(".0", "")
        return f"at least {self.short(drop.lower)}, at most {self.short(drop.upper)} (each with {sure} confidence)"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    step = 0
    while abs(value) >= base * 0.9995 and step < len(units) - 1:
        value, step = value / base, step + 1
    shown = f"{value:,.0f}" if step == 0 else number(value, 4 if abs(value) >= 999.5 else 3)
    return f"{shown}{NBSP}{units[step]}".rstrip(NBSP)


def _axis_step(largest: float, base: int, units: Sequence[str]) -> tuple[float, str]:
    step = min(len(units) - 1, int(math.log(largest, base))) if largest >= 1 else 0
    return float(base**step), units[step]
