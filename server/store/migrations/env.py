"""Run by Alembic: the migrations go through the connection, and within the transaction, of the caller."""

from __future__ import annotations

from alembic import context

from server.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can change hardly anything in place: the table is made anew.
    render_as_batch=True,
    # SQLite too can take back changes of tables; it is the driver's way to begin transactions that hides it.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
