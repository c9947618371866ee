"""A job's figures, drawn by Optuna from the recorded history, with our words on the axes.

Optuna draws studies, so each figure rebuilds one in memory that holds what it shows. What comes back is Plotly's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState
from optuna.visualization import plot_optimization_history, plot_pareto_front, plot_timeline

from tuner.errors import UnknownName
from tuner.results import TrialResult, TrialState
from tuner.search.drawing import (
    BEST,
    LEGEND,
    MET,
    MISSED,
    History,
    NothingToDraw,
    Quantity,
    are,
    as_json,
    number_in,
    safe,
    shown,
    study_of,
    target_of,
    told,
)
from tuner.search.layer_figures import contour, importances, parallel, slices

__all__ = ["MOST_TRIALS", "History", "NothingToDraw", "Quantity", "draw", "figure_names"]

MOST_TRIALS = 600
"""More are not drawn: the figures take a second with so many, and a picture holds no more."""
FEWEST = 2
FRONT = "on the front"
STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.RUNNING: OptunaState.RUNNING,
}
WORDS = {"COMPLETE": MET, "INFEASIBLE": MISSED, "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
"""What Optuna's timeline calls a trial, and what we do."""


def draw(name: str, history: History) -> dict[str, Any]:
    """One figure as {"data": …, "layout": …}. NothingToDraw: the history does not hold enough; UnknownName."""
    if name not in DRAWN:
        raise UnknownName("figure", name, DRAWN)
    return DRAWN[name](history)


def figure_names() -> tuple[str, ...]:
    return tuple(DRAWN)


def progress(history: History) -> dict[str, Any]:
    """The first objective of every trial, and the best of those that met the target so far; the drop where no trial has it."""
    objective = history.objective if history.objective.known(history.trials) else history.drop
    known = objective.known(history.trials)
    _require(len(known), objective.title)
    study = study_of((told(trial, [value]) for trial, value in known), objective.direction)
    figure = plot_optimization_history(study, target_name=objective.title)
    met, best, missed = (trace.to_plotly_json() for trace in figure.data)
    numbers = [trial.number for trial, _ in known]
    for trace in (met, best, missed):
        trace["x"] = [numbers[index] for index in trace["x"]]
        trace["hovertemplate"] = "trial %{x}: %{y:.4g}<extra>%{fullData.name}</extra>"
    # A step where it was reached, and on to the last trial.
    best |= {"name": BEST, "line": {"shape": "hv"}, "x": [*best["x"], history.trials[-1].number], "y": [*best["y"], best["y"][-1]]}
    named = [met | {"name": MET}, best, missed | {"name": MISSED, "showlegend": True}]
    x, y = {"title": {"text": "trial"}}, {"title": {"text": safe(objective.title)}}
    return as_json(figure, [trace for trace in named if len(trace["x"])], xaxis=x, yaxis=y, legend=LEGEND)


def front(history: History) -> dict[str, Any]:
    """Drop against cost; apart those that met the target and that no other beats in both."""
    drop, cost = history.drop, history.cost
    known = [(trial, value, lost) for trial, value in cost.known(history.trials) for _, lost in drop.known([trial])]
    _require(len(known), f"{drop.title} and {cost.title}")
    study = study_of((told(trial, [value, lost]) for trial, value, lost in known), cost.direction, drop.direction)
    figure = plot_pareto_front(study, target_names=[cost.title, drop.title])
    words = (MISSED, MET, FRONT)
    traces = [
        _front_trace(trace.to_plotly_json(), name, known, (cost.title, drop.title)) for trace, name in zip(figure.data, words, strict=True)
    ]
    x, y = {"title": {"text": safe(cost.title)}}, {"title": {"text": safe(drop.title)}}
    return as_json(figure, [trace for trace in traces if trace["x"]], xaxis=x, yaxis=y, legend=LEGEND)


def timeline(history: History) -> dict[str, Any]:
    """A bar per trial, from when to when it ran."""
    ran = [(trial, *history.ran[trial.number]) for trial in history.trials if trial.number in history.ran and trial.state in STATES]
    if not ran:
        raise NothingToDraw("it needs at least one trial that runs or is finished, and there are none")
    figure = plot_timeline(study_of((_timed(*one) for one in ran), "minimize"))
    traces = [_bars(trace.to_plotly_json(), ran) for trace in figure.data]
    numbers = [trial.number for trial, *_ in ran]
    # Of a sample a bar is as high as the gaps: else it would be thinner than a line.
    height = max(1.0, (numbers[-1] - numbers[0] + 1) / len(numbers)) * 0.8
    x, y = {"title": {"text": "time (UTC)"}, "type": "date"}, {"title": {"text": "trial"}}
    return as_json(figure, [trace | {"width": height} for trace in traces], xaxis=x, yaxis=y, legend=LEGEND)


DRAWN: dict[str, Callable[[History], dict[str, Any]]] = {
    "history": progress,
    "importances": importances,
    "slice": slices,
    "contour": contour,
    "parallel": parallel,
    "front": front,
    "timeline": timeline,
}


def _require(count: int, title: str) -> None:
    if count < FEWEST:
        raise NothingToDraw(f"it needs at least {FEWEST} finished trials whose {title} is known, and there {are(count)}")


def _front_trace(
    trace: dict[str, Any], name: str, known: Sequence[tuple[TrialResult, float, float]], titles: tuple[str, str]
) -> dict[str, Any]:
    """In our words, with the numbers of our trials."""
    found = [known[number_in(text)] for text in trace["text"]]
    cost, drop = (safe(title) for title in titles)
    text = [f"trial {trial.number}<br>{cost}: {shown(value)}<br>{drop}: {shown(lost)}" for trial, value, lost in found]
    # By trial number Optuna's colours begin at white, which nobody sees on paper; the number stands in the hover text.
    marker = {"color": trace["marker"]["color"]} if name == MISSED else {"size": 10 if name == FRONT else 7}
    return trace | {"text": text, "marker": marker, "name": name, "showlegend": True, "hovertemplate": f"%{{text}}<extra>{name}</extra>"}


def _timed(trial: TrialResult, started: datetime, ended: datetime) -> FrozenTrial:
    """Optuna's moments are local ones, without a zone."""
    state = STATES[trial.state]
    done = state == OptunaState.COMPLETE
    made = create_trial(state=state, values=[0.0] if done else None, constraints=target_of(trial) if done else None)
    made.datetime_start = started.astimezone().replace(tzinfo=None)
    made.datetime_complete = None if state == OptunaState.RUNNING else ended.astimezone().replace(tzinfo=None)
    return made


def _bars(trace: dict[str, Any], ran: Sequence[tuple[TrialResult, datetime, datetime]]) -> dict[str, Any]:
    """In our words and in UTC. A bar's length is in milliseconds; Optuna would let those that run end by its own clock."""
    found = [ran[number_in(text)] for text in trace["text"]]
    name = WORDS[trace["name"]]
    seconds = [(ended - started).total_seconds() for _, started, ended in found]
    ours: dict[str, Iterable[Any]] = {
        "base": [started.astimezone(UTC).replace(tzinfo=None).isoformat() for _, started, _ in found],
        "x": [1000 * spent for spent in seconds],
        "y": [trial.number for trial, *_ in found],
        "text": [f"trial {trial.number}: {spent:.1f} s" for (trial, *_), spent in zip(found, seconds, strict=True)],
    }
    return trace | ours | {"name": name, "hovertemplate": f"%{{text}}<extra>{name}</extra>"}
