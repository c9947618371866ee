"""Sessions: kept without what proves them, found with the key as it is now, gone for good once they are over."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select
from store_samples import START

from server.store.database import Database
from server.store.keys import KeyStore
from server.store.models import SessionRow
from server.store.sessions import SessionStore, StoredSession
from tuner.wire import KeyView

HOUR = timedelta(hours=1)


@pytest.fixture
def keys(database: Database) -> KeyStore:
    made = KeyStore(database)
    for id in ("k", "l"):
        made.add(id=id, name="ci", role="viewer", secret_sha256="s" * 64, created=START, expires=START + 9 * HOUR)
    return made


@pytest.fixture
def sessions(database: Database, keys: KeyStore) -> SessionStore:
    assert keys.any()
    return SessionStore(database)


def add(sessions: SessionStore, token: str, key: str = "k", hours: int = 0) -> None:
    sessions.add(token_sha256=token * 64, key_id=key, created=START + hours * HOUR, expires=START + (hours + 2) * HOUR)


def kept(database: Database) -> set[str]:
    with database.read("looking") as connection:
        return {token[0] for token in connection.scalars(select(SessionRow.token_sha256))}


def test_a_session_comes_back_with_its_key(sessions: SessionStore) -> None:
    add(sessions, "a")
    add(sessions, "b", "l", hours=1)
    key = KeyView(id="k", name="ci", role="viewer", created=START, expires=START + 9 * HOUR)
    assert sessions.find("a" * 64) == StoredSession(key=key, expires=START + 2 * HOUR)
    found = sessions.find("b" * 64)
    assert found is not None
    assert (found.key.id, found.expires) == ("l", START + 3 * HOUR)


@pytest.mark.parametrize("token", ["", "b" * 64, "a" * 63, "A" * 64])
def test_there_is_no_other(sessions: SessionStore, token: str) -> None:
    add(sessions, "a")
    assert sessions.find(token) is None
    sessions.remove(token)
    assert sessions.find("a" * 64) is not None


def test_a_key_that_was_revoked_meanwhile_is_told(sessions: SessionStore, keys: KeyStore) -> None:
    add(sessions, "a")
    revoked = keys.revoke("k")
    found = sessions.find("a" * 64)
    assert found is not None
    assert found.key == revoked


def test_a_session_is_removed_alone_and_once_for_all(sessions: SessionStore, database: Database) -> None:
    add(sessions, "a")
    add(sessions, "b")
    for _ in range(2):
        sessions.remove("a" * 64)
        assert kept(database) == {"b"}
    assert sessions.find("a" * 64) is None


def test_those_that_are_over_go_when_another_begins(sessions: SessionStore, database: Database) -> None:
    add(sessions, "a")
    add(sessions, "b", "l", hours=1)
    assert kept(database) == {"a", "b"}
    add(sessions, "c", hours=2)
    assert kept(database) == {"b", "c"}
