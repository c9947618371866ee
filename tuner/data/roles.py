"""The four roles of data, kept apart: what the search has seen must not certify its winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.data.dataset import Dataset, InputInfo, check_dataset, open_dataset
from tuner.errors import DataError
from tuner.job import DataRef, DataSpec

CALIBRATION_ROWS = 512
"""How many rows calibrate where no calibration rows are named."""

MAX_EXCLUDED = 0.05
"""The share of the holdout that may be taken out because the search has seen equal rows; more is a mistake in the files."""

Digests = NDArray[np.uint64]


@dataclass(frozen=True)
class Roles:
    """What each role reads. `notes` records every choice made for the user; `excluded` counts rows taken out of the holdout.

    overlap: {role: rows of the holdout that it has too, which were taken out}; of roles that the job names.
    repeated: validation rows that training has too, which stay."""

    calibration: Dataset
    training: Dataset | None
    validation: Dataset
    holdout: Dataset
    excluded: int = 0
    overlap: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each role has."""
        return {
            "calibration": len(self.calibration),
            "training": len(self.training) if self.training else 0,
            "validation": len(self.validation),
            "holdout": len(self.holdout),
        }


def open_roles(data: DataSpec, inputs: Sequence[InputInfo], cache: Path, seed: int) -> Roles:
    """Open and check every role, fill in those left out, and keep the holdout free of rows that another role holds.

    Calibration left out: the first 512 rows of training, or of validation. Holdout left out: half of validation, chosen by a
    permutation from `seed`; equal rows stay on one side. Raises DataError for files that do not fit and for roles that overlap."""
    named = {role: _open(role, ref, inputs, cache) for role, ref in data.roles().items()}
    _refuse_shared_rows(named)
    digests = {role: dataset.row_digests() for role, dataset in named.items()}
    notes: list[str] = []
    if "holdout" not in named:
        whole, content = named["validation"], digests["validation"]
        aside = _half_aside(content, seed)
        for role, mask in (("validation", ~aside), ("holdout", aside)):
            named[role], digests[role] = whole.subset(np.flatnonzero(mask)), content[mask]
        notes.append(f"holdout: {len(named['holdout'])} of the {len(whole)} validation rows were set aside, with seed {seed}")
    _same_labels(named["validation"], named["holdout"])
    if "calibration" not in named:
        source = "training" if "training" in named else "validation"
        named["calibration"] = named[source].subset(np.arange(min(CALIBRATION_ROWS, len(named[source]))))
        notes.append(f"calibration: the first {len(named['calibration'])} rows of {source}")
    keep, overlap, seen_notes = _unseen(digests)
    repeated, repeated_notes = _repeated(digests)
    holdout = named["holdout"] if keep.all() else named["holdout"].subset(np.flatnonzero(keep))
    return Roles(
        calibration=named["calibration"],
        training=named.get("training"),
        validation=named["validation"],
        holdout=holdout,
        excluded=int((~keep).sum()),
        overlap=overlap,
        repeated=repeated,
        notes=(*notes, *seen_notes, *repeated_notes),
    )


def _open(role: str, ref: DataRef, inputs: Sequence[InputInfo], cache: Path) -> Dataset:
    try:
        dataset = open_dataset(ref, inputs, cache)
        check_dataset(dataset, role)
    except DataError as error:
        error.field = f"data.{role}"
        raise
    return dataset


def _refuse_shared_rows(named: dict[str, Dataset]) -> None:
    """DataError if two roles name the same rows of the same file; calibration and training may."""
    for (one, first), (other, second) in combinations(named.items(), 2):
        if {one, other} == {"calibration", "training"} or not first.file.samefile(second.file):
            continue
        low, high = max(first.rows[0], second.rows[0]), min(first.rows[1], second.rows[1])
        if low < high:
            raise DataError(
                f"{one} and {other} must not share rows, got {high - low} shared rows [{low}, {high}) of {first.file.name}. "
                f"Give {other} other rows{' or leave it out' if other == 'holdout' else ''}.",
                field=f"data.{other}",
            )


def _same_labels(validation: Dataset, holdout: Dataset) -> None:
    if validation.has_labels and not holdout.has_labels:
        raise DataError(
            f"holdout must have labels where validation has them, got none in {holdout.file.name}. Add the labels to that file.",
            field="data.holdout",
        )


def _half_aside(content: Digests, seed: int) -> NDArray[np.bool_]:
    """Which validation rows become the holdout: at most half. Equal rows are drawn together, so that none lies on both sides."""
    values, group = np.unique(content, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(values))[group]
    aside: NDArray[np.bool_] = np.cumsum(np.bincount(rank))[rank] <= len(content) // 2
    if not aside.any():
        raise DataError(
            f"validation must have enough different rows to set half aside as holdout, got {len(values)} among {len(content)} rows. "
            "Give more rows, or name a holdout.",
            field="data.validation",
        )
    return aside


def _unseen(digests: dict[str, Digests]) -> tuple[NDArray[np.bool_], dict[str, int], list[str]]:
    """Which holdout rows differ from every row of the other roles, how many do not of each, and notes. DataError where too few do."""
    held = digests["holdout"]
    seen = {role: np.isin(held, other) for role, other in digests.items() if role != "holdout"}
    keep: NDArray[np.bool_] = ~np.any(list(seen.values()), axis=0)
    excluded = int((~keep).sum())
    overlap = {role: int(mask.sum()) for role, mask in seen.items()}
    listed = ", ".join(f"{count} in {role}" for role, count in overlap.items() if count)
    if excluded > MAX_EXCLUDED * len(held):
        raise DataError(
            f"holdout must hold rows that the other roles do not, got {excluded} of {len(held)} rows with equal inputs ({listed}); "
            f"at most {MAX_EXCLUDED:.0%} are taken out without asking. Give the holdout other rows, or remove the repeated ones.",
            field="data.holdout",
        )
    notes = []
    if excluded:
        notes.append(f"holdout: {excluded} of {len(held)} rows taken out because other roles hold equal inputs ({listed})")
    return keep, overlap, notes


def _repeated(digests: dict[str, Digests]) -> tuple[int, list[str]]:
    """How many validation rows training has too, and a note: the search then sees too good a score; the holdout, being clean, does not."""
    validation = digests["validation"]
    count = int(np.isin(validation, digests.get("training", validation[:0])).sum())
    return count, [f"validation: {count} of {len(validation)} rows have equal inputs in training"] if count else []
