"""The arithmetic of an estimate, on a job with round numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tuner.estimate import Work, certification_seconds, job_seconds, preparation_seconds, trial_rows, trial_seconds

WORK = Work(
    row_seconds=0.001,
    check_seconds=1.0,
    call_rows=1,
    megabytes=1.0,
    calibration=500,
    validation=2500,
    holdout=2000,
    sensitivity=100,
    layers=18,
    tables=5,
    trials=20,
)
"""One layer's sensitivity takes 0.1 s and the 0.02 s of building; a trial scores 1,000 rows."""


def test_each_part_is_what_its_rows_take() -> None:
    assert preparation_seconds(WORK) == pytest.approx(1.8 + 1 + 2.5 + 0.5 + 1.08 + 20 * 0.12 + 1.44 + 5 * 0.542)
    assert trial_seconds(WORK) == pytest.approx(0.057 + 0.02 + 0.7 * 1.0 + 0.5 * 0.268)
    assert certification_seconds(WORK) == pytest.approx(2 + 1 + 2 * 0.02 + 0.7 * 4.5 + 2.066)
    parts = preparation_seconds(WORK) + 20 * trial_seconds(WORK) + certification_seconds(WORK)
    assert job_seconds(WORK) == pytest.approx(parts)


@pytest.mark.parametrize(("validation", "early", "rows"), [(10_000, True, 2000), (300, True, 300), (10_000, False, 10_000)])
def test_trials_that_end_early_score_fewer_rows(validation: int, early: bool, rows: float) -> None:
    assert trial_rows(replace(WORK, validation=validation, early=early)) == pytest.approx(rows)


@pytest.mark.parametrize(
    "more",
    [
        {"row_seconds": 0.002},
        {"check_seconds": 5.0},
        {"call_rows": 32},
        {"megabytes": 90.0},
        {"calibration": 2000},
        {"validation": 5000},
        {"holdout": 9000},
        {"sensitivity": 128},
        {"layers": 50},
        {"tables": 9},
        {"trials": 60},
        {"objectives": 2},
        {"early": False},
    ],
    ids=lambda more: next(iter(more)),
)
def test_more_to_do_takes_longer(more: dict[str, Any]) -> None:
    assert job_seconds(replace(WORK, **more)) > job_seconds(WORK) + 0.1


def test_threads_and_trials_at_once_help_as_far_as_the_cores_go() -> None:
    wide = replace(WORK, cores=4)
    assert job_seconds(wide) == job_seconds(WORK)
    two, four = job_seconds(replace(wide, threads=2)), job_seconds(replace(wide, threads=4))
    assert job_seconds(WORK) > two > four == job_seconds(replace(wide, threads=16))
    assert job_seconds(replace(WORK, threads=8)) == job_seconds(WORK)
    at_once = job_seconds(replace(wide, parallel=4))
    assert job_seconds(WORK) > at_once == job_seconds(replace(wide, parallel=64))
    assert trial_seconds(replace(wide, parallel=2, threads=4)) == trial_seconds(replace(wide, parallel=2, threads=2))


def test_untimed_trials_are_shorter() -> None:
    assert trial_seconds(WORK) - trial_seconds(replace(WORK, timed=False)) == pytest.approx(0.134)


def test_the_budget_ends_the_search_but_not_before_one_trial() -> None:
    around, one = preparation_seconds(WORK) + certification_seconds(WORK), trial_seconds(WORK)
    assert job_seconds(replace(WORK, trials=10**6, search_until=100.0)) == pytest.approx(100 + certification_seconds(WORK))
    assert job_seconds(replace(WORK, search_until=1.0)) == pytest.approx(around + one)
    assert job_seconds(replace(WORK, first=True)) == pytest.approx(around + one)
