"""Charts as SVG text, drawn from plain numbers without a plotting library.

Colours and fonts come from the page's style sheet through class names, so that one drawing serves light, dark and print. Every
text is escaped here. Values that are None or not finite are left out; values outside an axis are drawn on its edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 30.0, 46.0
"""Margins of a plot, in units of the drawing."""
CHARACTER = 6.6
"""Width of an average character at the charts' font size."""
SIDE = 27.0
"""Of a cell of a strip."""
COLOURS = 7
"""How many fills the style sheet has for the cells of a strip (classes k0 …)."""
MOST_DECADES = 8
"""A log axis of bars reaches down this far from its top; smaller values are drawn without length."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(value: float) -> str:
    """A number as a tick label: no trailing zeros, a real minus sign."""
    return f"{0.0 if abs(value) < 1e-15 else value:,.6g}".replace("-", "\u2212")


def power(value: float) -> str:
    """A power of ten as a tick label."""
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPT)


def finite(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


@dataclass(frozen=True)
class Axis:
    """One axis: what it says, which values it spans and how its ticks read."""

    label: str
    low: float
    high: float
    log: bool = False
    show: Callable[[float], str] = plain

    @classmethod
    def around(cls, label: str, values: Iterable[float | None], *, log: bool = False, show: Callable[[float], str] = plain) -> Axis:
        """The axis with a little room around all values (on a log axis, around the positive ones). A single value lands in the middle."""
        known = [v for v in finite(values) if v > 0 or not log]
        if not known:
            return cls(label, 1.0 if log else 0.0, 10.0 if log else 1.0, log, show)
        low, high = (math.log10(f(known)) for f in (min, max)) if log else (min(known), max(known))
        room = 0.05 * (high - low) or 0.1 * abs(low) or 0.5
        low, high = low - room, high + room
        return cls(label, 10**low if log else low, 10**high if log else high, log, show)

    def place(self, value: float) -> float:
        """Where the value lies, from 0 at the low end to 1 at the high end."""
        if self.log and value <= 0:
            return 0.0
        low, high, at = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return min(1.0, max(0.0, (at - low) / (high - low)))

    def ticks(self, count: int) -> list[float]:
        return log_ticks(self.low, self.high, count) if self.log else nice_ticks(self.low, self.high, count)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten inside [low, high]; one value where low == high."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Powers of ten inside [low, high], thinned to about `count`; where fewer than two fit, round numbers between."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 1:
        return [tick for tick in nice_ticks(low, high, count) if tick > 0]
    return [float(f"1e{exponent}") for exponent in range(first, last + 1, math.ceil((last - first + 1) / max(1, count)))]


@dataclass(frozen=True)
class Point:
    """One mark. kind: feasible, infeasible, stopped, failed or original (its shape and colour); low, high: its error bar."""

    x: float | None
    y: float | None
    kind: str
    title: str = ""
    low: float | None = None
    high: float | None = None
    label: str = ""
    """Words beside the mark; a labelled mark is ringed."""
    hollow: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar with its name and its value in words."""

    label: str
    value: float | None
    text: str
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a strip: a short code and the number of its fill; None is an empty cell."""

    code: str
    fill: int | None
    title: str


@dataclass(frozen=True)
class _Plot:
    """The area between the axes."""

    x: Axis
    y: Axis
    width: float
    height: float

    def px(self, value: float) -> float:
        return LEFT + self.x.place(value) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        return self.height - BOTTOM - self.y.place(value) * (self.height - TOP - BOTTOM)

    def axes(self) -> str:
        """Grid, tick labels and axis titles."""
        right, floor = self.width - RIGHT, self.height - BOTTOM
        parts = [_line("axis", LEFT, floor, right, floor)]
        for tick in self.y.ticks(5):
            at = self.py(tick)
            parts += [_line("grid", LEFT, at, right, at), _text("tick", LEFT - 8, at + 4, self.y.show(tick), "end")]
        for tick in self.x.ticks(max(2, int((right - LEFT) / 100))):
            at = self.px(tick)
            parts += [_line("axis", at, floor, at, floor + 4), _text("tick", at, floor + 18, self.x.show(tick), "middle")]
        parts += [_text("label", 0, 14, self.y.label), _text("label", right, self.height - 6, self.x.label, "end")]
        return "".join(parts)


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    *,
    label: str,
    width: float = 860,
    target: tuple[float, str] | None = None,
    front: Sequence[tuple[float, float]] = (),
) -> str:
    """Points with error bars. target: height and words of a horizontal line; front: corners of a staircase (each holds until the next)."""
    drawn = [p for p in points if len(finite((p.x, p.y))) == 2]
    if not drawn:
        return _empty(label, width)
    plot = _Plot(x, y, width, _height(width))
    parts = [plot.axes()]
    if front:
        parts.append(_stairs("front", plot, front))
    notes = []
    if target is not None:
        at = plot.py(target[0])
        parts.append(_line("target", LEFT, at, width - RIGHT, at))
        notes.append(_text("note", width - RIGHT, at - 6, target[1], "end"))
    parts += [_point(plot, p) for p in sorted(drawn, key=lambda p: bool(p.label))] + notes
    return _svg(label, width, plot.height, parts)


def steps(
    values: Sequence[tuple[float, float | None]],
    x: Axis,
    y: Axis,
    *,
    label: str,
    width: float = 860,
    points: Sequence[Point] = (),
    failed: Sequence[float] = (),
) -> str:
    """A staircase through (x, y), with single marks and, on the floor, a cross at every x in `failed`."""
    known = [(at, value) for at, value in values if value is not None and len(finite((at, value))) == 2]
    marks = [p for p in points if len(finite((p.x, p.y))) == 2]
    crosses = finite(failed)
    if not (known or marks or crosses):
        return _empty(label, width)
    plot = _Plot(x, y, width, _height(width) * 0.75)
    parts = [plot.axes()]
    parts += [_point(plot, p) for p in marks]
    if known:
        parts.append(_stairs("best-line", plot, [*known, (x.high, known[-1][1])]))
    parts += [_titled(f"trial {plain(at)} failed", mark("failed", plot.px(at), plot.height - BOTTOM - 8)) for at in crosses]
    return _svg(label, width, plot.height, parts)


def bars(rows: Sequence[Bar], *, label: str, axis: str, width: float = 860) -> str:
    """Horizontal bars on a log scale, in the order given; a value of zero or less has no length."""
    drawn = [row for row in rows if finite((row.value,))]
    if not drawn:
        return _empty(label, width)
    scale, left, step = _decades(axis, [row.value or 0.0 for row in drawn]), 0.32 * width, 22
    right, floor = width - 76, 8.0 + step * len(drawn)
    plot = [_text("label", right, floor + 38, axis, "end"), _line("axis", left, 4, left, floor)]
    for tick in scale.ticks(max(2, int((right - left) / 45))):
        at = left + scale.place(tick) * (right - left)
        plot += [_line("grid", at, 4, at, floor), _text("tick", at, floor + 18, scale.show(tick), "middle")]
    for index, row in enumerate(drawn):
        top, length = 6 + step * index, scale.place(row.value or 0.0) * (right - left)
        words = [_text("tick", left - 8, top + 13, _shorten(row.label, int((left - 10) / CHARACTER)), "end")]
        words += [_rect("bar", left, top + 1, length, step - 6), _text("value", left + length + 6, top + 13, row.text)]
        plot.append(_titled(row.title or f"{row.label}: {row.text}", "".join(words)))
    return _svg(label, width, floor + 46, plot)


def strip(cells: Sequence[Cell], *, label: str, width: float = 860) -> str:
    """Cells in rows that wrap at the width; each row begins with the number of its first cell."""
    if not cells:
        return _empty(label, width)
    gap, left = 3.0, 34.0
    columns = max(1, int((width - left) // (SIDE + gap)))
    parts = []
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = left + column * (SIDE + gap), row * (SIDE + gap) + 1
        if column == 0:
            parts.append(_text("tick", left - 8, y + 18, str(index + 1), "end"))
        parts.append(_titled(cell.title, _cell(cell, x, y)))
    return _svg(label, width, math.ceil(len(cells) / columns) * (SIDE + gap) + 1, parts)


def chip(cell: Cell) -> str:
    """One cell of a strip, for a legend."""
    size = _n(SIDE + 2)
    return f'<svg class="swatch" viewBox="0 0 {size} {size}" width="22" height="22" aria-hidden="true">{_cell(cell, 1, 1)}</svg>'


def swatch(kind: str) -> str:
    """The mark of a kind of point, for a legend."""
    return f'<svg class="swatch" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{mark(kind, 7, 7)}</svg>'


def mark(kind: str, x: float, y: float) -> str:
    """The shape of a kind of point, centred on (x, y): kinds differ by shape and not by colour alone. `kind hollow`: its outline."""
    if kind.startswith("feasible"):
        return f'<circle class="mark {kind}" cx="{_n(x)}" cy="{_n(y)}" r="4.5"/>'
    corners = {
        "infeasible": "m0-5.5 5.5 5.5-5.5 5.5-5.5-5.5z",
        "stopped": "m0-5 5 9h-10z",
        "failed": "m-4-4 8 8m0-8-8 8",
        "original": "m-4.5-4.5h9v9h-9z",
    }
    return f'<path class="mark {kind}" d="M{_n(x)} {_n(y)}{corners[kind.split()[0]]}"/>'


def _cell(cell: Cell, x: float, y: float) -> str:
    fill = "empty" if cell.fill is None else f"k{cell.fill % COLOURS}"
    return _rect(f"cell {fill}", x, y, SIDE, SIDE) + _text(f"code {fill}", x + SIDE / 2, y + 18, cell.code, "middle")


def _point(plot: _Plot, point: Point) -> str:
    assert point.x is not None and point.y is not None
    x, y = plot.px(point.x), plot.py(point.y)
    parts = []
    if len(ends := finite((point.low, point.high))) == 2:
        parts.append(_line(f"error {point.kind}", x, plot.py(ends[0]), x, plot.py(ends[1])))
    if point.label:
        left = x > plot.width / 2
        parts.append(f'<circle class="ring" cx="{_n(x)}" cy="{_n(y)}" r="9"/>')
        parts.append(_text("note", x + (-13 if left else 13), y - 8, point.label, "end" if left else "start"))
    parts.append(mark(f"{point.kind} hollow" if point.hollow else point.kind, x, y))
    return _titled(point.title, "".join(parts))


def _stairs(css: str, plot: _Plot, corners: Sequence[tuple[float, float]]) -> str:
    path = f"M{_n(plot.px(corners[0][0]))} {_n(plot.py(corners[0][1]))}"
    path += "".join(f"H{_n(plot.px(x))}V{_n(plot.py(y))}" for x, y in corners[1:])
    return f'<path class="{css}" d="{path}"/>'


def _decades(label: str, values: Sequence[float]) -> Axis:
    """A log axis over whole decades that leaves the smallest value some length."""
    known = [v for v in values if v > 0] or [1.0]
    high = math.ceil(math.log10(max(known)) - 1e-9)
    low = max(high - MOST_DECADES, math.ceil(math.log10(min(known)) - 1e-9) - 1)
    return Axis(label, 10.0 ** min(low, high - 1), 10.0**high, log=True, show=power)


def _shorten(text: str, most: int) -> str:
    """The end of a long name: that is where names of layers differ."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"


def _height(width: float) -> float:
    return min(400.0, max(260.0, width * 0.45))


def _empty(label: str, width: float) -> str:
    return _svg(label, width, 60, [_text("label", width / 2, 34, "Nothing to draw", "middle")])


def _svg(label: str, width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    return f'{head} width="{_n(width)}" height="{_n(height)}">{"".join(parts)}</svg>'


def _titled(title: str, body: str) -> str:
    return f"<g><title>{escape(title)}</title>{body}</g>" if title else body


def _text(css: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _rect(css: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{css}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="3"/>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
