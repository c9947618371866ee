"""Sessions of browsers, without what proves them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, insert, select

from search_spaces.schemes import Frozen
from server.store.database import Database
from server.store.keys import COLUMNS, fields
from server.store.models import KeyRow, SessionRow
from tuner.store import UtcDatetime
from tuner.wire import KeyView


class StoredSession(Frozen):
    """A session and the key that it was begun with, as that is now."""

    key: KeyView
    expires: UtcDatetime


class SessionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, *, token_sha256: str, key_id: str, created: datetime, expires: datetime) -> None:
        """Those that are over by then are removed on the way."""
        values = {"token_sha256": token_sha256, "key_id": key_id, "created_at": created, "expires_at": expires}
        with self._database.write("storing a session") as connection:
            connection.execute(delete(SessionRow).where(SessionRow.expires_at <= created))
            connection.execute(insert(SessionRow).values(**values))

    def find(self, token_sha256: str) -> StoredSession | None:
        """Also one that is over, or whose key was revoked or has expired."""
        wanted = (
            select(*COLUMNS, SessionRow.expires_at.label("over_at"))
            .join(SessionRow, SessionRow.key_id == KeyRow.id)
            .where(SessionRow.token_sha256 == token_sha256)
        )
        with self._database.read("reading a session") as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else StoredSession(key=KeyView(**fields(row)), expires=row.over_at)

    def remove(self, token_sha256: str) -> None:
        """Nothing happens where there is none."""
        with self._database.write("ending a session") as connection:
            connection.execute(delete(SessionRow).where(SessionRow.token_sha256 == token_sha256))
