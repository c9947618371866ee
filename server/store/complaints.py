"""What a database complains of, as errors that say what to do."""

from __future__ import annotations

import sqlite3

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError

from server.store.engines import EXTRA, KEPT, place
from tuner.errors import StorageError


class StorageFull(StorageError):
    """There is no room left on the disk."""


class StorageBusy(StorageError):
    """The database is away or in use: what was asked for may well work in a moment."""


# The first text is for the command line, whose database lies in the job's folder; the second for a server.
REMEDIES = {
    sqlite3.SQLITE_FULL: ("Free some space, then go on with --resume.", "Free some space, then try again."),
    sqlite3.SQLITE_IOERR: (
        "Check that the disk works and has space left, then go on with --resume.",
        "Check that the disk works and has space left, then try again.",
    ),
    sqlite3.SQLITE_READONLY: (
        "Choose another folder with --out or change its permissions, then go on with --resume.",
        "Change the permissions of the file and its folder, or set ACCUTUNE_DATA_DIR to another folder.",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "Choose a folder that exists and can be written with --out.",
        "Set ACCUTUNE_DATA_DIR to a folder that exists and can be written.",
    ),
    sqlite3.SQLITE_BUSY: (
        "Another process is writing to it: wait for that one or end it, then go on with --resume.",
        "Another process is writing to it: wait for that one or end it, then try again.",
    ),
    sqlite3.SQLITE_NOTADB: ("Choose another folder with --out, or move that file away.", "Move that file away, or name another one."),
    sqlite3.SQLITE_CORRUPT: ("Put a backup in its place, or start again with another --out.", "Put a backup in its place."),
}

REACH = "Check that the server runs and lets this machine in, and that host, port, user, password and database in its URL are right."

# By the first signs of PostgreSQL's five-character codes; the longest that fits is taken.
STATES = {
    "08": REACH,
    "28": REACH,
    "40": "Another process was in its way: try again.",
    "3D": "Create that database, or name another one in the URL.",
    "42501": "Grant the user the right to create and change tables there.",
    "25P03": "This process stood still in the middle of it: try again.",
    "25006": "It takes no writes, as a standby does: give the URL of the primary.",
    "53": "Give the database server more room, then try again.",
    "53300": "It admits no more connections: raise max_connections there, or run fewer jobs at once.",
    "55P03": "Another process holds a lock: wait for that one or end it, then try again.",
    "57P": "Wait until the database server runs again, then try again.",
    "58": "Check the disk of the database server.",
    "XX": "Check the database server's log, and put a backup in its place if it says that data is damaged.",
}
FULL = ("53100",)
PASSING = ("08", "25P03", "40", "53300", "55P03", "57P")


def complaint(error: DBAPIError | TimeoutError, doing: str, url: URL, *, folder: bool) -> StorageError | None:
    """The error as a StorageError; None for one that is a fault of ours or that the caller wants to see, like a broken constraint.

    folder: the remedies are for a job's folder on the command line."""
    if isinstance(error, TimeoutError):
        most = KEPT + EXTRA
        return StorageBusy(f"{doing} failed: all {most} connections to the database are in use ({place(url)}). Try again in a moment.")
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(error.orig, doing, url, folder)
    return _of_postgresql(error, doing, url)


def _of_sqlite(error: sqlite3.Error, doing: str, url: URL, folder: bool) -> StorageError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code not in REMEDIES:
        return None
    kind = {sqlite3.SQLITE_FULL: StorageFull, sqlite3.SQLITE_BUSY: StorageBusy}.get(code, StorageError)
    return kind(f"{doing} failed: {error} ({place(url)}). {REMEDIES[code][0 if folder else 1]}")


def _of_postgresql(error: DBAPIError, doing: str, url: URL) -> StorageError | None:
    state = getattr(error.orig, "sqlstate", None)
    connecting = error.statement is None
    if state is None and not (connecting or error.connection_invalidated or isinstance(error, OperationalError)):
        return None
    fitting = [start for start in STATES if state and state.startswith(start)]
    if state and not fitting:
        return None
    remedy = STATES[max(fitting, key=len)] if fitting else REACH
    kind = StorageFull if state in FULL else StorageBusy if state is None or state.startswith(PASSING) else StorageError
    return kind(f"{doing} failed: {_first_line(error.orig, url)} ({place(url)}). {remedy}")


def _first_line(error: object, url: URL) -> str:
    text = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(". ")
    return text.replace(str(url.password), "***") if url.password else text
