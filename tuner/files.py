"""Files that are there whole or not at all, and where those lie that two parts must find."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.errors import writing


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one. StorageError with the way out where the disk refuses."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def plan_file(cache: Path, number: int) -> Path:
    """Where a trial's applied plan lies in its job's cache, from which its model can be made again."""
    return cache / "plans" / f"{number}.json"
