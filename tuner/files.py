"""Files that are there whole or not at all, and where those lie that two parts must find."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.errors import writing


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a whole file or leave the old one. StorageError with the way out where the disk refuses.

    durable: it must be there after a power cut; what can be made again need not wait for the disk."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)


def plan_file(cache: Path, number: int) -> Path:
    """Where a trial's applied plan lies in its job's cache, from which its model can be made again."""
    return cache / "plans" / f"{number}.json"


def rows_file(cache: Path, number: int | None) -> Path:
    """Where the scores of a trial's rows lie; those of the original for None. There are none for a metric of whole splits."""
    return cache / "rows" / f"{'baseline' if number is None else number}.json"


def layers_file(cache: Path) -> Path:
    """Where the profiles of the layers lie, once the survey has made them."""
    return cache / "layers.json"


def structure_file(cache: Path, digest: str) -> Path:
    """Where it lies what the structure with a digest took away from the model."""
    return cache / "structures" / f"{digest}.json"


def beside(path: Path) -> Path:
    """Where the changed weights of a model or plan lie that are delivered with it: best.onnx and best.plan.json have
    best.tensors.safetensors."""
    return path.with_name(path.name.removesuffix(".json").removesuffix(".plan").removesuffix(".onnx") + ".tensors.safetensors")


def tensors_file(cache: Path, digest: str) -> Path:
    """Where the weights lie that the structure with a digest changed."""
    return cache / "structures" / f"{digest}.safetensors"
