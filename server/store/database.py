"""The database that every store works on: connections, transactions, errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, TimeoutError

from server.store import schema
from server.store.complaints import StorageBusy, StorageFull, complaint
from server.store.engines import WRITE, open_engine, parse, shown, sqlite_url
from tuner.errors import AccutuneError
from tuner.store import Clock, utc_now

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

__all__ = ["Conflict", "Database", "LeaseLost", "NotFound", "StorageBusy", "StorageFull", "sqlite_url"]

Observe = Callable[[str, float], None]


def _unobserved(_operation: str, _seconds: float) -> None:
    """Nobody asks."""


class NotFound(AccutuneError):
    """There is nothing of that id."""


class Conflict(AccutuneError):
    """What was asked for does not go together with how things stand."""


class LeaseLost(AccutuneError):
    """Another process has taken over the job: this one may not write for it any more."""


class Database:
    """One pool of connections, for any number of threads. Nothing is connected before it is used."""

    def __init__(self, url: str, now: Clock = utc_now, *, folder: bool = False, observe: Observe = _unobserved) -> None:
        """url: `sqlite:///path` or `postgresql://user:password@host/database`; StorageError for any other.
        folder: errors give remedies for a job's folder on the command line.
        observe: told `read` or `write` and the seconds that it took, of every one."""
        self._observe = observe
        self._url = parse(url)
        self._folder = folder
        self._engine = open_engine(self._url)
        # On PostgreSQL a read needs no transaction around it, which halves the ways to the server and back.
        alone = {"isolation_level": "AUTOCOMMIT"} if self.dialect == "postgresql" else {}
        self._reading = self._engine.execution_options(**alone)
        self._writing = self._engine.execution_options(**{WRITE: True})
        self.now = now

    @property
    def url(self) -> str:
        """With the password: for opening it in another process, never for people."""
        return self._url.render_as_string(hide_password=False)

    @property
    def shown(self) -> str:
        """The URL without passwords."""
        return shown(self._url)

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        return "sqlite" if self._url.get_backend_name() == "sqlite" else "postgresql"

    @contextmanager
    def read(self, doing: str) -> Iterator[Connection]:
        """A connection for short reading; every statement sees what was committed before it. Never write with it.

        doing: what an error is to name, like "reading job 'x'"."""
        with self._guard(doing, "read"), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self, doing: str) -> Iterator[Connection]:
        """One transaction, committed at the end of the block, rolled back by any exception. On SQLite it is the only writer."""
        with self._guard(doing, "write"), self._writing.begin() as connection:
            yield connection

    def upsert(self, table: Any) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that knows `on_conflict_do_update` and `on_conflict_do_nothing`, which are spelt alike for both."""
        if self.dialect == "sqlite":
            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)

    def revision(self) -> str | None:
        """The revision of the schema; None where there are no tables yet."""
        with self.read("opening the database") as connection:
            return schema.revision(connection)

    def check(self) -> None:
        """StorageError unless the tables are those of this version."""
        schema.check(self.revision(), self.shown)

    def upgrade(self) -> list[str]:
        """Make the tables, or bring those of an older version up to date, in one transaction; the revisions applied.

        Of several processes that do so at once, one works and the others wait. StorageError if a newer version made the tables."""
        if self.revision() == schema.HEAD:
            return []
        with self._guard("opening the database", "upgrade"), self._writing.connect() as connection, schema.unchecked_keys(connection):
            with connection.begin():
                return schema.upgrade(connection, self.shown)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _guard(self, doing: str, operation: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except (DBAPIError, TimeoutError) as error:
            told = complaint(error, doing, self._url, folder=self._folder)
            if told is None:
                raise
            raise told from error
        finally:
            self._observe(operation, time.perf_counter() - began)
