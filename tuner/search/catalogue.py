"""Imports every file that registers a strategy, so that the registry is complete."""

from __future__ import annotations

from importlib import import_module

BUILT_IN = tuple(
    f"tuner.search.{name}" for name in ("amc", "annealing", "auto", "autocompress", "bayesian", "exhaustive", "netadapt", "sensitivity")
)


def load_strategies() -> None:
    """Enter all built-in strategies into the registry; plug-ins enter themselves when a name is looked up."""
    for name in BUILT_IN:
        import_module(name)
