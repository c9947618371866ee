"""Weights beside a plan: files of named arrays that hold numbers and nothing that could run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from tuner.errors import PlanError, writing

Arrays = dict[str, NDArray[Any]]


def save_tensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a whole file or leave the old one. The same arrays always give the same bytes. StorageError where the disk refuses."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}))
        partial.replace(path)


def load_tensors(path: Path) -> Arrays:
    """The arrays of a file. PlanError for one that is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise PlanError(
            f"the trained weights {path.name} cannot be read ({' '.join(str(error).split())[:120]}); "
            "put the .tensors.safetensors that was written with the plan beside it, under the plan's name"
        ) from error
