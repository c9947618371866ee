"""Jobs and their trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
    )
    op.create_table(
        "trials",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("plan_digest", sa.String(), nullable=False),
        sa.Column("feasible", sa.Boolean(), nullable=False),
        sa.Column("violation", sa.Double()),
        sa.Column("speedup", sa.Double()),
        sa.Column("size_bytes", sa.Double()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("result", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_trials"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_trials_job_id"),
    )
    op.create_index("ix_trials_job_id_plan_digest", "trials", ["job_id", "plan_digest"])
    op.create_index("ix_trials_job_id_state", "trials", ["job_id", "state"])
