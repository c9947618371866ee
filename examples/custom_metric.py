"""A metric of your own, as a plug-in.

Trials run in processes of their own, so a metric must be found there too: it lives in an installed package that names its module
in the entry-point group `accutune.plugins`. In that package's pyproject.toml:

    [project.entry-points."accutune.plugins"]
    confident = "custom_metric"

Once it is installed, `metrics: [confident_top1]` works in job files and `metric="confident_top1"` in `tune`. Run as a script, this file
shows the metric on three rows:

    python examples/custom_metric.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuner.data.metrics import METRICS, Rows, per_row


@per_row("confident_top1", bounds=(0.0, 1.0), min_classes=2)
def confident_top1(rows: Rows) -> NDArray[np.float64]:
    """1 where the right class gets a probability of at least 0.8, so that a model may not become unsure."""
    logits = rows.class_scores().astype(np.float64)
    labels = rows.classes(logits.shape[1])
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = odds[np.arange(len(labels)), labels] / odds.sum(axis=1)
    scores: NDArray[np.float64] = (probability >= 0.8).astype(np.float64)
    return scores


if __name__ == "__main__":
    outputs = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    labels = np.array([0, 0, 1])
    metric = METRICS["confident_top1"]
    print("per row", metric.per_sample(outputs, labels))
    print(f"value   {metric.value(outputs, labels):.3f}; top1 would say {METRICS['top1'].value(outputs, labels):.3f}")
