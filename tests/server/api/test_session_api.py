"""Signing in over REST: a cookie that only our own pages may use, which says who asks and ends when it should."""

from __future__ import annotations

import logging
from datetime import timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from service import TestClient, opened

from server.api import keys, problems, session
from server.api.guards import COOKIE, OTHER_PAGE
from server.api.rates import Buckets
from server.app import create_app
from server.auth import MALFORMED, UNKNOWN
from server.settings import Settings
from tests.api_parts import Keyring, ask, services_with
from tests.small_service import Server, small_app, small_service
from tuner.wire import KeyRequest, Role

PATH = "/api/v1/session"
OURS = {"Sec-Fetch-Site": "same-origin"}
ELSEWHERE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://user@localhost"},
    {"Origin": "http://["},
    {"Origin": "localhost"},
    {"Origin": "null"},
    {"Origin": ""},
]


@pytest.fixture
def ring() -> Keyring:
    return Keyring()


def application(ring: Keyring, **parts: Any) -> FastAPI:
    made = FastAPI()
    made.state.services = services_with(**{"keys": ring.keys, "sessions": ring.sessions} | parts)
    problems.install(made)
    for module in (session, keys):
        made.include_router(module.router, prefix="/api/v1")
    return made


@pytest.fixture
def app(ring: Keyring) -> FastAPI:
    return application(ring)


@pytest.fixture
def open_app(ring: Keyring) -> FastAPI:
    return application(ring, anonymous=True)


def sign_in(app: FastAPI, key: str, **request: Any) -> httpx.Response:
    return ask(app, PATH, "POST", json={"key": key}, **request)


def cookie_of(answer: httpx.Response) -> dict[str, Any]:
    """The one cookie that an answer sets: its value and the attributes that it has."""
    (header,) = answer.headers.get_list("set-cookie")
    (morsel,) = SimpleCookie(header).values()
    assert morsel.key == COOKIE
    return {"value": morsel.value} | {name: value for name, value in morsel.items() if value}


@pytest.mark.parametrize("role", ["viewer", "submitter", "admin"])
def test_a_key_begins_a_session_that_is_as_good(app: FastAPI, ring: Keyring, role: Role) -> None:
    answer = sign_in(app, f" {ring.text(role)}\n", headers=OURS)
    view = {"key_id": next(iter(ring.store.rows)), "name": "ci", "role": role, "expires": "2026-11-22T00:00:00Z", "anonymous": False}
    assert (answer.status_code, answer.json(), answer.headers["cache-control"]) == (201, view, "no-store")
    cookie = cookie_of(answer)
    token = cookie.pop("value")
    assert cookie == {"path": "/", "max-age": "43200", "httponly": True, "samesite": "strict"}
    assert token not in answer.text
    mine = {"Cookie": f"theme=dark; {COOKIE}={token}"}
    shown = ask(app, PATH, headers=mine)
    assert (shown.status_code, shown.json(), shown.headers["cache-control"]) == (200, view, "no-store")
    made = ask(app, "/api/v1/keys", "POST", json={"name": "another"}, headers=mine | OURS)
    assert made.status_code == (201 if role == "admin" else 403)


def test_the_cookie_lives_as_long_as_the_session(app: FastAPI, ring: Keyring) -> None:
    key = ring.text(days=1)
    ring.clock.moment += timedelta(hours=23)
    answer = sign_in(app, key)
    assert (cookie_of(answer)["max-age"], answer.json()["expires"]) == ("3600", "2026-11-22T12:00:00Z")


def test_over_https_the_cookie_never_leaves_it(tmp_path: Path) -> None:
    with opened(tmp_path, anonymous=False, root_path="/accutune") as services:
        key = services.keys.make(KeyRequest(name="a")).key
        with TestClient(create_app(services), base_url="https://acc.example") as http:
            begun = http.post(f"/accutune{PATH}", json={"key": key}, headers={"Origin": "https://acc.example"})
            assert (begun.status_code, http.get(f"/accutune{PATH}").json()["name"]) == (201, "a")
            ended = http.delete(f"/accutune{PATH}", headers={"Origin": "https://acc.example"})
            assert (ended.status_code, http.get(f"/accutune{PATH}").status_code) == (204, 401)
    cookies = [cookie_of(answer) for answer in (begun, ended)]
    assert [(cookie["path"], cookie["secure"]) for cookie in cookies] == [("/accutune/", True)] * 2


def test_a_proxy_on_this_machine_is_believed_that_it_was_https(tmp_path: Path) -> None:
    with small_service(tmp_path, anonymous=False) as services, Server(small_app(services, session.router)) as server:
        key = services.keys.make(KeyRequest(name="a")).key
        plain, proxied = (
            httpx.post(f"{server.url}/session", json={"key": key}, headers=headers) for headers in ({}, {"X-Forwarded-Proto": "https"})
        )
    assert ["secure" in cookie_of(answer) for answer in (plain, proxied)] == [False, True]


def test_who_asks_with_a_key_is_shown_too(app: FastAPI, ring: Keyring) -> None:
    key = ring.text("submitter", days=2)
    headers = ring.cookie("admin") | {"Authorization": f"Bearer {key}"}
    expected = {"key_id": key.split("_")[1], "name": "ci", "role": "submitter", "expires": "2026-11-23T12:00:00Z", "anonymous": False}
    assert ask(app, PATH, headers=headers).json() == expected
    assert ask(app, PATH, headers=ring.bearer()).json()["expires"] is None
    assert ask(app, PATH).status_code == 401


def test_without_keys_nobody_signs_in(open_app: FastAPI, ring: Keyring) -> None:
    shown = {"key_id": None, "name": "local", "role": "admin", "expires": None, "anonymous": True}
    for headers in ({}, ring.cookie(), {"Cookie": f"{COOKIE}=forged"}):
        assert ask(open_app, PATH, headers=headers).json() == shown
    answer = sign_in(open_app, ring.text(), headers=OURS)
    assert (answer.status_code, "set-cookie" in answer.headers) == (409, False)
    assert answer.json()["detail"].startswith("this server has no API keys and needs none")
    assert len(ring.begun.rows) == 1


def test_a_cookie_lets_no_strangers_in_where_there_are_no_keys(open_app: FastAPI, ring: Keyring) -> None:
    mine = ring.cookie("admin")
    for method, content in (("GET", {}), ("POST", {"json": {"key": ring.text()}})):
        answer = ask(open_app, PATH, method, host="evil.example", headers=mine | OURS, **content)
        assert (answer.status_code, "got Host 'evil.example'" in answer.json()["detail"]) == (403, True)
    assert ask(open_app, "/api/v1/keys", "POST", json={"name": "a"}, headers=mine | {"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("key", "reason"),
    [("", MALFORMED), ("secret", MALFORMED), ("Bearer acc_a_b", MALFORMED), (f"acc_key0_{'x' * 43}", UNKNOWN)],
)
def test_a_wrong_key_begins_nothing(app: FastAPI, ring: Keyring, key: str, reason: str) -> None:
    answer = sign_in(app, key, headers=ring.cookie() | OURS)
    assert (answer.status_code, answer.json()["detail"], answer.headers["content-type"]) == (401, reason, "application/problem+json")
    assert "set-cookie" not in answer.headers
    assert len(ring.begun.rows) == 1


def test_a_key_that_is_over_begins_nothing(app: FastAPI, ring: Keyring) -> None:
    revoked, expired = ring.text(), ring.text(days=1)
    ring.keys.revoke(revoked.split("_")[1])
    ring.clock.moment += timedelta(days=1)
    answers = [sign_in(app, key) for key in (revoked, expired)]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert ["was revoked on" in answers[0].json()["detail"], "expired on" in answers[1].json()["detail"]] == [True, True]
    assert ring.begun.rows == {}


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 422),
        (b'{"key": 5}', "application/json", 422),
        (b'{"key": "a", "role": "admin"}', "application/json", 422),
        (b'{"key": "a"', "application/json", 422),
        (b'"acc_a_b"', "application/json", 422),
        (b'{"key": "a"}', "text/plain", 415),
        (b"key=a", "application/x-www-form-urlencoded", 415),
        (b'{"key": "' + b"a" * 1024 + b'"}', "application/json", 413),
    ],
)
def test_a_bad_body_begins_nothing(app: FastAPI, ring: Keyring, body: bytes, content_type: str, status: int) -> None:
    answer = ask(app, PATH, "POST", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert ring.begun.rows == {}


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_another_page_neither_signs_in_nor_changes_nor_signs_out(app: FastAPI, ring: Keyring, headers: dict[str, str]) -> None:
    mine = ring.cookie("admin")
    answers = [
        sign_in(app, ring.text(), headers=headers),
        ask(app, "/api/v1/keys", "POST", json={"name": "a"}, headers=mine | headers),
        ask(app, PATH, "DELETE", headers=mine | headers),
    ]
    assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(403, OTHER_PAGE)] * 3
    assert (len(ring.begun.rows), len(ring.store.rows)) == (1, 2)
    assert ask(app, PATH, headers=mine | headers).status_code == 200


@pytest.mark.parametrize("headers", [OURS, {"Origin": "http://localhost"}, {"Origin": "http://LOCALHOST"}, OURS | {"Origin": "https://x"}])
def test_our_own_page_signs_in_and_changes_and_signs_out(app: FastAPI, ring: Keyring, headers: dict[str, str]) -> None:
    begun = sign_in(app, ring.text("admin"), headers=headers)
    mine = {"Cookie": f"{COOKIE}={cookie_of(begun)['value']}"} | headers
    assert ask(app, "/api/v1/keys", "POST", json={"name": "a"}, headers=mine).status_code == 201
    ended = ask(app, PATH, "DELETE", headers=mine)
    assert (ended.status_code, ended.content) == (204, b"")
    assert cookie_of(ended).items() >= {"value": "", "path": "/", "max-age": "0", "httponly": True, "samesite": "strict"}.items()
    assert ask(app, PATH, headers=mine).status_code == 401


def test_what_does_not_say_that_it_is_our_page_changes_nothing_by_cookie(app: FastAPI, ring: Keyring) -> None:
    mine = ring.cookie("admin")
    answers = [ask(app, "/api/v1/keys", "POST", json={"name": "a"}, headers=mine), ask(app, PATH, "DELETE", headers=mine)]
    assert [answer.status_code for answer in answers] == [403, 403]
    # No browser sends this: there is nobody whose cookie would be replaced.
    assert sign_in(app, ring.text()).status_code == 201


def test_signing_out_without_a_session_is_no_error(app: FastAPI, ring: Keyring) -> None:
    for headers in ({}, ring.bearer(), {"Cookie": "theme=dark"}, {"Cookie": f"{COOKIE}=forged"} | OURS):
        assert ask(app, PATH, "DELETE", headers=headers).status_code == 204


def test_a_session_that_was_signed_out_stays_so(app: FastAPI, ring: Keyring) -> None:
    mine = ring.cookie()
    assert ask(app, PATH, "DELETE", headers=mine | OURS).status_code == 204
    answer = ask(app, PATH, headers=mine)
    assert (answer.status_code, "Sign in again with an API key" in answer.json()["detail"]) == (401, True)


def test_sign_ins_count_among_the_requests_of_their_key(ring: Keyring) -> None:
    app = application(ring, settings=Settings(requests_per_minute=3), buckets=Buckets(lambda: 0.0))
    key = ring.text()
    answers = [sign_in(app, key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    mine = {"Cookie": f"{COOKIE}={cookie_of(answers[0])['value']}"}
    for headers in (mine, {"Authorization": f"Bearer {key}"}):
        assert ask(app, PATH, headers=headers).status_code == 429
    assert sign_in(app, ring.text()).status_code == 201


def test_neither_key_nor_cookie_is_logged(app: FastAPI, ring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = ring.text()
    token = cookie_of(sign_in(app, key))["value"]
    for value in (token, f"{token}x"):
        ask(app, PATH, headers={"Cookie": f"{COOKIE}={value}"})
    assert key.split("_", 2)[2] not in caplog.text
    assert token not in caplog.text
