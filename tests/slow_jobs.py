"""A job whose phases and trials take long enough for a test to meet it in each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_jobs import FEATURES, dense, tiny_job

from tuner.job import Budget, JobSpec


def slow_job(folder: Path, trials: int, hidden: int = 1024, rows: int = 40_000) -> JobSpec:
    """A tenth of the rows calibrates, half of them validates, the rest is held out. With the defaults a trial takes a second or two."""
    random = np.random.default_rng(0)
    data = {"x": random.standard_normal((rows, FEATURES)).astype(np.float32), "labels": random.integers(0, 5, rows)}
    budget = Budget(trials=trials, seconds=600, threads=1)
    job = tiny_job(folder, dense(hidden=hidden), data, budget=budget, early_stopping=False, strategy="random")
    bounds = {"calibration": (0, rows // 10), "validation": (rows // 10, rows * 6 // 10), "holdout": (rows * 6 // 10, rows)}
    roles = {role: ref.model_copy(update={"rows": bounds[role]}) for role, ref in job.data.roles().items()}
    return job.model_copy(update={"data": job.data.model_copy(update=roles)})
