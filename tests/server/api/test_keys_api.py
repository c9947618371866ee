"""Keys over REST: made once, listed without secrets, revoked at once; for admins."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from server.api import keys, problems
from server.auth import Caller
from tests.api_parts import START, Keyring, ask, services_with


@pytest.fixture
def ring() -> Keyring:
    return Keyring()


@pytest.fixture
def app(ring: Keyring) -> FastAPI:
    made = FastAPI()
    made.state.services = services_with(keys=ring.keys)
    problems.install(made)
    made.include_router(keys.router, prefix="/api/v1")
    return made


def test_a_key_is_shown_once_and_works(app: FastAPI, ring: Keyring) -> None:
    admin = ring.bearer("admin")
    answer = ask(app, "/api/v1/keys", "POST", json={"name": "ci", "role": "viewer", "days": 2}, headers=admin)
    made = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert ring.keys.caller(made["key"]) == Caller(id=made["id"], name="ci", role="viewer")
    assert (made["created"], made["expires"]) == (START.isoformat().replace("+00:00", "Z"), "2026-11-23T12:00:00Z")
    listed = ask(app, "/api/v1/keys", headers=admin)
    assert [item["id"] for item in listed.json()["items"]] == list(ring.store.rows)
    assert all(set(item) == {"id", "name", "role", "created", "expires", "revoked"} for item in listed.json()["items"])
    assert made["key"].split("_", 2)[2] not in listed.text


def test_a_key_is_revoked(app: FastAPI, ring: Keyring) -> None:
    admin, other = ring.bearer("admin"), ring.text("viewer")
    key_id = other.split("_")[1]
    answer = ask(app, f"/api/v1/keys/{key_id}", "DELETE", headers=admin)
    assert (answer.status_code, answer.json()["revoked"]) == (200, "2026-11-21T12:00:00Z")
    assert ask(app, "/api/v1/keys", headers={"Authorization": f"Bearer {other}"}).status_code == 401


def test_an_unknown_key_is_not_found(app: FastAPI, ring: Keyring) -> None:
    answer = ask(app, "/api/v1/keys/key0", "DELETE", headers=ring.bearer("admin"))
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no API key 'key0'")


@pytest.mark.parametrize("role", ["viewer", "submitter"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/v1/keys"), ("GET", "/api/v1/keys"), ("DELETE", "/api/v1/keys/key0")])
def test_keys_are_for_admins(app: FastAPI, ring: Keyring, role: str, method: str, path: str) -> None:
    assert ask(app, path, method, headers=ring.bearer(role)).status_code == 403  # type: ignore[arg-type]
    assert len(ring.store.rows) == 1


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"name": ""}', "application/json", 422),
        (b'{"name": "a", "role": "root"}', "application/json", 422),
        (b'{"name": "a", "key": "acc_mine"}', "application/json", 422),
        (b'{"name": "a\\u0000"}', "application/json", 422),
        (b'{"name": "a"', "application/json", 422),
        (b'{"name": "a"}', "text/plain", 415),
        (b'{"name": "' + b"a" * 5000 + b'"}', "application/json", 413),
    ],
)
def test_a_bad_request_makes_no_key(app: FastAPI, ring: Keyring, body: bytes, content_type: str, status: int) -> None:
    answer = ask(app, "/api/v1/keys", "POST", content=body, headers=ring.bearer("admin") | {"Content-Type": content_type})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert len(ring.store.rows) == 1
