"""What the service keeps: keys, uploads, artefacts, events, leases; summaries and measurements of trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from pydantic import ValidationError

from tuner.results import TrialResult, TrialState
from tuner.wire import TrialSummary, summarize

revision = "0002"
down_revision = "0001"

PAGE = 200

jobs = sa.table("jobs", sa.column("job_id"), sa.column("spec"), sa.column("name"), sa.column("crashes"), sa.column("events"))
trials = sa.table("trials", *map(sa.column, ("job_id", "number", "state", "plan_digest", "feasible", "violation", "result", "summary")))


def upgrade() -> None:
    _uploads_and_keys()
    _jobs()
    _tables_of_jobs()
    _trials()
    _measurements()
    connection = op.get_bind()
    for row in _pages(connection):
        _fill(connection, row)
    with op.batch_alter_table("trials") as table:
        table.alter_column("summary", existing_type=sa.Text(), nullable=False)


def _uploads_and_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    for name in ("models", "datasets"):
        op.create_table(
            name,
            sa.Column("id", sa.String(), nullable=False),
            sa.Column("sha256", sa.String(), nullable=False),
            sa.Column("name", sa.String(), nullable=False),
            sa.Column("size_bytes", sa.BigInteger(), nullable=False),
            sa.Column("owner", sa.String()),
            sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("facts", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
            sa.UniqueConstraint("sha256", name=f"uq_{name}_sha256"),
        )
        op.create_index(f"ix_{name}_created_at_id", name, ["created_at", "id"])


def _jobs() -> None:
    texts = ("model_id", "owner", "idempotency_key", "request_sha256", "lease", "node")
    documents = ("progress", "error", "result")
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("name", sa.String()))
        for name in texts:
            table.add_column(sa.Column(name, sa.String()))
        table.add_column(sa.Column("lease_until", sa.DateTime(timezone=True)))
        table.add_column(sa.Column("crashes", sa.Integer()))
        table.add_column(sa.Column("events", sa.Integer()))
        table.add_column(sa.Column("feasible", sa.Boolean()))
        for name in documents:
            table.add_column(sa.Column(name, sa.Text()))
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(jobs.c.job_id, jobs.c.spec)).all():
        filled = jobs.update().where(jobs.c.job_id == job_id).values(name=_name(spec), crashes=0, events=0)
        connection.execute(filled)
    with op.batch_alter_table("jobs") as table:
        table.alter_column("name", existing_type=sa.String(), nullable=False)
        table.alter_column("crashes", existing_type=sa.Integer(), nullable=False)
        table.alter_column("events", existing_type=sa.Integer(), nullable=False)
        table.create_unique_constraint("uq_jobs_owner_idempotency_key", ["owner", "idempotency_key"])
    for columns in (["state", "job_id"], ["model_id", "job_id"], ["owner", "state"]):
        op.create_index(f"ix_jobs_{'_'.join(columns)}", "jobs", columns)


def _tables_of_jobs() -> None:
    op.create_table(
        "job_files",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "file_id", name="pk_job_files"),
        _of_job("job_files"),
    )
    op.create_index("ix_job_files_file_id", "job_files", ["file_id"])
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_artifacts"),
        _of_job("artifacts"),
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"])
    op.create_table(
        "events",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_events"),
        _of_job("events"),
    )


def _of_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=f"fk_{table}_job_id", ondelete="CASCADE")


def _trials() -> None:
    op.drop_index("ix_trials_job_id_state", "trials")
    with op.batch_alter_table("trials") as table:
        table.add_column(sa.Column("summary", sa.Text()))
        table.drop_constraint("fk_trials_job_id", type_="foreignkey")
        table.create_foreign_key("fk_trials_job_id", "jobs", ["job_id"], ["job_id"], ondelete="CASCADE")
    for column in ("state", "feasible", "violation", "speedup", "size_bytes"):
        op.create_index(f"ix_trials_job_id_{column}_number", "trials", ["job_id", column, "number"])


def _measurements() -> None:
    op.create_table(
        "measurements",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("stderr", sa.Double()),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", "metric", name="pk_measurements"),
        sa.ForeignKeyConstraint(
            ["job_id", "number"], ["trials.job_id", "trials.number"], name="fk_measurements_job_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_measurements_job_id_metric_value", "measurements", ["job_id", "metric", "value"])


def _pages(connection: sa.Connection) -> Iterator[Any]:
    """Every trial; a part of them at a time, since their texts may be large."""
    key = sa.tuple_(trials.c.job_id, trials.c.number)
    page = sa.select(trials).order_by(trials.c.job_id, trials.c.number).limit(PAGE)
    more = page
    while rows := connection.execute(more).all():
        yield from rows
        more = page.where(key > (rows[-1].job_id, rows[-1].number))


def _fill(connection: sa.Connection, row: Any) -> None:
    trial = _trial(row.result)
    summary = summarize(trial) if trial else _bare(row)
    this = trials.update().where(trials.c.job_id == row.job_id, trials.c.number == row.number)
    connection.execute(this.values(summary=summary.model_dump_json()))
    if trial is None or not trial.finished or not trial.measurements:
        return
    names = ("job_id", "number", "metric", "value", "unit", "direction", "stderr", "samples")
    new = sa.table("measurements", *map(sa.column, names)).insert()
    key = {"job_id": row.job_id, "number": row.number}
    found = ((name, measurement.model_dump(include=set(names))) for name, measurement in trial.measurements.items())
    connection.execute(new, [{**values, **key, "metric": name} for name, values in found])


def _trial(text: str) -> TrialResult | None:
    try:
        return TrialResult.model_validate_json(text)
    except ValidationError:
        return None


def _bare(row: Any) -> TrialSummary:
    """What the columns tell of a trial whose text cannot be read any more: one such row must not keep all others from being used."""
    return TrialSummary(
        number=row.number,
        state=TrialState(row.state),
        feasible=bool(row.feasible),
        violation=row.violation,
        plan_digest=row.plan_digest,
        notes=("its details were written by another version and cannot be read",),
    )


def _name(spec: str) -> str:
    try:
        return str(json.loads(spec)["name"])
    except (ValueError, LookupError, TypeError):
        return ""
