"""Turns what was found out about a model into the problem that strategies are given."""

from __future__ import annotations

from search_spaces.space import SearchSpace
from tuner.results import Findings
from tuner.search.base import LinearCost, Problem

UNMEASURED = 1.2
"""An option without a measured time is taken to be this much slower than the layer left alone: conversions without a kernel."""


def build_problem(space: SearchSpace, findings: Findings, objectives: tuple[str, ...], seed: int) -> Problem:
    """The search problem of a job, without the options that the findings show to be no gain."""
    space = space.without(findings.dominated)
    damage = {layer.name: {o: findings.damage.get(layer.name, {}).get(o, 0.0) for o in layer.options} for layer in space.layers}
    costs = {
        "latency": LinearCost(findings.fixed_ms, _complete(space, findings.latency_ms, UNMEASURED), findings.links),
        "size": LinearCost(findings.fixed_bytes, _complete(space, findings.size_bytes, 1.0)),
        "compressed_size": LinearCost(findings.fixed_bytes, _complete(space, findings.size_bytes | findings.packed_bytes, 1.0)),
        "macs": LinearCost(findings.macs, _complete(space, findings.macs_saved, 1.0)),
        "params": LinearCost(findings.params, _complete(space, findings.params_saved, 1.0)),
    }
    costs["peak_memory"] = costs["size"]
    harm = LinearCost(0.0, damage)
    first = costs.get(objectives[0], harm)
    if first in (costs["macs"], costs["params"]) and not any(value for options in first.options.values() for value in options.values()):
        first = costs["size"]  # Quantization changes neither: asked for those, the search makes the file small instead.
    return Problem(
        space=space,
        objectives=objectives,
        seed=seed,
        damage=damage,
        predict=lambda assignment: tuple(costs.get(name, harm)(assignment) for name in objectives),
        linear=first,
    )


def _complete(space: SearchSpace, table: dict[str, dict[str, float]], factor: float) -> dict[str, dict[str, float]]:
    """The table with a figure for every option of every layer."""
    found: dict[str, dict[str, float]] = {}
    for layer in space.layers:
        known = table.get(layer.name, {})
        own = known.get(layer.rest, 0.0)
        found[layer.name] = {option: known.get(option, own * (1.0 if option == layer.rest else factor)) for option in layer.options}
    return found
