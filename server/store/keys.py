"""API keys, without their secrets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, or_, select, update

from server.store.database import Database, NotFound
from server.store.lookups import SHOWN, plain
from server.store.models import KeyRow
from tuner.wire import KeyView, Role


class StoredKey(KeyView):
    """A key with what proves it; never for anybody to see."""

    secret_sha256: str


class KeyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, *, id: str, name: str, role: Role, secret_sha256: str, created: datetime, expires: datetime | None = None) -> KeyView:
        values = {"id": id, "name": plain(name), "role": role, "secret_sha256": secret_sha256, "created_at": created, "expires_at": expires}
        with self._database.write("storing a key") as connection:
            connection.execute(insert(KeyRow).values(**values))
        return KeyView(id=id, name=name, role=role, created=created, expires=expires)

    def get(self, id: str) -> StoredKey | None:
        """Also one that was revoked or has expired."""
        with self._database.read("reading a key") as connection:
            row = connection.execute(select(*COLUMNS, KeyRow.secret_sha256).where(KeyRow.id == plain(id))).one_or_none()
        return None if row is None else StoredKey(**fields(row), secret_sha256=row.secret_sha256)

    def list(self) -> tuple[KeyView, ...]:
        """All of them, the newest first."""
        with self._database.read("listing keys") as connection:
            rows = connection.execute(select(*COLUMNS).order_by(KeyRow.created_at.desc(), KeyRow.id.desc())).all()
        return tuple(KeyView(**fields(row)) for row in rows)

    def revoke(self, id: str) -> KeyView:
        """From now on it opens nothing. Revoking it again changes nothing; NotFound for an unknown one."""
        now = self._database.now()
        with self._database.write("revoking a key") as connection:
            connection.execute(update(KeyRow).where(KeyRow.id == plain(id), KeyRow.revoked_at.is_(None)).values(revoked_at=now))
            row = connection.execute(select(*COLUMNS).where(KeyRow.id == plain(id))).one_or_none()
        if row is None:
            raise NotFound(f"there is no API key '{id[:SHOWN]}'; GET /api/v1/keys or `tuner keys list` shows those there are")
        return KeyView(**fields(row))

    def any(self) -> bool:
        """Was there ever a key?"""
        with self._database.read("looking for keys") as connection:
            return connection.scalar(select(KeyRow.id).limit(1)) is not None

    def any_active(self) -> bool:
        """Is there a key that opens something today?"""
        good = KeyRow.revoked_at.is_(None), or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > self._database.now())
        with self._database.read("looking for keys") as connection:
            return connection.scalar(select(KeyRow.id).where(*good).limit(1)) is not None


COLUMNS = (KeyRow.id, KeyRow.name, KeyRow.role, KeyRow.created_at, KeyRow.expires_at, KeyRow.revoked_at)


def fields(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """Those of a KeyView, from a row with COLUMNS."""
    return {
        "id": row.id,
        "name": row.name,
        "role": row.role,
        "created": row.created_at,
        "expires": row.expires_at,
        "revoked": row.revoked_at,
    }
