"""The scores of single rows, kept in files: by them two trials are compared row by row after both are over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.data.metrics import Metric
from tuner.files import rows_file, write_text
from tuner.measure.accuracy import Scored, Split
from tuner.results import BaselineRows, RowScores

MOST_ROWS = 20_000
"""Rows kept, the first in scoring order."""
_BLOCK = 1024


def keep_baseline(cache: Path, metric: Metric, split: Split) -> None:
    """Leave the original's scores of the split in the cache; nothing for a metric of whole splits."""
    scores = split.base_scores(metric)
    if scores is None:
        return
    rows = split.draw.rows[:MOST_ROWS]
    classes = _classes(metric, split, rows)
    found = BaselineRows(
        metric=metric.name,
        scores=tuple(scores[rows].tolist()),
        direction=metric.direction,
        total=len(split),
        rows=tuple(split.dataset.absolute(rows).tolist()),
        classes=None if classes is None else tuple(classes.tolist()),
    )
    write_text(rows_file(cache, None), found.model_dump_json())


def keep_trial(cache: Path, number: int, metric: Metric, scored: Scored) -> None:
    """Leave a trial's scores in the cache, in place of those of an earlier scoring; nothing for a metric of whole splits.

    Candidates are scored in the split's own order, however many rows of it: what is kept is a prefix of the baseline's rows."""
    if metric.score is None:
        return
    found = RowScores(metric=metric.name, scores=tuple(scored.scores[metric.name][:MOST_ROWS].tolist()))
    write_text(rows_file(cache, number), found.model_dump_json(), durable=False)


def _classes(metric: Metric, split: Split, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    if not metric.min_classes:
        return None
    if metric.needs_labels:
        return None if split.labels is None else split.labels[rows].astype(np.int64)
    if split.reference.ndim != 2:
        return None
    parts = [split.reference[rows[first : first + _BLOCK]].argmax(axis=1) for first in range(0, len(rows), _BLOCK)]
    return np.concatenate(parts).astype(np.int64)
