"""Which training rows are held back, and which rows each step sees: functions of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from search_spaces.recovery import RecoverySpec
from tuner.data.dataset import Dataset, Indices
from tuner.errors import DataError


@dataclass(frozen=True, eq=False)
class Sampler:
    """Rows in an order drawn by the seed: the first `held` are held back, the `pool` after them are trained on."""

    order: Indices
    held: int
    pool: int
    batch: int
    steps: int
    seed: int
    notes: tuple[str, ...] = ()

    def positions(self, step: int) -> Indices:
        """The positions in `order` that a step sees, [batch]: passes over the pool, each in its own order, laid end to end."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        passes = places // self.pool
        found = np.empty(self.batch, np.int64)
        for number in np.unique(passes):
            here = passes == number
            found[here] = _shuffled(self.seed, int(number), self.pool)[places[here] - number * self.pool]
        return self.held + found

    def held_back(self) -> Iterator[Indices]:
        """The positions held back, a batch at a time."""
        return (np.arange(first, min(first + self.batch, self.held)) for first in range(0, self.held, self.batch))


def make_sampler(data: Dataset, spec: RecoverySpec, seed: int) -> Sampler:
    """Split the rows and count the steps. DataError where there are too few rows to train on.

    spec.rows left out: one pass over the rows. A batch that the model fixes is always full."""
    fixed = fixed_batch(data)
    unit, notes = fixed or 1, []
    if fixed and fixed != spec.batch:
        notes.append(f"the model takes batches of {fixed} rows only, so steps see {fixed} rows instead of {spec.batch}")
    if len(data) < unit:
        raise DataError(f"training needs at least one batch of {unit} rows, got {len(data)}; give more rows, or a model with a free batch")
    wanted = spec.hold_back * min(len(data), spec.rows or len(data))
    held = -(-max(1, round(wanted)) // unit) * unit if spec.hold_back else 0
    if held and len(data) - held < unit:
        held = 0
        notes.append(f"no row was held back: {len(data)} rows are too few")
    rows = spec.rows or len(data) - held
    pool = min(len(data) - held, max(rows, unit))
    batch = fixed or min(spec.batch, pool)
    order = np.random.default_rng([seed, 0]).permutation(len(data))
    return Sampler(order, held, pool, batch, max(1, rows // batch), seed, tuple(notes))


def fixed_batch(data: Dataset) -> int | None:
    """The batch that the model's inputs are fixed to; None where it is dynamic."""
    return next((info.shape[0] for info in data.inputs if info.shape and info.shape[0]), None)


@lru_cache(maxsize=4)
def _shuffled(seed: int, number: int, pool: int) -> Indices:
    """The order of one pass over the pool."""
    return np.random.default_rng([seed, 1, number]).permutation(pool)
