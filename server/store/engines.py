"""Engines for the two databases: a SQLite file, or PostgreSQL by URL."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from tuner.errors import StorageError

POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")
WRITE = "accutune_write"
"""Execution option of a connection whose transaction is going to write."""

# FULL flushes the log on every commit. Against kill -9 NORMAL would do, since the kernel keeps what a dead process wrote; FULL also
# survives a power cut or a machine that is taken away, and one flush is nothing beside the seconds a trial takes.
PRAGMAS = ("synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000")

WAL_ATTEMPTS = 100

# Kept open and at most, each process by itself: PostgreSQL as delivered admits 100 in all. Connections are opened when they are needed.
KEPT, EXTRA = 5, 15
POOL_SECONDS = 30.0
CONNECT_SECONDS = 10
IDLE_SECONDS = 20
"""How long a transaction on PostgreSQL may stand still before the database ends it."""
HIDDEN = ("password", "sslpassword")

WRITE_THIS = "Write sqlite:///path/to/file.db or postgresql://user:password@host/database."


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file. Signs that mean something in a URL are escaped; an f-string would open another file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def parse(url: str) -> URL:
    """The URL as SQLAlchemy takes it; StorageError, without any password, if it names no database that can be used."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Where it cannot be taken apart, nobody knows which part is a password.
        got = "one that cannot be read" if "@" in url or "password" in url else f"'{url}'"
        raise StorageError(f"the database must be given as a URL, got {got}. {WRITE_THIS}") from None
    if parsed.drivername in POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "sqlite":
        raise StorageError(f"the database must be a SQLite file or PostgreSQL, got '{shown(parsed)}'. {WRITE_THIS}")
    if parsed.database in (None, "", ":memory:") or "?" in url:
        raise StorageError(f"a SQLite database must be the path of a file and nothing else, got '{url}'. {WRITE_THIS}")
    return URL.create("sqlite", database=parsed.database)


def shown(url: URL) -> str:
    """The URL for people to read: passwords are stars, wherever they stand."""
    secret = {name: "***" for name in url.query if name in HIDDEN}
    return url.update_query_dict(secret).render_as_string()


def place(url: URL) -> str:
    """The file, or the server and its database."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    host = url.host or url.query.get("host") or "localhost"
    return f"database '{url.database or url.username}' at {host}:{url.port or 5432}"


def open_engine(url: URL) -> Engine:
    """A pooled engine; it connects when it is first used. StorageError where the driver for PostgreSQL is not installed."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        return _postgresql(url)
    except ImportError as error:
        raise StorageError(
            f"PostgreSQL needs a driver that is not here ({error}). Install it with: pip install 'accutune[postgres]'"
        ) from error


def _postgresql(url: URL) -> Engine:
    engine = _postgresql_engine(url)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # A process that is suspended or lost in the middle of a transaction must not keep a job's row locked.
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}")
        connection.commit()

    return engine


def _postgresql_engine(url: URL) -> Engine:
    arguments = {"connect_timeout": CONNECT_SECONDS, "application_name": "accutune"}
    return create_engine(
        url,
        hide_parameters=True,  # What fails is logged with its statement, and a statement's values are its sender's.
        # A connection that the server or a firewall has dropped is replaced before anybody meets it.
        pool_pre_ping=True,
        pool_size=KEPT,
        max_overflow=EXTRA,
        pool_timeout=POOL_SECONDS,
        connect_args={name: value for name, value in arguments.items() if name not in url.query},
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True, pool_size=KEPT, max_overflow=EXTRA, pool_timeout=POOL_SECONDS)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # The driver begins nothing by itself: what begins, and how, is said below.
        connection.isolation_level = None
        _use_write_ahead_log(connection)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Whoever will write takes the lock at once: one that reads first and writes then is told "locked", without any waiting.
        if connection.get_execution_options().get(WRITE):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL, ten seconds at most. Two processes that switch it at once are both told "locked", whatever their
    busy_timeout: so ask again."""
    connection.execute("PRAGMA busy_timeout = 50")
    for left in reversed(range(WAL_ATTEMPTS)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not left or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)
