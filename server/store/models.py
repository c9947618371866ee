"""The tables. What is listed, sorted or filtered by has a column; the full typed object stands beside it as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import DateTime, Dialect, Enum, ForeignKey, Index, MetaData, Text, TypeDecorator
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
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        JobState: _by_value(JobState),
        TrialState: _by_value(TrialState),
    }


class JobRow(Base):
    __tablename__ = "jobs"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[JobState]
    seconds: Mapped[float]
    cancel_requested: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    spec: Mapped[str] = mapped_column(Text)
    """JobSpec as JSON."""


class TrialRow(Base):
    __tablename__ = "trials"
    __table_args__ = (Index(None, "job_id", "plan_digest"), Index(None, "job_id", "state"))

    job_id: Mapped[str] = mapped_column(ForeignKey(JobRow.job_id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[TrialState]
    plan_digest: Mapped[str]
    feasible: Mapped[bool]
    violation: Mapped[float | None]
    speedup: Mapped[float | None]
    size_bytes: Mapped[float | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    result: Mapped[str] = mapped_column(Text)
    """TrialResult as JSON."""
