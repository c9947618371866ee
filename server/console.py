"""What a terminal shows: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from tuner.files import beside
from tuner.job import JobSpec
from tuner.progress import PHASES, Event
from tuner.report.wording import NBSP, duration, number, quantity, ratio_words, speedup_words
from tuner.results import Interval, JobResult, Measurement, Preflight
from tuner.store import utc_now
from tuner.wire import JobEvent, TrialSummary, summarize

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RECENT = 6


def say(line: str) -> None:
    """A line of the result, as it stands: the terminal wraps it, a file does not."""
    out.print(line, markup=False, soft_wrap=True)


def tell(line: str) -> None:
    """A line about the work or about what went wrong."""
    err.print(line, markup=False, soft_wrap=True)


class ProgressView:
    """Shows a job's events, its own or those that a server tells: a live table on a terminal, one plain line per step elsewhere."""

    def __init__(self, job: JobSpec, console: Console = err) -> None:
        self.job, self.console = job, console
        self._phase = ""
        self._recent: list[TrialSummary] = []
        self._best: TrialSummary | None = None
        name, left = TextColumn("{task.description:<12}"), TextColumn("{task.fields[eta]}")
        self._bar = Progress(name, BarColumn(bar_width=30), MofNCompleteColumn(), left)
        self._task = self._bar.add_task("prepare", total=None, eta="")
        live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)
        self._live = live if console.is_terminal else None

    def __enter__(self) -> ProgressView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event | JobEvent) -> None:
        if isinstance(event, JobEvent):
            self._show(event)
            return
        if event.preflight is not None:
            for line in opening(self.job, event.preflight):
                self.console.print(line, markup=False, soft_wrap=True)
        self._show(told(event))

    def _show(self, event: JobEvent) -> None:
        if self._live is None:
            self._plain(event)
            return
        eta = f"about {_plain(duration(event.seconds_left))} left" if event.seconds_left else ""
        step = event.phase or (event.state.value if event.state else self._bar.tasks[0].description)
        self._bar.update(self._task, description=step, completed=event.done, total=event.total or None, eta=eta)
        if event.trial is not None and event.phase == "search":
            self._recent = [*self._recent, event.trial][-RECENT:]
        self._best = event.best or self._best

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "state", "drop", "speed-up", "size"):
            table.add_column(name, justify="left" if name == "state" else "right")
        for trial in self._recent:
            table.add_row(*map(Text, trial_cells(trial)))
        best = [Text(f"best so far: {one_line(self._best)}")] if self._best else []
        steps = " → ".join(f"[bold]{name}[/bold]" if name == self._bar.tasks[0].description else name for name in PHASES)
        return Group(Text.from_markup(steps), self._bar, table, *best)

    def _plain(self, event: JobEvent) -> None:
        before = f"[{event.seconds:7.1f} s]"
        if event.state is not None:
            self._line(f"job {event.state.value}")
        if event.phase is not None and event.phase != self._phase:
            self._phase = event.phase
            self._line(f"{before} {event.phase}")
        if event.trial is None or event.phase != "search":
            if event.message:
                self._line(f"{before} {event.phase or 'job'}: {event.message}")
            return
        left = f", about {_plain(duration(event.seconds_left))} left" if event.seconds_left else ""
        best = f"; best {one_line(event.best)}" if event.best else ""
        self._line(f"{before} trial {event.done}/{event.total}: {one_line(event.trial)}{best}{left}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def told(event: Event) -> JobEvent:
    """An event of a job in this process in the form in which a server tells it."""
    return JobEvent(
        seq=0,
        at=utc_now(),
        kind="trial" if event.trial else "progress",
        phase=event.phase,
        message=event.message,
        done=event.done,
        total=event.total,
        seconds=event.seconds,
        seconds_left=event.seconds_left,
        trial=summarize(event.trial) if event.trial else None,
        best=summarize(event.best) if event.best else None,
    )


def opening(job: JobSpec, ready: Preflight) -> list[str]:
    """What is about to happen, in a few lines."""
    layers = sum(1 for layer in ready.space.layers)
    rows = ", ".join(f"{count:,} {role}" for role, count in ready.rows.items() if count)
    values = ", ".join(f"{m.metric} {m.value:.4g}" for name, m in ready.baseline.measurements.items() if name in ready.metrics)
    lines = [
        goal(job),
        f"Baseline on validation: {values}. Rows: {rows}.",
        f"Space {ready.space.name}: {layers} layers, about 10^{len(str(ready.space.size)) - 1} plans. "
        f"At most {job.budget.trials} trials in {_plain(duration(job.budget.seconds))}.",
    ]
    return lines + [f"Note: {note}." for note in ready.notes]


def goal(job: JobSpec) -> str:
    """What a job is after, in one sentence."""
    wanted = " and ".join(constraint.sentence() for constraint in job.constraints)
    return f"Looking for the best {' and '.join(job.objectives)} on {job.target.name}, where {wanted}."


def show_result(result: JobResult, folder: str | None = None) -> None:
    """The story of a finished job. folder: where its files are, if they are here."""
    say(result.summary)
    table = Table(box=None, pad_edge=False)
    for name in ("", "original", "best", ""):
        table.add_column(name, justify="left" if not name else "right")
    for name, value in result.baseline.measurements.items():
        ours = result.best.measurements.get(name)
        drop = result.best.drop if name == result.best.verdicts[0].metric else None
        if ours is not None:
            table.add_row(name, amount(value), amount(ours), change(name, value, ours, drop, result.best.speedup))
    _print_wide(table)
    for line in (*result.blame, *(f"try: {tip}" for tip in result.advice)):
        say(line)
    say(f"Trials: {', '.join(f'{count} {state}' for state, count in result.trials.items())}; {result.stop_reason}.")
    if folder is not None:
        weights = beside(Path(folder) / "best.onnx")
        names = ["best.onnx", "report.html", "best.plan.json", *([weights.name] if weights.is_file() else []), "trials.csv"]
        say(f"Files: {folder} ({', '.join(names)})")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A plain table, numbers to the right."""
    table = Table(box=None, pad_edge=False)
    listed = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or row[index] in (None, "") for row in listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(_cell(value) for value in row))
    _print_wide(table)


def _print_wide(table: Table) -> None:
    """Rows stay in one line where no terminal sets a width."""
    width = out.width if out.is_terminal else 10_000
    Console(file=sys.stdout, width=width, highlight=False).print(table, markup=False)


def amount(measurement: Measurement) -> str:
    """A measurement for people, with its standard error where it has one."""
    doubt = f" ± {quantity(measurement.metric, measurement.stderr, measurement.unit)}" if measurement.stderr else ""
    return _plain(quantity(measurement.metric, measurement.value, measurement.unit) + doubt)


def change(name: str, before: Measurement, after: Measurement, drop: Interval | None, speedup: Interval) -> str:
    """What became of one measurement, in words."""
    if drop is not None:
        return _plain(f"drop {number(drop.value)} (at least {number(drop.lower)}, at most {number(drop.upper)})")
    if name == "latency_ms":
        return _plain(speedup_words(speedup))
    return _plain(ratio_words(before.value, after.value)) if name.endswith("_bytes") or name in ("macs", "params") else ""


def _plain(text: str) -> str:
    return text.replace(NBSP, " ")


def one_line(trial: TrialSummary | None) -> str:
    """A trial in a few words."""
    if trial is None:
        return "none"
    number, state, drop, speed, size = trial_cells(trial)
    return ", ".join(part for part in (f"#{number} {state}", drop and f"drop {drop}", speed, size) if part)


def trial_cells(trial: TrialSummary) -> list[str]:
    """Number, state, drop, speed-up and size; empty where they are not known."""
    if trial.error is not None:
        return [str(trial.number), f"failed in {trial.error.step}: {trial.error.message[:60]}", "", "", ""]
    size = trial.values.get("size_bytes")
    return [
        str(trial.number),
        f"{trial.decision} after {trial.samples} rows" if trial.decision else trial.state.value,
        "" if trial.drop is None else f"{trial.drop:.4f}",
        "" if trial.speedup is None else f"{trial.speedup:.2f}×",
        "" if size is None else _plain(quantity("size_bytes", size)),
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
