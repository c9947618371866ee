"""The tables. What is listed, sorted or filtered by has a column; the full typed object stands beside it as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tuner.results import TrialState
from tuner.store import JobState


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with its zone, kept as UTC. SQLite has no zones, so the zone is put back when reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored moment needs its zone, got {value.isoformat()} without one. Use datetime.now(UTC).")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _by_value(states: type[StrEnum]) -> Enum:
    """A state as the word users see, in a text column with room for longer words to come."""
    return Enum(states, native_enum=False, length=16, values_callable=lambda kind: [state.value for state in kind])


class Base(DeclarativeBase):
    """Constraints have names: a migration can only change what it can name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        JobState: _by_value(JobState),
        TrialState: _by_value(TrialState),
    }


class KeyRow(Base):
    """An API key. Its secret is not here, only the SHA-256 of it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    secret_sha256: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class SessionRow(Base):
    """A browser that was let in with a key. What proves it is not here, only the SHA-256 of it."""

    __tablename__ = "sessions"
    __table_args__ = (Index(None, "key_id"), Index(None, "expires_at"))

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey(KeyRow.id, ondelete="CASCADE"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class ModelRow(Base):
    __tablename__ = "models"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str | None]
    created_at: Mapped[datetime]
    facts: Mapped[str] = mapped_column(Text)
    """ModelFacts as JSON."""


class DatasetRow(Base):
    __tablename__ = "datasets"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str | None]
    created_at: Mapped[datetime]
    facts: Mapped[str] = mapped_column(Text)
    """DataFacts as JSON."""


class JobRow(Base):
    """Ids begin with the moment they were made, so that the order of ids is the order of time and every list is one index."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "job_id"),
        Index(None, "model_id", "job_id"),
        Index(None, "owner", "state"),
        Index(None, "name", "job_id"),
        UniqueConstraint("owner", "idempotency_key"),
    )

    job_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    state: Mapped[JobState]
    seconds: Mapped[float]
    cancel_requested: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    spec: Mapped[str] = mapped_column(Text)
    """JobSpec as JSON."""
    model_id: Mapped[str | None]
    owner: Mapped[str | None]
    """The id of the key it was submitted with; empty text on a server without keys, so that the unique constraint holds."""
    idempotency_key: Mapped[str | None]
    request_sha256: Mapped[str | None]
    """Of the body that came with the idempotency key."""
    lease: Mapped[str | None]
    """Who holds this token alone may write for a running job."""
    lease_until: Mapped[datetime | None]
    node: Mapped[str | None]
    """The server that runs it."""
    crashes: Mapped[int] = mapped_column(default=0)
    """How often its process died since a trial was finished."""
    events: Mapped[int] = mapped_column(default=0)
    """How many events it has: the number of the last one."""
    feasible: Mapped[bool | None]
    progress: Mapped[str | None] = mapped_column(Text)
    """JobProgress as JSON."""
    error: Mapped[str | None] = mapped_column(Text)
    """TrialFailure as JSON."""
    result: Mapped[str | None] = mapped_column(Text)
    """JobResult as JSON."""
    goal: Mapped[str | None]
    """The first constraint in words."""
    model_name: Mapped[str | None]
    """What the model's upload was called when the job was submitted."""
    searched: Mapped[str | None] = mapped_column(Text)
    """The names of the job and of its model as searches compare them: `lookups.searchable`."""
    outcome: Mapped[str | None] = mapped_column(Text)
    """OutcomeSummary as JSON."""


class JobFileRow(Base):
    """Which uploads a job needs: they cannot be deleted while it is there."""

    __tablename__ = "job_files"
    __table_args__ = (Index(None, "file_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey(JobRow.job_id, ondelete="CASCADE"), primary_key=True)
    file_id: Mapped[str] = mapped_column(primary_key=True)
    """The id of a model or a dataset."""


class TrialRow(Base):
    __tablename__ = "trials"
    __table_args__ = (
        Index(None, "job_id", "plan_digest"),
        Index(None, "job_id", "state", "number"),
        Index(None, "job_id", "feasible", "number"),
        Index(None, "job_id", "violation", "number"),
        Index(None, "job_id", "speedup", "number"),
        Index(None, "job_id", "size_bytes", "number"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey(JobRow.job_id, ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[TrialState]
    plan_digest: Mapped[str]
    feasible: Mapped[bool]
    violation: Mapped[float | None]
    speedup: Mapped[float | None]
    size_bytes: Mapped[float | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    summary: Mapped[str] = mapped_column(Text)
    """TrialSummary as JSON."""
    result: Mapped[str] = mapped_column(Text)
    """TrialResult as JSON."""


class MeasurementRow(Base):
    """The measurements of finished trials, for questions across jobs that the API does not ask."""

    __tablename__ = "measurements"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "number"], [TrialRow.job_id, TrialRow.number], ondelete="CASCADE"),
        Index(None, "job_id", "metric", "value"),
    )

    job_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    unit: Mapped[str]
    direction: Mapped[str]
    stderr: Mapped[float | None]
    samples: Mapped[int]


class ArtifactRow(Base):
    """A file that a job left. Its bytes lie in the artefact store under their SHA-256."""

    __tablename__ = "artifacts"
    __table_args__ = (Index(None, "sha256"),)

    job_id: Mapped[str] = mapped_column(ForeignKey(JobRow.job_id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """Like best.onnx, pareto/3.onnx, trials/3.plan.json."""
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str]
    created_at: Mapped[datetime]


class EventRow(Base):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey(JobRow.job_id, ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    event: Mapped[str] = mapped_column(Text)
    """JobEvent as JSON."""
