"""What tests of the API's parts need: keys in memory, services that are mostly missing, one request at a time."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any, cast

import httpx
from fastapi import FastAPI

from server.api.services import Services
from server.auth import Keys
from server.settings import Settings
from server.store.database import NotFound
from server.store.keys import KeyStore, StoredKey
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


def view(row: StoredKey) -> KeyView:
    return KeyView(**row.model_dump(exclude={"secret_sha256"}))


class Keyring:
    """Keys in memory, and a key's text at a call."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = KeysInMemory(self.clock)
        self.keys = Keys(cast(KeyStore, self.store), self.clock)

    def text(self, role: Role = "viewer", name: str = "ci", days: int | None = None) -> str:
        return self.keys.make(KeyRequest(name=name, role=role, days=days)).key

    def bearer(self, role: Role = "viewer") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text(role)}"}


def services_with(**parts: Any) -> Services:
    """Services of which those that are not given are None."""
    given = {"settings": Settings(), "keys": Keyring().keys, "anonymous": False} | parts
    missing = {field.name: None for field in dataclasses.fields(Services) if field.name != "buckets"}
    return Services(**cast(Any, missing | given))


def ask(app: FastAPI, path: str, method: str = "GET", *, host: str = "localhost", **request: Any) -> httpx.Response:
    """One request, answered. What the application lets through comes out as it is."""

    async def answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
            return await client.request(method, path, **request)

    return asyncio.run(answer())
