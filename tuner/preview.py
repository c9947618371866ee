"""What a job would do if it were submitted: the answer of `POST /checks`."""

from __future__ import annotations

from search_spaces.schemes import Frozen


class LabelRange(Frozen):
    """The labels of the validation rows."""

    low: int
    high: int
    classes: int
    """How many different ones there are."""


class Overlap(Frozen):
    """Rows with equal inputs in two roles. Those of the holdout were taken out of it."""

    calibration: int = 0
    """Holdout rows that calibration has too, and so on."""
    training: int = 0
    validation: int = 0
    validation_in_training: int = 0
    """Validation rows that training has too; they stay."""


class JobPreview(Frozen):
    """What a job would do if it were submitted."""

    goal: str
    """The first constraint on a metric, in words."""
    metrics: tuple[str, ...]
    """What will be measured; `auto` is spelled out."""
    rows: dict[str, int]
    """By role, once defaults are filled in and holdout rows that others have are taken out."""
    labels: LabelRange | None
    """None where no metric needs labels, and where they are not whole numbers."""
    overlap: Overlap
    layers: int
    """That can be compressed, operator types among them."""
    options: int
    """Of the layer that has most, float among them."""
    plans: float
    """How many plans there are, at most the largest float."""
    notes: tuple[str, ...] = ()
    """What was decided for the user, and warnings."""
    seconds: float
    """About how long the whole job takes where the machine has nothing else to do."""
    seconds_most: float
    """The budget. It ends the search; what comes before the search is done whatever it takes."""
