"""Accutune: the smallest or fastest model that still meets an accuracy target, with proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import tune as tune

__version__ = "0.1.0"
__all__ = ["__version__", "tune"]


def __getattr__(name: str) -> Any:
    """`tuner.tune` is imported when it is first used: the parts below it must not wait for torch."""
    if name == "tune":
        from tuner.api import tune

        return tune
    raise AttributeError(f"module 'tuner' has no attribute '{name}'")
