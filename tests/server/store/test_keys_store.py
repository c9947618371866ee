"""API keys: kept without their secrets, revoked once and for all."""

from __future__ import annotations

from datetime import timedelta

import pytest
from store_samples import START

from server.store.database import Database, NotFound
from server.store.keys import KeyStore
from tuner.wire import KeyView


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


def add(keys: KeyStore, id: str, days: int | None = None) -> KeyView:
    expires = None if days is None else START + timedelta(days=days)
    return keys.add(id=id, name="ci", role="viewer", secret_sha256="s" * 64, created=START, expires=expires)


def test_a_key_comes_back_with_what_proves_it(keys: KeyStore) -> None:
    view = add(keys, "k", days=3)
    assert view == KeyView(id="k", name="ci", role="viewer", created=START, expires=START + timedelta(days=3))
    stored = keys.get("k")
    assert stored is not None
    assert stored.secret_sha256 == "s" * 64
    assert KeyView(**stored.model_dump(exclude={"secret_sha256"})) == view
    assert keys.get("gone") is keys.get("nul\0") is None


def test_keys_are_listed_without_secrets_the_newest_first(keys: KeyStore) -> None:
    older, newer = add(keys, "a"), add(keys, "b")
    assert keys.list() == (newer, older)
    assert all(type(view) is KeyView for view in keys.list())


def test_revoking_twice_keeps_the_first_moment(keys: KeyStore) -> None:
    add(keys, "k")
    first = keys.revoke("k")
    assert first.revoked is not None
    assert first.revoked > START
    assert keys.revoke("k") == first
    stored = keys.get("k")
    assert stored is not None
    assert stored.revoked == first.revoked


@pytest.mark.parametrize("id", ["gone", "nul\0"])
def test_revoking_an_unknown_key_names_it(keys: KeyStore, id: str) -> None:
    with pytest.raises(NotFound) as caught:
        keys.revoke(id)
    assert str(caught.value) == f"there is no API key '{id}'; GET /api/v1/keys or `tuner keys list` shows those there are"


def test_a_key_is_active_until_it_is_revoked_or_expires(keys: KeyStore, database: Database) -> None:
    assert (keys.any(), keys.any_active()) == (False, False)
    add(keys, "k")
    assert (keys.any(), keys.any_active()) == (True, True)
    keys.revoke("k")
    assert (keys.any(), keys.any_active()) == (True, False)
    add(keys, "l", days=2)
    assert keys.any_active()
    database.now = lambda: START + timedelta(days=2)
    assert not keys.any_active()
