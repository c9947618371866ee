"""Sessions: proved by a secret of their own, and over with their key, after twelve hours, or when they are ended."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

import pytest

from server.auth import Caller, Unauthorized
from server.sessions import OVER
from tests.api_parts import START, Keyring
from tuner.wire import Role, SessionView


@pytest.fixture
def ring() -> Keyring:
    return Keyring()


def refusal(ring: Keyring, token: str) -> str:
    with pytest.raises(Unauthorized) as error:
        ring.sessions.caller(token)
    return str(error.value)


@pytest.mark.parametrize("role", ["viewer", "submitter", "admin"])
def test_a_session_is_its_keys_holder(ring: Keyring, role: Role) -> None:
    key = ring.keys.holder(ring.text(role))
    made = ring.sessions.make(key)
    assert ring.sessions.caller(made.token) == Caller(id=key.id, name="ci", role=role)
    assert made.view == SessionView(key_id=key.id, name="ci", role=role, expires=START + timedelta(hours=12))
    assert ring.sessions.view(made.token) == made.view
    assert made.seconds == 43200


def test_what_proves_it_has_256_bits_and_is_not_kept(ring: Keyring) -> None:
    made = ring.sessions.make(ring.keys.holder(ring.text()))
    assert re.fullmatch("[A-Za-z0-9_-]{43}", made.token)
    assert list(ring.begun.rows) == [hashlib.sha256(made.token.encode()).hexdigest()]
    assert made.token not in repr(made)
    assert ring.token() != ring.token()


def test_nothing_else_proves_it(ring: Keyring) -> None:
    token = ring.token()
    stored = hashlib.sha256(token.encode()).hexdigest()
    for forged in ("", token[:-1], f"{token}A", token.swapcase(), f"{token} ", "é\0", "'OR'1'='1", stored):
        assert refusal(ring, forged) == OVER
    assert ring.sessions.caller(token).name == "ci"


def test_it_is_over_after_twelve_hours(ring: Keyring) -> None:
    token = ring.token()
    ring.clock.moment += timedelta(hours=12, seconds=-1)
    assert ring.sessions.caller(token).name == "ci"
    ring.clock.moment += timedelta(seconds=1)
    assert refusal(ring, token) == OVER


def test_it_never_outlives_its_key(ring: Keyring) -> None:
    key = ring.keys.holder(ring.text(days=1))
    ring.clock.moment += timedelta(hours=23)
    made = ring.sessions.make(key)
    assert (made.view.expires, made.seconds) == (START + timedelta(days=1), 3600)
    ring.clock.moment += timedelta(hours=1)
    assert "the API key 'ci' expired on 2026-11-22 at 12:00 UTC" in refusal(ring, made.token)


def test_a_revoked_key_ends_all_its_sessions_and_no_others(ring: Keyring) -> None:
    key = ring.keys.holder(ring.text())
    tokens, other = [ring.sessions.make(key).token for _ in range(2)], ring.token()
    ring.keys.revoke(key.id)
    assert all("the API key 'ci' was revoked on" in refusal(ring, token) for token in tokens)
    assert ring.sessions.caller(other).name == "ci"


def test_ending_one_leaves_the_others(ring: Keyring) -> None:
    key = ring.keys.holder(ring.text())
    first, second = (ring.sessions.make(key).token for _ in range(2))
    for _ in range(2):
        ring.sessions.end(first)
        assert refusal(ring, first) == OVER
    assert ring.sessions.caller(second).id == key.id
