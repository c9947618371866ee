"""How far a changed model's outputs are from the original's: the search's first measure of harm, needing no labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def divergence(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Mean squared change of the outputs over the variance of the original's. outputs, reference: [rows, …].

    0 for equal outputs; about 2 for unrelated ones of the same spread. Infinite where the outputs are not finite."""
    if not np.isfinite(outputs).all():
        return float("inf")
    spread = float(np.var(reference, dtype=np.float64))
    change = float(np.mean(np.square(outputs.astype(np.float64) - reference)))
    return change / spread if spread > 0 else float(change > 0)
