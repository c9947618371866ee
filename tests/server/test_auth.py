"""Keys: made once, recognised, refused with a reason that helps whoever holds them and nobody else."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import timedelta
from pathlib import Path

import pytest

from server.auth import ANONYMOUS, MALFORMED, UNKNOWN, Caller, Keys, Unauthorized
from server.store.database import Database, sqlite_url
from server.store.keys import KeyStore
from tests.api_parts import START, Keyring
from tuner.wire import KeyRequest, Role


@pytest.fixture
def ring() -> Keyring:
    return Keyring()


def refusal(ring: Keyring, key: str) -> str:
    with pytest.raises(Unauthorized) as error:
        ring.keys.caller(key)
    return str(error.value)


def test_a_key_tells_who_calls(ring: Keyring) -> None:
    made = ring.keys.make(KeyRequest(name="ci", role="submitter"))
    assert ring.keys.caller(made.key) == Caller(id=made.id, name="ci", role="submitter")
    assert (made.created, made.expires, made.revoked) == (START, None, None)


def test_a_key_is_its_id_and_a_secret_of_256_bits(ring: Keyring) -> None:
    first, second = ring.keys.make(KeyRequest(name="a")), ring.keys.make(KeyRequest(name="a"))
    match = re.fullmatch(r"acc_(key[0-9a-f]{16})_([A-Za-z0-9_-]{43})", first.key)
    assert match is not None
    assert match[1] == first.id
    assert first.id != second.id
    assert match[2] not in second.key


def test_the_secret_is_not_kept(ring: Keyring) -> None:
    made = ring.keys.make(KeyRequest(name="ci"))
    secret = made.key.split("_", 2)[2]
    kept = ring.store.rows[made.id]
    assert secret not in kept.model_dump_json()
    assert kept.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in str(ring.keys.list())


def test_a_secret_with_underscores_is_taken_apart_rightly(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_urlsafe", lambda _size: "a_b-_c_")
    made = ring.keys.make(KeyRequest(name="ci"))
    assert ring.keys.caller(made.key).id == made.id


def test_an_unknown_id_and_a_wrong_secret_look_the_same(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or real(one, other))
    key = ring.text()
    head, key_id, _ = key.split("_", 2)
    said = {refusal(ring, f"{head}_{key_id}_{'x' * 43}"), refusal(ring, f"{head}_key0000000000000000_{'x' * 43}")}
    assert said == {UNKNOWN}
    assert ring.store.reads == [key_id, "key0000000000000000"]
    assert [(len(one), len(other)) for one, other in compared] == [(64, 64), (64, 64)]


def test_the_end_of_a_key_counts(ring: Keyring) -> None:
    assert refusal(ring, ring.text()[:-1]) == UNKNOWN


@pytest.mark.parametrize(
    "text", ["", "acc_", "hello", "acc_key1", "acc_KEY_x", "acc_key1_ü", "Bearer acc_key1_x", "acc_key1_x\n", "x" * 5000]
)
def test_what_is_no_key_is_not_looked_up(ring: Keyring, text: str) -> None:
    assert refusal(ring, text) == MALFORMED
    assert ring.store.reads == []


def test_an_expired_key_says_when_and_what_to_do(ring: Keyring) -> None:
    key = ring.text(days=3)
    ring.clock.moment = START + timedelta(days=3, seconds=-1)
    assert ring.keys.caller(key).name == "ci"
    ring.clock.moment = START + timedelta(days=3)
    assert refusal(ring, key) == "the API key 'ci' expired on 2026-11-24 at 12:00 UTC. Ask an admin of this server for a new one."


def test_a_revoked_key_is_refused_at_once(ring: Keyring) -> None:
    made = ring.keys.make(KeyRequest(name="ci"))
    ring.keys.caller(made.key)
    assert ring.keys.revoke(made.id).revoked == START
    assert refusal(ring, made.key) == "the API key 'ci' was revoked on 2026-11-21 at 12:00 UTC. Ask an admin of this server for a new one."


def test_who_has_no_secret_does_not_learn_that_a_key_has_ended(ring: Keyring) -> None:
    made = ring.keys.make(KeyRequest(name="ci"))
    ring.keys.revoke(made.id)
    assert refusal(ring, f"acc_{made.id}_{'x' * 43}") == UNKNOWN


@pytest.mark.parametrize(
    ("role", "may"), [("viewer", ["viewer"]), ("submitter", ["viewer", "submitter"]), ("admin", ["viewer", "submitter", "admin"])]
)
def test_each_role_may_do_what_those_before_it_may(role: Role, may: list[Role]) -> None:
    caller = Caller(id="k", name="ci", role=role)
    every: tuple[Role, ...] = ("viewer", "submitter", "admin")
    assert [wanted for wanted in every if caller.may(wanted)] == may


def test_anonymous_may_do_everything() -> None:
    assert ANONYMOUS.may("admin")
    assert ANONYMOUS.id is None


def test_keys_in_the_database(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "keys.db"))
    database.upgrade()
    keys = Keys(KeyStore(database))
    made = keys.make(KeyRequest(name="ci", role="admin", days=1))
    assert keys.caller(made.key) == Caller(id=made.id, name="ci", role="admin")
    assert [(key.id, key.expires) for key in keys.list()] == [(made.id, made.expires)]
    keys.revoke(made.id)
    with pytest.raises(Unauthorized, match="was revoked"):
        keys.caller(made.key)
    database.close()
