"""Accutune: the smallest or fastest model that still meets an accuracy target, with proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import tune as tune
    from tuner.client import Client as Client

__version__ = "0.1.0"
__all__ = ["Client", "__version__", "tune"]


def __getattr__(name: str) -> Any:
    """What stands here is imported when it is first used: the parts below must not wait for torch, nor a client need it."""
    if name == "tune":
        from tuner.api import tune

        return tune
    if name == "Client":
        from tuner.client import Client

        return Client
    raise AttributeError(f"module 'tuner' has no attribute '{name}'")
