"""What the figures share: a job's history as an Optuna study in memory, names that fit on an axis, and plain JSON."""

from __future__ import annotations

import html
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from optuna import Study, create_study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from search_spaces.schemes import FLOAT, WHOLE
from search_spaces.structure import rest_of
from tuner.errors import AccutuneError
from tuner.results import TrialResult

LABEL = 24
"""Signs of a layer's name that fit beside an axis."""
MET, MISSED, BEST = "meets the target", "misses the target", "best so far"
CLEAR = "rgba(0,0,0,0)"
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
"""Above the picture, where it takes no width."""
PALE, STRONG = (158, 202, 225), (33, 113, 181)
"""Blues that are seen on light and on dark paper, as Optuna's own from white to navy are not."""
Direction = Literal["minimize", "maximize"]
Choices = Mapping[str, BaseDistribution]

_NAME = "accutune-figures"
_QUANTIZED = re.compile(r"[us][0-9]+-|float/")
"""How the name of a quantization begins."""
_NUMBERED = re.compile(r"([^0-9]*)([0-9]+(?:\.[0-9]+)?)")
# Optuna announces every new study, and warns where no trial met the constraints, which a figure shows by itself.
logging.getLogger("optuna.storages._in_memory").addFilter(lambda record: not record.getMessage().endswith(f": {_NAME}"))
logging.getLogger("optuna.visualization._pareto_front").addFilter(lambda record: "does not have any" not in record.getMessage())


class NothingToDraw(AccutuneError):
    """The history does not hold enough for a figure yet. The message says what is missing."""


@dataclass(frozen=True)
class Quantity:
    """What is drawn of a trial. title: as it stands on an axis, with its unit; of: None where a trial lacks it."""

    title: str
    of: Callable[[TrialResult], float | None]
    higher: bool = False
    """Is more better?"""

    def known(self, trials: Iterable[TrialResult]) -> list[tuple[TrialResult, float]]:
        """The finished trials that have it, with their values."""
        found = ((trial, self.of(trial)) for trial in trials if trial.finished)
        return [(trial, value) for trial, value in found if value is not None and math.isfinite(value)]

    @property
    def direction(self) -> Direction:
        return "maximize" if self.higher else "minimize"


@dataclass(frozen=True)
class History:
    """What is drawn: trials by number, and the quantities that a job is about."""

    trials: tuple[TrialResult, ...]
    drop: Quantity
    objective: Quantity
    """The first one."""
    cost: Quantity
    """The first objective that is a cost."""
    ran: Mapping[int, tuple[datetime, datetime]] = field(default_factory=dict)
    """{number: from when to when, UTC}; a trial that runs ends now."""


class Options(CategoricalDistribution):
    """What a layer may be, one and the same object for all trials of a study: Optuna copies and compares a trial's distributions
    again and again, which would take most of the time."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> Options:
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def told(trial: TrialResult, values: Sequence[float]) -> FrozenTrial:
    """A finished trial in Optuna's words. Figures ask of a constraint only whether it is violated."""
    return create_trial(values=values, constraints=target_of(trial))


def target_of(trial: TrialResult) -> dict[str, float]:
    return {"target": 0.0 if trial.feasible else 1.0}


def study_of(trials: Iterable[FrozenTrial], *directions: Direction) -> Study:
    """Optuna numbers the trials of a study from 0, as they come."""
    study = create_study(study_name=_NAME, directions=directions)
    study.add_trials(trials)
    return study


def layer_study(
    judged: Iterable[tuple[TrialResult, float]], layers: Mapping[str, str], options: Mapping[str, str], *, constrained: bool = True
) -> Study:
    """A study of one value with the choice for these layers as parameters. layers, options: {name: label}."""
    rows = list(judged)
    seen = {layer: {option_of(trial, layer) for trial, _ in rows} for layer in layers}
    kinds: Choices = {layers[layer]: Options([options[name] for name in options if name in found]) for layer, found in seen.items()}
    trials = (
        create_trial(
            values=[value],
            params={label: options[option_of(trial, layer)] for layer, label in layers.items()},
            distributions=dict(kinds),
            constraints=target_of(trial) if constrained else None,
        )
        for trial, value in rows
    )
    return study_of(trials, "minimize")


def option_of(trial: TrialResult, layer: str) -> str:
    """What a trial chose for a layer; what it does not name it left alone."""
    return str(trial.assignment.get(layer, rest_of(layer)))


def varied_layers(trials: Iterable[TrialResult]) -> list[str]:
    """The layers for which the trials did not all choose the same, as they are named first."""
    rows = list(trials)
    names = dict.fromkeys(layer for trial in rows for layer in trial.assignment)
    return [layer for layer in names if len({option_of(trial, layer) for trial in rows}) > 1]


def layer_labels(layers: Sequence[str], most: int = LABEL) -> dict[str, str]:
    """{layer: a label of at most so many signs, shortened from the left}; longer only where two would be the same."""
    for size in range(most, max(map(len, layers), default=0) + 1):
        labels = {layer: shortened(layer, size) for layer in layers}
        if len(set(labels.values())) == len(layers):
            return {layer: safe(label) for layer, label in labels.items()}
    return {layer: safe(layer) for layer in layers}


def shortened(name: str, most: int) -> str:
    """The end of a name, which tells layers apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def option_labels(options: Iterable[str]) -> dict[str, str]:
    """{option: the words that tell it from the others}: "mse channel" where all are u8-asym-…/s8-sym-…, others as they are spelt.
    What leaves a layer alone comes first, then quantization, then channels, zeros and ranks by their numbers."""
    names = sorted(set(options), key=_place)
    words = {name: _words(name) for name in names if _QUANTIZED.match(name)}
    telling = [len({word for word in column if word}) > 1 for column in zip(*words.values(), strict=True)]
    short = {name: (name in words and _said(words[name], telling)) or name for name in names}
    distinct = len(set(short.values())) == len(names)
    return {name: safe(short[name] if distinct else name) for name in names}


def _place(option: str) -> tuple[bool, bool, tuple[tuple[str, float], ...], str]:
    """What options are sorted by. A word like "keep-12" counts as its letters, then its number."""
    quantized = bool(_QUANTIZED.match(option))
    parts = () if quantized else tuple((text, float(number or 0)) for text, number in _NUMBERED.findall(option))
    return option not in (FLOAT, WHOLE), not quantized, parts, option


def _words(option: str) -> tuple[str, ...]:
    """A scheme as six words: type, symmetry and range of the activation, type, symmetry and grain of the weight; some empty."""
    activation, _, weight = option.partition("/")
    return tuple(word for half in (activation, weight) for word in [*half.split("-", 2), "", "", ""][:3])


def _said(words: Sequence[str], telling: Sequence[bool]) -> str:
    """Of nothing that tells it from others, the range and the grain, which people choose by."""
    told_apart = [word for word, tells in zip(words, telling, strict=True) if word and tells]
    return " ".join(told_apart or filter(None, (words[2], words[5])))


def safe(text: str) -> str:
    """A name that Plotly shows as it is: it takes some tags for formatting."""
    return html.escape(text, quote=False)


def blue(share: float) -> str:
    """Between PALE at 0 and STRONG at 1."""
    mixed = (round(pale + share * (strong - pale)) for pale, strong in zip(PALE, STRONG, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def number_in(text: str) -> int:
    """The study's number of the trial that one of Optuna's own hover texts is about."""
    return int(json.loads(text.replace("<br>", "\n"))["number"])


def shown(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def are(count: int) -> str:
    return f"is {count}" if count == 1 else f"are {count or 'none'}"


def as_json(figure: Any, traces: Iterable[Mapping[str, Any]] | None = None, **layout: Any) -> dict[str, Any]:
    """The figure as JSON without Optuna's title and theme: colours of paper and text are the page's."""
    data = [trace.to_plotly_json() for trace in figure.data] if traces is None else traces
    whole = figure.layout.to_plotly_json() | layout | {"paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR}
    for theirs in ("template", "title", "width"):
        whole.pop(theirs, None)
    return {"data": [_plain(trace) for trace in data], "layout": _plain(whole)}


def _plain(value: Any) -> Any:
    """With JSON's own types only; what is not finite is null."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
