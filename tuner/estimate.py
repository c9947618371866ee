"""How long a job will take, told before it runs: arithmetic on one measurement, the original's time for a row with one thread.

What is not measured is assumed. Every assumption is a constant here, with what it was taken from. For five jobs on networks of 3 to 42
layers the estimate was 0.6 to 1.2 times the processor's seconds that they took. A machine that has other work, a model whose time
depends on its rows and a goal that is hard to decide take longer."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

START_SECONDS = 1.8
"""Until a worker has loaded its libraries."""
STATISTICS_SECONDS = 0.00012
"""To look at what one layer reads, for each row that calibrates."""
PREDICTION_SECONDS = 0.08
"""To predict the harm of a layer's other options from that of the one that is measured."""
COMPRESSED = 0.7
"""A compressed model's time for a row against the original's: speed-ups of 1.05 to 2.7 were measured."""
BUILD_SECONDS, BUILD_SECONDS_PER_MB = 0.015, 0.005
"""To write and load one compressed model."""
ASK_SECONDS, ASK_SECONDS_PER_LAYER = 0.03, 0.0015
"""To choose a trial's plan and to record what came out."""
EARLY_ROWS = 20.0
"""Rows until a trial is decided, over the square root of all: 1,095 of 3,000 and 603 of 910 rows, where means of 730, 778 and 1,785 of
3,000 and of 696 of 910 were measured."""
TRIALS_TO_FIRST = 1
"""The first trial met the goal on every case that was measured."""
TIMED = 0.5
"""The share of trials whose latency could be the best, and is measured."""
THREAD_GAIN = 0.6
"""What each thread after the first adds to the speed of scoring."""
FRONT = 4
"""Finalists where several objectives make a front; else the first is mostly confirmed."""
FINALIST_SECONDS = 1.0
"""Of loading a finalist in fresh processes for its peak memory."""


@dataclass(frozen=True)
class Timing:
    """One comparison of latencies: its usual seconds for a fast model, and the calls of a model that it needs at least."""

    seconds: float
    calls: int


TABLE_TIMING = Timing(0.5, 42)
TRIAL_TIMING = Timing(0.25, 18)
FINALIST_TIMING = Timing(2.0, 66)


@dataclass(frozen=True)
class Work:
    """What a job has to do."""

    row_seconds: float
    """Of the original for a row, with one thread."""
    check_seconds: float
    """Of checking the job, which is done again when it starts."""
    call_rows: int
    """Rows of one call when latency is measured."""
    megabytes: float
    """Of the model's file."""
    calibration: int
    validation: int
    holdout: int
    sensitivity: int
    """Rows on which each layer's harm is measured."""
    layers: int
    tables: int
    """Models that are timed before the search."""
    trials: int
    training: float = 0.0
    """Seconds that one trial trains."""
    threads: int = 1
    parallel: int = 1
    cores: int = 1
    objectives: int = 1
    early: bool = True
    """Whether trials may end before every row is scored."""
    timed: bool = True
    """Whether trials are timed."""
    first: bool = False
    """Whether the first trial that meets the goal ends the search."""
    search_until: float = float("inf")
    """Seconds since the start after which no trial begins."""


def job_seconds(work: Work) -> float:
    """Wall clock of the whole job. One trial at least is made, whatever the budget."""
    ready = preparation_seconds(work)
    trials = min(work.trials, TRIALS_TO_FIRST) if work.first else work.trials
    one = trial_seconds(work)
    return ready + max(min(trials * one, work.search_until - ready), one) + certification_seconds(work)


def preparation_seconds(work: Work) -> float:
    """Checks, the original's outputs, calibration, sensitivity and the table of latencies."""
    row = work.row_seconds / _speed(min(work.threads, work.cores))
    calibration = work.calibration * (row + STATISTICS_SECONDS * work.layers)
    sensitivity = (work.layers + 2) * (work.sensitivity * row + _build_seconds(work)) + PREDICTION_SECONDS * work.layers
    before = START_SECONDS + work.check_seconds + work.validation * row
    return before + calibration + sensitivity + work.tables * _timing_seconds(work, TABLE_TIMING)


def trial_seconds(work: Work) -> float:
    """One trial's share of the search. Trials score at once as far as the cores go; latencies are measured one after the other."""
    workers = min(work.parallel, work.cores)
    scoring = trial_rows(work) * work.row_seconds * COMPRESSED / _speed(min(work.threads, work.cores / workers))
    timing = TIMED * _timing_seconds(work, TRIAL_TIMING) if work.timed else 0.0
    asking = ASK_SECONDS + ASK_SECONDS_PER_LAYER * work.layers
    return asking + (_build_seconds(work) + scoring + work.training) / workers + timing


def trial_rows(work: Work) -> float:
    """Validation rows that are scored until a trial is decided."""
    return min(work.validation, EARLY_ROWS * sqrt(work.validation)) if work.early else work.validation


def certification_seconds(work: Work) -> float:
    """The original's outputs for the holdout, and for each finalist all rows, latency and peak memory."""
    row = work.row_seconds / _speed(min(work.threads, work.cores))
    rows = work.holdout + (work.validation if work.early else 0)
    one = FINALIST_SECONDS + 2 * _build_seconds(work) + rows * row * COMPRESSED + _timing_seconds(work, FINALIST_TIMING)
    return work.holdout * row + (FRONT if work.objectives > 1 else 1) * one


def _build_seconds(work: Work) -> float:
    return BUILD_SECONDS + BUILD_SECONDS_PER_MB * work.megabytes


def _timing_seconds(work: Work, timing: Timing) -> float:
    return timing.seconds + timing.calls * work.call_rows * work.row_seconds


def _speed(threads: float) -> float:
    """Against one thread."""
    return 1 + THREAD_GAIN * (threads - 1)
