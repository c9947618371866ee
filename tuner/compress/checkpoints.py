"""States of a training on disk: plain tensors and numbers, there whole or not at all, and read without running anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from tuner.errors import writing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state or leave the old one. StorageError with the way out where the disk refuses."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state that was written; None where there is none or where it cannot be read. Code in a file is never run."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None
