"""Turns what was found out about a model into the problem that strategies are given."""

from __future__ import annotations

from functools import partial

from search_spaces.schemes import FLOAT
from search_spaces.space import SearchSpace
from tuner.results import Assignment, Findings
from tuner.search.base import LinearCost, Problem

UNMEASURED = 1.2
"""An option without a measured time is taken to be this much slower than float: conversions without a kernel."""


def build_problem(space: SearchSpace, findings: Findings, objectives: tuple[str, ...], seed: int) -> Problem:
    """The search problem of a job."""
    latency = LinearCost(findings.fixed_ms, _complete(space, findings.latency_ms, UNMEASURED), findings.links)
    size = LinearCost(findings.fixed_bytes, _complete(space, findings.size_bytes, 1.0))
    damage = {layer.name: {o: findings.damage.get(layer.name, {}).get(o, 0.0) for o in layer.options} for layer in space.layers}
    harm = LinearCost(0.0, damage)
    return Problem(
        space=space,
        objectives=objectives,
        seed=seed,
        damage=damage,
        predict=partial(_predict, objectives, latency, size, harm, findings),
        linear=_linear(objectives[0], latency, size, harm),
    )


def _linear(objective: str, latency: LinearCost, size: LinearCost, harm: LinearCost) -> LinearCost:
    """Quantization changes neither MACs nor parameters: asked for those, the search makes the file small instead."""
    if objective == "latency":
        return latency
    return size if objective in ("size", "compressed_size", "peak_memory", "macs", "params") else harm


def _predict(
    objectives: tuple[str, ...], latency: LinearCost, size: LinearCost, harm: LinearCost, findings: Findings, assignment: Assignment
) -> tuple[float, ...]:
    constant = {"macs": float(findings.macs), "params": float(findings.params)}
    return tuple(constant[name] if name in constant else _linear(name, latency, size, harm)(assignment) for name in objectives)


def _complete(space: SearchSpace, table: dict[str, dict[str, float]], factor: float) -> dict[str, dict[str, float]]:
    """The table with a figure for every option of every layer."""
    found: dict[str, dict[str, float]] = {}
    for layer in space.layers:
        known = table.get(layer.name, {})
        float_cost = known.get(FLOAT, 0.0)
        found[layer.name] = {option: known.get(option, float_cost * (1.0 if option == FLOAT else factor)) for option in layer.options}
    return found
