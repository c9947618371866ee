"""The revisions of the tables. Alembic is imported only where an older database is brought up to date: it is slow to load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select

from server.store.models import Base
from tuner.errors import StorageError

MIGRATIONS = Path(__file__).parent / "migrations"

REVISIONS = tuple(sorted(path.stem[1:5] for path in (MIGRATIONS / "versions").glob("r[0-9]*.py")))
"""All of them, the oldest first; each file is named r<revision>_<what it does>.py."""
HEAD = REVISIONS[-1]

FIRST = {"jobs", "trials"}
"""The tables of the first revision, which was in use before revisions were written down."""

LOCK = 0x41636375
"""Any number that is always the same: whoever changes the tables of a PostgreSQL database holds the lock of that number."""

VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def revision(connection: Connection) -> str | None:
    """The revision of the tables; None where there are none. StorageError for tables that are not ours."""
    tables = set(inspect(connection).get_table_names())
    written = connection.scalar(select(VERSION.c.version_num)) if VERSION.name in tables else None
    if written is not None:
        return str(written)
    ours = tables & set(Base.metadata.tables)
    if not ours:
        return None
    if ours != FIRST:
        raise StorageError(
            f"the database has tables named {', '.join(sorted(ours))} that this program did not make. "
            "Give it a database or a schema of its own."
        )
    return REVISIONS[0]


def check(found: str | None, shown: str) -> None:
    """StorageError unless `found` is the newest revision."""
    _refuse_newer(found, shown)
    if found is None:
        raise StorageError(f"the database {shown} has no tables yet. Run `tuner db upgrade`.")
    if found != HEAD:
        raise StorageError(
            f"the database {shown} is of an earlier version (revision {found}, needed {HEAD}). "
            "Make a backup of it, then run `tuner db upgrade`."
        )


def upgrade(connection: Connection, shown: str) -> list[str]:
    """Within the caller's transaction; the revisions applied."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
    # Looked at again now that nobody else can change it.
    found = revision(connection)
    _refuse_newer(found, shown)
    if found is None:
        Base.metadata.create_all(connection)
        VERSION.create(connection, checkfirst=True)
        connection.execute(insert(VERSION).values(version_num=HEAD))
        return list(REVISIONS)
    if found == HEAD:
        return []
    from server.store.migrations import migrate

    # Tables of the first revision may date from before revisions were written down.
    migrate(connection, found, unwritten=found == REVISIONS[0])
    return list(REVISIONS[REVISIONS.index(found) + 1 :])


@contextmanager
def unchecked_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew and dropping the old one, with which the rows that refer to it would go."""
    if connection.dialect.name != "sqlite":
        yield
        return
    # Not through SQLAlchemy: it would begin a transaction, inside which SQLite ignores this.
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def _refuse_newer(found: str | None, shown: str) -> None:
    if found is not None and found not in REVISIONS:
        raise StorageError(
            f"the database {shown} was made by a newer version of Accutune (revision {found}, this one knows up to {HEAD}). "
            "Use that version, or choose another database."
        )
