"""What was measured, judged and recorded."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from search_spaces.domains import Scalar
from search_spaces.schemes import Frozen
from search_spaces.space import SearchSpace
from tuner.plan import AppliedPlan

Assignment = dict[str, Scalar]
Direction = Literal["higher", "lower"]
Decision = Literal["met", "missed", "undecided"]


class Measurement(Frozen):
    """One number with its doubt."""

    metric: str
    value: float
    unit: str = ""
    direction: Direction = "higher"
    stderr: float | None = None
    samples: int = 1
    seconds: float = 0.0
    target: str = ""


class Interval(Frozen):
    """A point estimate and its bounds at the given confidence."""

    value: float
    lower: float
    upper: float
    confidence: float = 0.95

    def contains(self, number: float) -> bool:
        return self.lower <= number <= self.upper


class Verdict(Frozen):
    """How one constraint was judged. `drop` is how much worse than the original, in the unit of the constraint (a limit's
    drop is its distance to the limit); `violation <= 0` is feasible."""

    metric: str
    drop: float
    lower: float
    upper: float
    confidence: float
    decision: Decision
    violation: float
    split: Literal["validation", "holdout"] = "validation"
    samples: int = 0
    rule: str = ""


class TrialState(StrEnum):
    """An infeasible trial is complete; stopped means that its verdict was certain before all rows were seen."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED = (TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED)


class TrialFailure(Frozen):
    """Why a trial broke: the error's type, its message and the step it happened in."""

    type: str
    message: str
    step: str


class TrialResult(Frozen):
    """One row of the history."""

    number: int
    state: TrialState
    assignment: Assignment
    plan_digest: str
    measurements: dict[str, Measurement] = Field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    speedup: Interval | None = None
    predicted_gain: float | None = None
    """By the first objective: the original's predicted cost over this plan's; None where the objective is a metric."""
    notes: tuple[str, ...] = ()
    error: TrialFailure | None = None
    artefact: str | None = None
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds per step."""
    attempt: int = 0
    """Which of the questions to the strategy it answers; a search that is resumed counts on from here."""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def violation(self) -> float | None:
        """The worst violation over all constraints; None where nothing was judged."""
        return max((v.violation for v in self.verdicts), default=None)

    @property
    def feasible(self) -> bool:
        """True where every constraint was judged and none is violated."""
        return self.violation is not None and self.violation <= 0 and self.state != TrialState.FAILED

    def value(self, metric: str) -> float | None:
        measurement = self.measurements.get(metric)
        return None if measurement is None else measurement.value


class Drop(Interval):
    """How much worse than the original, in the unit of the first constraint (a fraction of the baseline if that is relative)."""

    split: Literal["validation", "holdout"] = "holdout"


class Baseline(Frozen):
    """The original model, measured on the holdout from the file on disk."""

    measurements: dict[str, Measurement]


class Outcome(Baseline):
    """One finalist, measured on the holdout from the file on disk."""

    trial: int
    plan_digest: str
    drop: Drop
    speedup: Interval
    """Latency of the original over latency of this model, from interleaved blocks."""
    size_ratio: float
    verdict: Decision
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    layers: dict[str, str] = Field(default_factory=dict)
    """{parameter of the space: what was done}, of everything that was not left alone."""
    file: str = ""


class SensitivityRow(Frozen):
    """What quantizing one layer alone does to the model's output, and what it costs or saves."""

    layer: str
    op: str
    scheme: str
    divergence: float
    """Mean squared change of the model's output, relative to the output's variance."""
    params: int = 0
    macs: int | None = None
    float_ms: float | None = None
    scheme_ms: float | None = None


class Preflight(Frozen):
    """What is known once every check has passed, before anything is searched."""

    space: SearchSpace
    baseline: Baseline
    """On the validation rows."""
    metrics: tuple[str, ...]
    allowed: dict[str, float]
    """{metric: largest drop on validation that meets its constraint}, absolute."""
    rows: dict[str, int]
    notes: tuple[str, ...]
    """What was decided for the user, and warnings."""


class Findings(Frozen):
    """What is known about a model before the first trial; the search predicts from it."""

    sensitivity: tuple[SensitivityRow, ...]
    """One row per layer: its reference scheme alone."""
    damage: dict[str, dict[str, float]]
    """{layer: {option: predicted divergence}}; harms of layers add up."""
    latency_ms: dict[str, dict[str, float]]
    """{layer: {option: milliseconds}} on the target, `float` among the options."""
    size_bytes: dict[str, dict[str, float]]
    """{layer: {option: bytes in the file}}; what is taken away counts below zero, here and in what follows."""
    fixed_ms: float
    fixed_bytes: float
    packed_bytes: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same for a packed file, of parameters that only make zeros."""
    macs_saved: dict[str, dict[str, float]] = Field(default_factory=dict)
    params_saved: dict[str, dict[str, float]] = Field(default_factory=dict)
    dominated: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """{parameter: options that the search leaves out, because a milder one is as fast}."""
    links: tuple[tuple[str, str, float], ...] = ()
    """(layer, layer, milliseconds) of the conversion between two layers of which one is in float."""
    discordance: float = 0.0
    """Share of rows on which the original and the model with every layer at its reference scheme differ in being right (or, for
    other metrics, the mean size of a row's drop)."""
    macs: int = 0
    params: int = 0


class Histogram(Frozen):
    """Counts of a tensor's values in equal bins over [low, high]."""

    low: float
    high: float
    counts: tuple[int, ...]


class LayerProfile(Frozen):
    """One layer or operator type before the first trial: what each of its options does, and what flows through it."""

    layer: str
    op: str
    tensor: str
    """The activation that it reads; empty for an operator type, which stands for several nodes."""
    params: int
    macs: int | None
    divergence: dict[str, float]
    """{option: predicted divergence of the model's output}, as in Findings.damage."""
    latency_ms: dict[str, float]
    size_bytes: dict[str, float]
    activation: Histogram | None
    """Of `tensor` over the calibration rows."""
    weight: Histogram | None


class RowScores(Frozen):
    """The scores of a trial's rows by one metric, in the order of the job's BaselineRows; a trial that ended early has the first."""

    metric: str
    scores: tuple[float, ...]


class BaselineRows(RowScores):
    """The original's scores, and which rows these are."""

    direction: Direction
    total: int
    """Rows of the validation split, of which the first in scoring order are kept."""
    rows: tuple[int, ...]
    """Counted within the validation file."""
    classes: tuple[int, ...] | None
    """Each row's label or, where the metric compares with the original, the class that the original predicts; None for a metric
    without classes."""


class Certificate(Frozen):
    """One finalist's outcome beside the original's, measured in the same way at the same time."""

    baseline: Baseline
    outcome: Outcome
    applied: AppliedPlan
    rows_needed: int | None


class JobResult(Frozen):
    """result.json: what a finished job found."""

    job_id: str
    name: str
    state: Literal["succeeded", "cancelled", "failed"]
    feasible: bool
    seconds: float
    summary: str
    """The verdict in one sentence."""
    stop_reason: str
    trials: dict[str, int]
    """How many trials ended in each state."""
    finalists_tried: int = 0
    """How many candidates were shown to the holdout; the confidence is corrected for it."""
    baseline: Baseline
    best: Outcome
    pareto: tuple[Outcome, ...] = ()
    rows: dict[str, int] = Field(default_factory=dict)
    """Rows per data role, after overlap was taken out of the holdout."""
    rows_needed: int | None = None
    """How many holdout rows could certify the constraint at its confidence; None where the rows at hand can."""
    notes: tuple[str, ...] = ()
    blame: tuple[str, ...] = ()
    """Layers that cost the most accuracy, worst first; filled where the target was missed."""
    advice: tuple[str, ...] = ()
    phases: dict[str, float] = Field(default_factory=dict)
    """Seconds per phase."""
    environment: dict[str, str] = Field(default_factory=dict)
