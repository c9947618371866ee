from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_training import tiny_data

from search_spaces.recovery import RecoverySpec
from tuner.compress.sampling import make_sampler
from tuner.errors import DataError


def test_every_pass_sees_every_row_once_and_none_that_is_held_back(tmp_path: Path) -> None:
    sampler = make_sampler(tiny_data(tmp_path, 100), RecoverySpec(rows=300, batch=30, hold_back=0.1), 0)
    assert (sampler.held, sampler.pool, sampler.batch, sampler.steps) == (10, 90, 30, 10)
    seen = [sampler.order[sampler.positions(step)] for step in range(9)]
    held = {int(row) for positions in sampler.held_back() for row in sampler.order[positions]}
    passes = [np.concatenate(seen[first : first + 3]) for first in (0, 3, 6)]
    assert all(sorted({*rows.tolist()} | held) == list(range(100)) and len(set(rows.tolist())) == 90 for rows in passes)
    assert not np.array_equal(passes[0], passes[1])


def test_batches_run_on_over_the_end_of_a_pass(tmp_path: Path) -> None:
    sampler = make_sampler(tiny_data(tmp_path, 50), RecoverySpec(rows=140, batch=7, hold_back=0), 0)
    counts = np.bincount(np.concatenate([sampler.positions(step) for step in range(sampler.steps)]), minlength=50)
    assert sampler.steps == 20 and counts.sum() == 140 and set(counts.tolist()) == {2, 3}


def test_few_rows_of_much_data_are_a_part_of_it(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, 1000)
    few, more = (make_sampler(data, RecoverySpec(rows=rows), 0) for rows in (100, 200))
    assert (few.held, few.pool, more.held, more.pool) == (5, 100, 10, 200)
    assert np.array_equal(few.order, more.order)  # What the teacher said about the few serves the more.
    assert not np.array_equal(few.order, make_sampler(data, RecoverySpec(rows=100), 1).order)


def test_one_pass_is_made_where_no_rows_are_asked_for(tmp_path: Path) -> None:
    sampler = make_sampler(tiny_data(tmp_path, 100), RecoverySpec(batch=16), 0)
    assert (sampler.held, sampler.pool, sampler.steps) == (5, 95, 5)


def test_a_fixed_batch_is_never_cut(tmp_path: Path) -> None:
    sampler = make_sampler(tiny_data(tmp_path, 100, batch=16), RecoverySpec(), 0)
    assert (sampler.held, sampler.batch, sampler.steps) == (16, 16, 5)
    assert [len(positions) for positions in sampler.held_back()] == [16]
    small = make_sampler(tiny_data(tmp_path / "small", 20, batch=16), RecoverySpec(), 0)
    assert small.held == 0 and "no row was held back: 20 rows are too few" in small.notes
    with pytest.raises(
        DataError, match="training needs at least one batch of 16 rows, got 10; give more rows, or a model with a free batch"
    ):
        make_sampler(tiny_data(tmp_path / "few", 10, batch=16), RecoverySpec(), 0)


def test_one_row_can_be_trained_on(tmp_path: Path) -> None:
    sampler = make_sampler(tiny_data(tmp_path, 1), RecoverySpec(), 0)
    assert (sampler.held, sampler.pool, sampler.batch, sampler.steps) == (0, 1, 1, 1)
