"""One pass over the calibration rows: what is known of the tensors of a model before any of them is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.capability import RuntimeTarget
from tuner.compress.quantization import statistics as stored
from tuner.compress.quantization.collect import block_rows, collect, exposing
from tuner.compress.quantization.placement import observed_tensors
from tuner.compress.quantization.statistics import TensorStatistics
from tuner.data.dataset import Dataset
from tuner.measure.latency import computing
from tuner.measure.runtime import Session
from tuner.model.graph import Model


@dataclass(frozen=True)
class Calibration:
    """How a job's models are calibrated. symmetric: whether some plan quantizes activations symmetrically; fixed: the only batch size that
    the model takes; between: called between blocks of rows, may raise to end it."""

    rows: Dataset
    target: RuntimeTarget
    symmetric: bool
    fixed: int | None
    threads: int
    between: Callable[[], None]

    def of(self, prepared: Model, path: Path) -> dict[str, TensorStatistics]:
        """Statistics of every tensor that some plan could quantize; read from `path` where they were collected before."""
        if path.is_file():
            return stored.load(path)
        names = observed_tensors(prepared, self.target, self.symmetric)
        session = Session(exposing(prepared, names), self.threads)
        found = collect(prepared, names, self._batches(session), _quietly(session))
        path.parent.mkdir(parents=True, exist_ok=True)
        stored.save(path, found)
        return found

    def _batches(self, session: Session) -> Iterator[dict[str, NDArray[Any]]]:
        """A model with a fixed batch sees whole batches only, so that no row counts twice; with less than one, rows repeat."""
        rows, fixed = self.rows, self.fixed
        one = sum(array.nbytes for array in session.run(rows.batch(np.arange(fixed or 1) % len(rows)), None))
        size = fixed or block_rows(one)
        end = max(len(rows) // fixed, 1) * fixed if fixed else len(rows)
        for first in range(0, end, size):
            self.between()
            yield rows.batch(np.arange(first, min(first + size, end)) % len(rows))


def _quietly(session: Session) -> Callable[[Mapping[str, NDArray[Any]], Sequence[str]], list[NDArray[Any]]]:
    def run(feed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[NDArray[Any]]:
        with computing():
            return session.run(feed, names)

    return run
