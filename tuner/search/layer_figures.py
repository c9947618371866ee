"""Figures about layers: which decide how much accuracy is lost, and what their options do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from optuna import Study
from optuna.importance import BaseImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.visualization import plot_contour, plot_parallel_coordinate, plot_param_importances, plot_slice

from tuner.results import TrialResult
from tuner.search.drawing import (
    LEGEND,
    MET,
    MISSED,
    History,
    NothingToDraw,
    are,
    as_json,
    blue,
    layer_labels,
    layer_study,
    option_labels,
    option_of,
    safe,
    varied_layers,
)

FEWEST = 10
"""Trials below which importances are chance."""
BARS = 20
SHOWN = 6
"""Layers that a figure with one axis each holds."""
COLUMNS = 3
LINES = 200
"""Lines of which each trial's can still be followed with the pointer."""
BETTER_HALF = 0.5
"""PED-ANOVA compares the best trials with all. Of Optuna's own tenth there are six in a job of 60 trials, fewer than a layer has
options: the order of layers is then chance. The better half found the deciding layer most often on histories with known answers."""


@dataclass(frozen=True)
class _Judged:
    """The trials whose drop is known, and the layers that they differ in."""

    trials: tuple[TrialResult, ...]
    drops: tuple[float, ...]
    layers: tuple[str, ...]

    def study(self, labels: Mapping[str, str], constrained: bool = True) -> tuple[Study, dict[str, str]]:
        """The study of these layers, {name: label}, and {label: option}."""
        options = option_labels(option_of(trial, layer) for trial in self.trials for layer in labels)
        study = layer_study(zip(self.trials, self.drops, strict=True), labels, options, constrained=constrained)
        return study, {label: option for option, label in options.items()}

    def shares(self) -> dict[str, float]:
        """{layer: its share of what decides}, the largest first."""
        labels = {layer: str(index) for index, layer in enumerate(self.layers)}
        study, _ = self.study(labels)
        # PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255) grows no random forest: it is fast and needs no other library.
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BETTER_HALF))
        return {layer: found[labels[layer]] for layer in sorted(self.layers, key=lambda layer: -found[labels[layer]])}


class _Known(BaseImportanceEvaluator):
    """Importances that were found before."""

    def __init__(self, found: dict[str, float]) -> None:
        self._found = found

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return self._found


def importances(history: History) -> dict[str, Any]:
    """A bar per layer, the most important on top."""
    judged = _judged(history, layers=2)
    labels = layer_labels(judged.layers)
    names = {label: layer for layer, label in labels.items()}
    found = {labels[layer]: share for layer, share in judged.shares().items()}
    # For every bar Optuna copies all trials to say what kind of parameter it is.
    one = _Judged(judged.trials[:1], judged.drops[:1], judged.layers)
    figure = plot_param_importances(one.study(labels)[0], evaluator=_Known(found))
    trace = figure.data[0].to_plotly_json()
    trace |= {"x": trace["x"][-BARS:], "y": trace["y"][-BARS:], "text": [f"{share:.1%}" for share in trace["x"][-BARS:]]}
    shares = {"customdata": [safe(names[label]) for label in trace["y"]], "name": "share of what decides"}
    hover = "%{customdata}<br>%{x:.1%} of what decides<extra></extra>"
    x = {"title": {"text": f"share of what decides the {_bare(history.drop.title)}"}, "tickformat": "~%", "rangemode": "tozero"}
    y = {"title": {"text": "layer"}, "automargin": True}
    return as_json(figure, [trace | shares | {"hovertemplate": hover}], xaxis=x, yaxis=y, height=140 + 24 * len(trace["y"]))


def slices(history: History) -> dict[str, Any]:
    """For each of the most important layers the drop of every trial, by what it chose there."""
    judged = _judged(history, layers=1)
    labels = _numbered(list(judged.shares())[:SHOWN])
    # Under constraints Optuna 5.0 leaves the trials that violate them out of this figure.
    study, options = judged.study(labels, constrained=False)
    figure = plot_slice(study, list(labels.values()), target_name=_broken(history.drop.title))
    names = {repr(label): (label, option) for label, option in options.items()}
    axes = {f"x{index or ''}": layer for index, layer in zip([0, *range(2, SHOWN + 1)], labels, strict=False)}
    traces = [_slice_trace(trace.to_plotly_json(), names, axes, judged, history) for trace in figure.data]
    return as_json(figure, traces, **_grid(figure.layout.to_plotly_json(), {key: label for key, (label, _) in names.items()}, len(labels)))


def contour(history: History) -> dict[str, Any]:
    """The least drop of every pair of choices for the two most important layers."""
    judged = _judged(history, layers=2)
    labels = _numbered(list(judged.shares())[:2])
    study, options = judged.study(labels)
    figure = plot_contour(study, list(labels.values()), target_name=_broken(history.drop.title))
    x_name, y_name = (safe(layer) for layer in labels)
    hover = f"{x_name}: %{{customdata[0]}}<br>{y_name}: %{{customdata[1]}}<extra></extra>"
    traces = [trace.to_plotly_json() for trace in figure.data]
    for trace in traces[1:]:
        full = [[safe(options[x]), safe(options[y])] for x, y in zip(trace["x"], trace["y"], strict=True)]
        trace |= {"customdata": full, "hovertemplate": hover, "showlegend": bool(full)}
    points = [trace | {"name": _outcome(trace["name"])} for trace in traces[1:]]
    ours = {"automargin": True}
    layout = figure.layout.to_plotly_json()
    return as_json(figure, [traces[0], *points], xaxis=layout["xaxis"] | ours, yaxis=layout["yaxis"] | ours, legend=LEGEND)


def parallel(history: History) -> dict[str, Any]:
    """A line per trial through its drop and its choices for the most important layers."""
    judged = _judged(history, layers=2)
    labels = _numbered(list(judged.shares())[:SHOWN], most=16)
    step = ceil(len(judged.trials) / LINES)
    fewer = _Judged(judged.trials[::step], judged.drops[::step], judged.layers)
    study, options = fewer.study(labels)
    figure = plot_parallel_coordinate(study, list(labels.values()), target_name=_broken(history.drop.title))
    layers, drop = [safe(layer) for layer in labels], safe(history.drop.title)
    traces = [trace.to_plotly_json() for trace in figure.data]
    least, span = min(fewer.drops), (max(fewer.drops) - min(fewer.drops)) or 1.0
    traces[-1]["marker"]["colorscale"] = [[0, blue(0)], [1, blue(1)]]
    for trace, trial, lost in zip(traces, fewer.trials, fewer.drops, strict=False):
        trace["line"]["color"] = blue(1 - (lost - least) / span)
        chosen = zip(layers, (safe(options[text]) for _, text in trace["customdata"][1:]), strict=True)
        trace["customdata"] = [[drop, trace["customdata"][0][1]], *chosen]
        trace["hovertemplate"] = f"trial {trial.number}<br>{trace['hovertemplate']}"
    layout = figure.layout.to_plotly_json()
    for annotation in layout["annotations"]:
        annotation["font"] = {"size": 10}
    ticks = {"ticktext": [_broken(history.drop.title), *labels.values()]}
    named = [trace | {"name": _outcome(trace["name"])} if "name" in trace else trace for trace in traces]
    return as_json(figure, named, xaxis=layout["xaxis"] | ticks, annotations=layout["annotations"])


def _judged(history: History, layers: int) -> _Judged:
    """NothingToDraw where there is too little to tell one layer's part from another's."""
    known = history.drop.known(history.trials)
    trials, drops = tuple(trial for trial, _ in known), tuple(drop for _, drop in known)
    lost, layers_are = _bare(history.drop.title), f"layer{'s' * (layers > 1)} for which trials chose differently"
    if len(trials) < FEWEST:
        raise NothingToDraw(f"it needs at least {FEWEST} finished trials whose {lost} is known, and there {are(len(trials))}")
    varied = tuple(varied_layers(trials))
    if len(varied) < layers:
        raise NothingToDraw(f"it needs at least {layers} {layers_are}, and there {are(len(varied))}")
    if len(set(drops)) == 1:
        raise NothingToDraw(f"all {len(trials)} trials have the same {lost}, so no layer decides it")
    return _Judged(trials, drops, varied)


def _numbered(layers: Sequence[str], most: int = 20) -> dict[str, str]:
    """{layer: label with its rank}: Optuna puts parameters in the order of their names."""
    return {layer: f"{rank}. {label}" for rank, (layer, label) in enumerate(layer_labels(layers, most).items(), start=1)}


def _slice_trace(
    trace: dict[str, Any], names: Mapping[str, tuple[str, str]], axes: Mapping[str, str], judged: _Judged, history: History
) -> dict[str, Any]:
    """In our words: options as they are spelt, the numbers of our trials, open marks for those that missed the target."""
    chosen = [names[text] for text in trace["x"]]
    trials = [judged.trials[index] for index in trace["marker"]["color"]]
    marker = trace["marker"] | {
        "color": [trial.number for trial in trials],
        "colorscale": [[0, blue(0)], [1, blue(1)]],
        "symbol": ["circle" if trial.feasible else "circle-open" for trial in trials],
        "colorbar": trace["marker"]["colorbar"] | {"title": {"text": "trial"}},
    }
    said = [[safe(option), trial.number, MET if trial.feasible else MISSED] for (_, option), trial in zip(chosen, trials, strict=True)]
    hover = f"{safe(axes[trace.get('xaxis', 'x')])}<br>%{{customdata[0]}}<br>{safe(history.drop.title)}: %{{y:.4g}}"
    ours = {"x": [label for label, _ in chosen], "customdata": said, "name": "trial"}
    return trace | ours | {"marker": marker, "hovertemplate": f"{hover}<br>trial %{{customdata[1]}}<extra>%{{customdata[2]}}</extra>"}


def _grid(layout: dict[str, Any], labels: Mapping[str, str], count: int) -> dict[str, Any]:
    """Optuna's row of subplots as rows of at most COLUMNS, whose options can be read."""
    rows = ceil(count / COLUMNS)
    columns = min(count, COLUMNS)
    wide, high = 1 / columns, 1 / rows
    for index in range(count):
        row, column = divmod(index, COLUMNS)
        suffix = str(index + 1) if index else ""
        x, y = layout[f"xaxis{suffix}"], layout[f"yaxis{suffix}"]
        top = 1 - row * high
        x |= {"domain": [(column + 0.04) * wide, (column + 0.96) * wide], "anchor": f"y{suffix}", "automargin": True}
        y |= {"domain": [top - 0.6 * high, top], "anchor": f"x{suffix}", "showticklabels": column == 0}
        x["categoryarray"] = [labels[text] for text in x["categoryarray"]]
        if column == 0:
            y["title"] = layout["yaxis"]["title"]
    return {key: value for key, value in layout.items() if "axis" in key} | {"height": 80 + 340 * rows}


def _outcome(name: str) -> str:
    """Optuna's word for trials of one kind in ours."""
    return MISSED if name.startswith("Infeasible") else MET


def _bare(title: str) -> str:
    """An axis' words without the unit."""
    return title.partition(", ")[0]


def _broken(title: str) -> str:
    """An axis' words in two lines, for where there is little room."""
    return safe(title).replace(", ", ",<br>", 1)
