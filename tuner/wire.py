"""What the service and its clients say to each other: the bodies of requests and responses."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field

from search_spaces.schemes import Frozen
from tuner.job import JobSpec
from tuner.progress import Phase
from tuner.results import Decision, JobResult, Outcome, TrialFailure, TrialResult, TrialState
from tuner.store import JobState, UtcDatetime

Item = TypeVar("Item")
Role = Literal["viewer", "submitter", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "submitter", "admin")
"""Each may do what those before it may: look; submit and manage what is one's own; manage everything and the keys."""

EventKind = Literal["state", "phase", "progress", "trial", "message"]
SETTLED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
"""States in which nothing happens any more unless somebody asks for it."""


class TensorView(Frozen):
    """An input or output of a model; None is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class LayerView(Frozen):
    """One layer of a model: what it costs, and whether it can be quantized."""

    name: str
    op: str
    weight_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    params: int
    macs: int | None
    quantizable: bool


class ModelFacts(Frozen):
    """What the inspection of a model file finds."""

    opset: int
    parameters: int
    macs: int | None
    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    layers: tuple[LayerView, ...]


class ArrayView(Frozen):
    """One array of a data file; shape starts with the rows."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class DataFacts(Frozen):
    """What the inspection of a data file finds."""

    format: Literal["npz", "parquet"]
    arrays: tuple[ArrayView, ...]


class Upload(Frozen):
    """A file that the server keeps. The same bytes have the same id."""

    id: str
    name: str
    """As its sender called it, for people to read; never a path."""
    sha256: str
    size_bytes: int
    created: UtcDatetime
    owner: str | None = None
    """The id of the key it was sent with; None on a server without keys."""


class ModelView(Upload):
    """A model that the server keeps. Its layers are listed by `/models/{id}/layers`."""

    opset: int
    parameters: int
    macs: int | None
    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    layer_count: int
    quantizable_count: int


class DatasetView(Upload, DataFacts):
    """A data file that the server keeps."""


class TrialSummary(Frozen):
    """One trial as lists show it; `/trials/{number}` has the rest."""

    number: int
    state: TrialState
    feasible: bool
    decision: Decision | None = None
    drop: float | None = None
    """By the first constraint, as the interval [drop_lower, drop_upper] is."""
    drop_lower: float | None = None
    drop_upper: float | None = None
    violation: float | None = None
    samples: int | None = None
    speedup: float | None = None
    speedup_lower: float | None = None
    speedup_upper: float | None = None
    predicted_gain: float | None = None
    """By the first objective: the original's predicted cost over this plan's."""
    values: dict[str, float] = Field(default_factory=dict)
    """Every measurement's value by its metric: latency_ms, size_bytes, top1 …"""
    seconds: float = 0.0
    plan_digest: str
    notes: tuple[str, ...] = ()
    error: TrialFailure | None = None


class JobProgress(Frozen):
    """How far a job is; `done` of `total` counts within the phase."""

    phase: Phase | None = None
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    metrics: tuple[str, ...] = ()
    """What `auto` turned out to mean; empty before the checks have passed."""
    profiled: bool = False
    """Whether `/layers` is there."""
    trials: int = 0
    """Finished ones."""
    best: TrialSummary | None = None


class OutcomeSummary(Frozen):
    """What a job's best model came to, certified on the holdout."""

    trial: int
    verdict: Decision
    drop: float
    """By the first constraint, as the interval [drop_lower, drop_upper] is."""
    drop_lower: float
    drop_upper: float
    speedup: float
    """Latency of the original over latency of this model."""
    speedup_lower: float
    speedup_upper: float
    size_ratio: float
    """Size of this model's file over that of the original's."""


class JobView(Frozen):
    """A job as lists show it."""

    id: str
    name: str
    state: JobState
    goal: str = ""
    """The first constraint in words."""
    model: str
    model_name: str = ""
    """What the model's upload was called when the job was submitted."""
    created: UtcDatetime
    updated: UtcDatetime
    seconds: float
    """Wall clock spent so far, over all runs of the job."""
    cancel_requested: bool = False
    owner: str | None = None
    progress: JobProgress = JobProgress()
    feasible: bool | None = None
    """Whether the target was met; None before the job has succeeded."""
    outcome: OutcomeSummary | None = None
    """Of the best model; None before the job has succeeded."""
    error: TrialFailure | None = None
    """Why it failed, and in which step."""
    events: int = 0
    """The `seq` of its last event: where to go on listening from."""


class JobDetail(JobView):
    """A job with what was asked for and what was found."""

    spec: JobSpec
    result: JobResult | None = None


class ArtifactView(Frozen):
    """One file that a job left."""

    name: str
    size_bytes: int
    sha256: str
    media_type: str
    created: UtcDatetime


class JobEvent(Frozen):
    """One step of a job, as the event stream tells it. `seq` counts from 1 within the job, without gaps."""

    seq: int
    at: UtcDatetime
    kind: EventKind
    state: JobState | None = None
    phase: Phase | None = None
    message: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    trial: TrialSummary | None = None
    best: TrialSummary | None = None


class Page(Frozen, Generic[Item]):
    """A part of a list. `next` is the cursor of the following part; None after the last."""

    items: tuple[Item, ...]
    next: str | None = None


class TrialSample(Frozen):
    """Trials for drawing, by number: all that run or are finished, of many those that tell the most."""

    items: tuple[TrialSummary, ...]
    total: int
    """How many it was taken from."""


class FigureView(Frozen):
    """A figure that `/figures/{name}` draws."""

    name: str
    title: str
    caption: str
    """What it shows, in one sentence."""
    fewest: int = 2
    """Finished trials below which there is nothing to draw."""


class KeyRequest(Frozen):
    """What a new key shall be."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@ -]{0,99}$")]
    role: Role = "submitter"
    days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """How long it is good; left out: until it is revoked."""


class KeyView(Frozen):
    """An API key as lists show it; the key itself is not kept."""

    id: str
    name: str
    role: Role
    created: UtcDatetime
    expires: UtcDatetime | None = None
    revoked: UtcDatetime | None = None


class NewKey(KeyView):
    """A key that was just made: the only time that it is shown."""

    key: str


class SignIn(Frozen):
    """What begins a session."""

    key: str
    """An API key."""


class SessionView(Frozen):
    """Who asks: by a session, by an API key, or from the machine of a server without keys."""

    key_id: str | None
    """None on a server without keys."""
    name: str
    """Of the key."""
    role: Role
    expires: UtcDatetime | None = None
    """When the session or the key is over; None for a key without an end."""
    anonymous: bool = False
    """Whether no key was needed."""


class ProblemItem(Frozen):
    """One thing that is wrong with a request."""

    field: str
    value: str | None = None
    rule: str
    remedy: str


class Problem(Frozen):
    """An error as RFC 9457 has it (application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[ProblemItem, ...] = ()
    request_id: str | None = None


def summarize(trial: TrialResult) -> TrialSummary:
    """What lists show of a trial."""
    verdict, speed = (trial.verdicts[0] if trial.verdicts else None), trial.speedup
    return TrialSummary(
        number=trial.number,
        state=trial.state,
        feasible=trial.feasible,
        decision=verdict.decision if verdict else None,
        drop=verdict.drop if verdict else None,
        drop_lower=verdict.lower if verdict else None,
        drop_upper=verdict.upper if verdict else None,
        violation=trial.violation,
        samples=verdict.samples if verdict else None,
        speedup=speed.value if speed else None,
        speedup_lower=speed.lower if speed else None,
        speedup_upper=speed.upper if speed else None,
        predicted_gain=trial.predicted_gain,
        values={name: measurement.value for name, measurement in trial.measurements.items()},
        seconds=round(sum(trial.timings.values()), 4),
        plan_digest=trial.plan_digest,
        notes=trial.notes,
        error=trial.error,
    )


def summarize_outcome(outcome: Outcome) -> OutcomeSummary:
    """What lists show of a finalist."""
    drop, speed = outcome.drop, outcome.speedup
    return OutcomeSummary(
        trial=outcome.trial,
        verdict=outcome.verdict,
        drop=drop.value,
        drop_lower=drop.lower,
        drop_upper=drop.upper,
        speedup=speed.value,
        speedup_lower=speed.lower,
        speedup_upper=speed.upper,
        size_ratio=outcome.size_ratio,
    )
