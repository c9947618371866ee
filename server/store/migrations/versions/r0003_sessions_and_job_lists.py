"""Sessions of browsers; what lists of jobs show, search and sort by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from pydantic import ValidationError

from tuner.job import Constraint
from tuner.results import JobResult
from tuner.wire import summarize_outcome

revision = "0003"
down_revision = "0002"

PAGE = 200
COSTS = ("latency_ms", "size_bytes", "compressed_size_bytes", "macs", "params", "peak_memory_bytes")
"""What a target may limit beside accuracy, as of this revision."""

NEW = ("goal", "model_name", "searched", "outcome")
jobs = sa.table("jobs", *map(sa.column, ("job_id", "name", "spec", "model_id", "result", *NEW)))
models = sa.table("models", sa.column("id"), sa.column("name"))


def upgrade() -> None:
    _sessions()
    _columns()
    connection = op.get_bind()
    this = jobs.update().where(jobs.c.job_id == sa.bindparam("this")).values({name: sa.bindparam(name) for name in NEW})
    for rows in _pages(connection):
        connection.execute(this, [_filled(row) for row in rows])


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_sessions"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_sessions_key_id", ondelete="CASCADE"),
    )
    for column in ("key_id", "expires_at"):
        op.create_index(f"ix_sessions_{column}", "sessions", [column])


def _columns() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("goal", sa.String()))
        table.add_column(sa.Column("model_name", sa.String()))
        table.add_column(sa.Column("searched", sa.Text()))
        table.add_column(sa.Column("outcome", sa.Text()))
    op.create_index("ix_jobs_name_job_id", "jobs", ["name", "job_id"])


def _pages(connection: sa.Connection) -> Iterator[Sequence[Any]]:
    """Every job with the name of its model; a part of them at a time, since their texts may be large."""
    wanted = (jobs.c.job_id, jobs.c.name, jobs.c.spec, jobs.c.result, models.c.name.label("model"))
    page = sa.select(*wanted).select_from(jobs.outerjoin(models, models.c.id == jobs.c.model_id)).order_by(jobs.c.job_id).limit(PAGE)
    more = page
    while rows := connection.execute(more).all():
        yield rows
        more = page.where(jobs.c.job_id > rows[-1].job_id)


def _filled(row: Any) -> dict[str, str | None]:
    searched = "\n".join((row.name, row.model or "")).casefold()
    return {
        "this": row.job_id,
        "goal": _goal(row.spec),
        "model_name": row.model,
        "searched": searched,
        "outcome": _outcome(row.result),
    }


def _goal(spec: str) -> str | None:
    try:
        asked = [Constraint.model_validate(constraint) for constraint in json.loads(spec)["constraints"]]
        return next((constraint for constraint in asked if constraint.metric not in COSTS), asked[0]).sentence()
    except (ValueError, LookupError, TypeError):
        return None


def _outcome(result: str | None) -> str | None:
    if result is None:
        return None
    try:
        return summarize_outcome(JobResult.model_validate_json(result).best).model_dump_json()
    except ValidationError:
        return None
