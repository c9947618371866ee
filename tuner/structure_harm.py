"""What taking something away does to the model's output, each part alone and before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.schemes import RankScheme, SparsityScheme
from search_spaces.space import QUANTIZE, LayerChoices
from search_spaces.structure import FACTORIZE, RECOVER, SPARSIFY
from tuner.evaluator import Evaluator
from tuner.measure.divergence import divergence
from tuner.plan import CompressionPlan, make_plan
from tuner.results import SensitivityRow

MEASURED = 3
"""Of the options of one kind the mildest, the middle and the harshest are measured; the others lie between them."""
RECOVERED = 0.1
"""The share of the harm that is left after training, as the search supposes until trials tell."""
LEAST_HARM, MOST_HARM = 1e-12, 100.0
"""Unrelated outputs diverge by about 2. A layer whose outputs are not even finite counts as MOST_HARM, so that sums stay finite."""
PACKED_BYTES = 3.7
"""What a float weight takes in a packed file; a zero takes next to nothing beside the note where it stands."""

Run = Callable[[CompressionPlan], NDArray[np.float32]]


def structural_layers(layers: Sequence[LayerChoices]) -> list[LayerChoices]:
    return [layer for layer in layers if layer.step != QUANTIZE]


def measured_options(layer: LayerChoices) -> list[str]:
    """The options whose harm is measured."""
    return [option for kind in _kinds(layer) for option in _sample(kind)]


def harms(
    evaluator: Evaluator, outputs: NDArray[np.float32], run: Run, told: Callable[[], None]
) -> Iterator[tuple[LayerChoices, dict[str, float]]]:
    """Each structural parameter with {option: divergence of the output}, of all its options. told: called after each model."""
    options = {name: values for name, values in evaluator.space.steps.items() if name != RECOVER}
    for layer in structural_layers(evaluator.space.layers):
        found: dict[str, float] = {layer.rest: 0.0}
        for kind in _kinds(layer):
            measured: dict[str, float] = {}
            for option in _sample(kind):
                plan = make_plan({layer.target: {layer.step: option}}, evaluator.job.seed, options)
                measured[option] = min(max(divergence(run(plan), outputs), LEAST_HARM), MOST_HARM)
                told()
            found |= _between(kind, measured)
        yield layer, found


def harm_row(layer: LayerChoices, harm: dict[str, float], **costs: Any) -> SensitivityRow:
    """The parameter's row in the table of sensitivities: its middle option."""
    option = layer.options[1 + (len(layer.options) - 1) // 2]
    return SensitivityRow(layer=layer.name, op=layer.op, scheme=option, divergence=harm[option], **costs)


def expected(evaluator: Evaluator, harm: dict[str, float]) -> dict[str, float]:
    """What of the harm a trial is expected to have."""
    share = RECOVERED if RECOVER in evaluator.space.steps else 1.0
    return {option: value * share for option, value in harm.items()}


def packed_bytes(layer: LayerChoices, weights: int) -> dict[str, float]:
    """{option: bytes that zeros save in a packed file}, below zero; positions of n weights of which a share s is zero take n·H(s) bits."""
    found = {layer.rest: 0.0}
    for option in layer.options[1:]:
        share = SparsityScheme.parse(option).ratio
        entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
        found[option] = -weights * max(share * PACKED_BYTES - entropy / 8, 0.0)
    return found


def _kinds(layer: LayerChoices) -> list[list[str]]:
    """The options that differ only in how much they take away, the mildest first."""
    found: dict[str, list[str]] = {}
    for option in layer.options[1:]:
        kind = ""
        if layer.step == FACTORIZE:
            scheme = RankScheme.parse(option)
            kind = f"{scheme.method} by {'energy' if scheme.energy else 'ratio'}"
        elif layer.step == SPARSIFY:
            kind = SparsityScheme.parse(option).pattern
        found.setdefault(kind, []).append(option)
    return list(found.values())


def _sample(kind: list[str]) -> list[str]:
    if len(kind) <= MEASURED:
        return kind
    return [kind[0], kind[len(kind) // 2], kind[-1]]


def _between(kind: list[str], measured: dict[str, float]) -> dict[str, float]:
    """All options of a kind: their harm's logarithm lies on lines between those that were measured, and never falls."""
    places = [kind.index(option) for option in measured]
    logs = np.interp(range(len(kind)), places, np.log(list(measured.values())))
    return dict(zip(kind, np.minimum(np.exp(np.maximum.accumulate(logs)), MOST_HARM).tolist(), strict=True))
