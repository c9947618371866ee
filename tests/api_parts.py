"""What tests of the API's parts need: keys in memory, services that are mostly missing, one request at a time."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any, cast

import httpx
from fastapi import FastAPI

from server.api.guards import COOKIE
from server.api.services import Services
from server.auth import Keys
from server.sessions import Sessions
from server.settings import Settings
from server.store.database import NotFound
from server.store.keys import KeyStore, StoredKey
from server.store.sessions import SessionStore, StoredSession
from tuner.wire import KeyRequest, KeyView, Role

START = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment


class KeysInMemory:
    """`KeyStore` without a database."""

    def __init__(self, now: Clock) -> None:
        self.rows: dict[str, StoredKey] = {}
        self.reads: list[str] = []
        self._now = now

    def add(self, **values: Any) -> KeyView:
        row = StoredKey(**values)
        self.rows[row.id] = row
        return view(row)

    def get(self, id: str) -> StoredKey | None:
        self.reads.append(id)
        return self.rows.get(id)

    def list(self) -> tuple[KeyView, ...]:
        return tuple(view(row) for row in self.rows.values())

    def revoke(self, id: str) -> KeyView:
        if id not in self.rows:
            raise NotFound(f"there is no API key '{id}'")
        self.rows[id] = self.rows[id].model_copy(update={"revoked": self.rows[id].revoked or self._now()})
        return view(self.rows[id])


class SessionsInMemory:
    """`SessionStore` without a database. rows: by the SHA-256 of what proves them, the id of the key and the end."""

    def __init__(self, keys: KeysInMemory) -> None:
        self.rows: dict[str, tuple[str, datetime]] = {}
        self._keys = keys

    def add(self, *, token_sha256: str, key_id: str, created: datetime, expires: datetime) -> None:
        self.rows = {token: row for token, row in self.rows.items() if row[1] > created}
        self.rows[token_sha256] = key_id, expires

    def find(self, token_sha256: str) -> StoredSession | None:
        found = self.rows.get(token_sha256)
        return None if found is None else StoredSession(key=view(self._keys.rows[found[0]]), expires=found[1])

    def remove(self, token_sha256: str) -> None:
        self.rows.pop(token_sha256, None)


def view(row: StoredKey) -> KeyView:
    return KeyView(**row.model_dump(exclude={"secret_sha256"}))


class Keyring:
    """Keys and sessions in memory, and a key's text or a session's cookie at a call."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = KeysInMemory(self.clock)
        self.keys = Keys(cast(KeyStore, self.store), self.clock)
        self.begun = SessionsInMemory(self.store)
        self.sessions = Sessions(cast(SessionStore, self.begun), self.clock)

    def text(self, role: Role = "viewer", name: str = "ci", days: int | None = None) -> str:
        return self.keys.make(KeyRequest(name=name, role=role, days=days)).key

    def bearer(self, role: Role = "viewer") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text(role)}"}

    def token(self, role: Role = "viewer", days: int | None = None) -> str:
        """What proves a new session with a new key."""
        return self.sessions.make(self.keys.holder(self.text(role, days=days))).token

    def cookie(self, role: Role = "viewer") -> dict[str, str]:
        return {"Cookie": f"{COOKIE}={self.token(role)}"}


def services_with(**parts: Any) -> Services:
    """Services of which those that are not given are None."""
    ring = Keyring()
    given = {"settings": Settings(), "keys": ring.keys, "sessions": ring.sessions, "anonymous": False} | parts
    missing = {field.name: None for field in dataclasses.fields(Services) if field.name != "buckets"}
    return Services(**cast(Any, missing | given))


def ask(app: FastAPI, path: str, method: str = "GET", *, host: str = "localhost", **request: Any) -> httpx.Response:
    """One request, answered. What the application lets through comes out as it is."""

    async def answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
            return await client.request(method, path, **request)

    return asyncio.run(answer())
