"""The job: everything that has to be known before the work starts. The YAML file, the request body and the worker's input
are this one type."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from search_spaces.schemes import Frozen
from search_spaces.space import SpaceSpec
from tuner.errors import InputError, JobError, unknown_name

COSTS = ("latency", "size", "compressed_size", "macs", "params", "peak_memory")
"""Objectives that are not metrics. All of them are to be made small."""

COST_METRICS = ("latency_ms", "size_bytes", "compressed_size_bytes", "macs", "params", "peak_memory_bytes")
"""What a constraint may limit beside the job's metrics."""

LONGEST_SECONDS = 366 * 86_400.0
"""No budget of time is longer: clocks cannot wait for ever."""

MOST_COMPLAINTS = 50
"""What is wrong with a job is told up to so many times: nobody reads more, and a hostile one could ask for millions."""


CERTIFY_SHARE = 0.15
"""Share of the seconds that is kept for certifying and exporting."""


class DataRef(Frozen):
    """Some rows of one data source."""

    file: str
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = None
    """Half-open [first, end); left out: all rows."""
    target: str = "labels"
    """The array that holds the labels."""

    @model_validator(mode="after")
    def _ordered(self) -> DataRef:
        if self.rows is not None and self.rows[0] >= self.rows[1]:
            raise ValueError(f"rows must be [first, end) with first < end, got {list(self.rows)}; the split would be empty")
        return self


class DataSpec(Frozen):
    """The four roles. Calibration left out: the first 512 rows of training; without training, of validation."""

    validation: DataRef
    calibration: DataRef | None = None
    training: DataRef | None = None
    holdout: DataRef | None = None

    def roles(self) -> dict[str, DataRef]:
        """The roles that are named, in a fixed order."""
        named = {"calibration": self.calibration, "training": self.training, "validation": self.validation, "holdout": self.holdout}
        return {role: ref for role, ref in named.items() if ref is not None}


class Constraint(Frozen):
    """Either a drop from the original (`max_drop`) or a limit (`at_least`, `at_most`)."""

    metric: str
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    relative: bool = False
    at_least: Annotated[float, Field(allow_inf_nan=False)] | None = None
    at_most: Annotated[float, Field(allow_inf_nan=False)] | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Constraint:
        given = [name for name in ("max_drop", "at_least", "at_most") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a constraint needs exactly one of max_drop, at_least, at_most, got {' and '.join(given) or 'none'}")
        if self.relative and self.max_drop is None:
            raise ValueError("relative: true goes with max_drop only; a limit is always absolute")
        if self.relative and self.max_drop is not None and self.max_drop >= 1:
            raise ValueError(f"a relative max_drop is a fraction below 1 (0.01 is one per cent), got {self.max_drop}")
        return self

    def sentence(self) -> str:
        """The constraint as one would say it."""
        sure = f", with {self.confidence:.0%} confidence" if self.confidence else ""
        if self.max_drop is not None:
            amount = f"{self.max_drop:.3g} of its value" if self.relative else f"{self.max_drop:.3g}"
            return f"{self.metric} may get worse by at most {amount}{sure}"
        bound, word = (self.at_least, "at least") if self.at_least is not None else (self.at_most, "at most")
        return f"{self.metric} must be {word} {bound:g}{sure}"


class Budget(Frozen):
    """When to stop searching. Whichever is reached first ends the search; certification and export follow."""

    trials: Annotated[int, Field(ge=1, le=100_000)] = 60
    seconds: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)] = 900.0
    parallel: Annotated[int, Field(ge=1, le=256)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads for scoring accuracy (latency always uses `target.threads`); left out: the machine's cores shared by `parallel`."""
    trial_seconds: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)] = 600.0
    """Wall clock of one trial; a trial that takes longer is recorded as failed."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Address space that one worker may add to what it starts with; left out: no limit."""

    @property
    def search_seconds(self) -> float:
        """Seconds since the job's start after which no trial begins."""
        return self.seconds * (1 - CERTIFY_SHARE)


class Target(Frozen):
    """Where the model will run."""

    runtime: str = "onnxruntime-cpu"
    batch: Annotated[int, Field(ge=1, le=65_536)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1

    @property
    def name(self) -> str:
        return f"{self.runtime}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class JobSpec(Frozen):
    """Everything a job needs and nothing it finds out."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$")] = "job"
    model: str
    data: DataSpec
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("auto",)
    """`auto`: top1 where there are labels, agreement with the original where there are none."""
    constraints: Annotated[tuple[Constraint, ...], Field(min_length=1)]
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("latency",)
    space: str | SpaceSpec = "int8"
    strategy: str = "auto"
    budget: Budget = Budget()
    stop: Literal["budget", "first"] = "budget"
    early_stopping: bool = True
    """End a trial as soon as an anytime-valid bound decides its verdict."""
    target: Target = Target()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def accuracy_constraint(self) -> Constraint:
        """The first constraint on a metric, which drops are about. A job with none is refused."""
        return next((constraint for constraint in self.constraints if constraint.metric not in COST_METRICS), self.constraints[0])

    @model_validator(mode="after")
    def _no_repeats(self) -> JobSpec:
        for field in ("metrics", "objectives"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field} must not repeat a name, got {list(values)}")
        return self


def job_id(now: Callable[[], datetime] = lambda: datetime.now(UTC), token: Callable[[int], str] = secrets.token_hex) -> str:
    """A name for a job that sorts by time, like 20261121-101530-3fa9."""
    return f"{now():%Y%m%d-%H%M%S}-{token(2)}"


def load_job(path: Path) -> JobSpec:
    """Read a job file. Paths in it count from the file's own folder.

    Raises JobError for a missing file, YAML that does not parse or a job that breaks a rule."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JobError(f"the job file {path} cannot be read ({reason}); give the path of a YAML job file") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"the job file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise JobError(f"the job file {path} must hold a mapping with at least model, data and constraints, got {type(raw).__name__}")
    return _anchor(parse_job(raw), path.parent)


def parse_job(raw: dict[str, Any]) -> JobSpec:
    """The typed job, or a JobError that names each field, its value, the rule and the nearest known key."""
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        found = complaints(error)
        raise JobError("; ".join(sentence for _, sentence in found), field=found[0][0]) from error


def complaints(error: ValidationError) -> list[tuple[str, str]]:
    """(field, sentence) of each thing that is wrong with a job, in the order of the job; of very many the first."""
    found = error.errors(include_url=False, include_context=False)
    own = (item for item in found if not _follows(item, found))
    return [(_where(item), _problem(item)) for item in islice(own, MOST_COMPLAINTS)]


def _follows(item: Any, found: Sequence[Any]) -> bool:
    """Does the complaint only follow from another? A list whose entries were refused counts as too short, and `space` is
    complained about once as a name and once as a mapping."""
    location = item["loc"]
    if location == ("space", "SpaceSpec" if isinstance(item["input"], str | int) else "str"):
        return True
    return item["type"] == "too_short" and any(len(o["loc"]) > len(location) and o["loc"][: len(location)] == location for o in found)


def _where(item: Any) -> str:
    return ".".join(str(part) for part in item["loc"] if part not in ("str", "SpaceSpec"))


_WORDING = {
    "too_short": "must have at least one entry",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping",
    "string_type": "must be a text",
    "missing": "is missing and has no default; add it",
}


def _problem(item: Any) -> str:
    where = _where(item) or "job"
    if item["type"] == "extra_forbidden":
        return f"{where}: {unknown_name('key', str(item['loc'][-1]), _known_keys(item['loc'][:-1]))}"
    shown = "" if isinstance(item["input"], dict) and item["type"] != "string_type" else f", got {item['input']!r}"
    if item["loc"] == ("space", "str"):
        return f"space must be a preset's name or a mapping{shown}"
    if item["type"] in _WORDING:
        return f"{where} {_WORDING[item['type']]}{shown}"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{shown if 'got' not in item['msg'] else ''}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys that the model at `location` knows."""
    nested: dict[Any, type[BaseModel]] = {"data": DataSpec, "constraints": Constraint, "budget": Budget, "target": Target}
    nested |= {"space": SpaceSpec}
    nested |= dict.fromkeys(("calibration", "training", "validation", "holdout"), DataRef)
    known = [nested[part] for part in location if part in nested]
    return list((known[-1] if known else JobSpec).model_fields)


def _anchor(job: JobSpec, folder: Path) -> JobSpec:
    """The job with every relative path made absolute from `folder`."""

    def absolute(name: str) -> str:
        return str((folder / Path(name).expanduser()).resolve())

    data = {role: ref.model_copy(update={"file": absolute(ref.file)}) for role, ref in job.data.roles().items()}
    return job.model_copy(update={"model": absolute(job.model), "data": job.data.model_copy(update=data)})


__all__ = [
    "COSTS",
    "COST_METRICS",
    "Budget",
    "Constraint",
    "DataRef",
    "DataSpec",
    "InputError",
    "JobSpec",
    "Target",
    "complaints",
    "load_job",
    "parse_job",
]
