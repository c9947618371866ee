"""Who passes a guard, who does not and is told why, and that no route is without one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI

from server import logs
from server.api import keys, problems
from server.api.guards import COOKIE, Admin, Submitter, Viewer, is_from, is_loopback, is_public, may_change, needs
from server.api.rates import Buckets
from server.api.services import Services
from server.auth import ANONYMOUS, MALFORMED, MISSING, UNKNOWN, Caller, Forbidden
from server.sessions import OVER
from server.settings import Settings
from tests.api_parts import Keyring, ask, services_with
from tests.unguarded import roles, unguarded
from tuner.wire import Role

OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def ring() -> Keyring:
    return Keyring()


def application(services: Services) -> FastAPI:
    app = FastAPI(redirect_slashes=False, openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None)
    app.state.services = services
    problems.install(app)
    router = APIRouter()

    @router.get("/look")
    def look(caller: Viewer) -> Caller:
        return caller

    @router.post("/send")
    def send(caller: Submitter) -> Caller:
        return caller

    @router.post("/rule")
    def rule(_: Admin) -> str:
        return "done"

    @router.get("/jobs/{job_id}")
    def job(job_id: str, _: Viewer) -> list[str | None]:
        assert job_id
        return [logs.job_id.get(), logs.key_id.get()]

    @router.get("/healthz")
    def healthz() -> str:
        return "ok"

    app.include_router(router)
    app.include_router(keys.router, prefix="/api/v1")
    return app


@pytest.fixture
def app(ring: Keyring) -> FastAPI:
    return application(services_with(keys=ring.keys, sessions=ring.sessions))


@pytest.fixture
def open_app(ring: Keyring) -> FastAPI:
    return application(services_with(keys=ring.keys, sessions=ring.sessions, anonymous=True))


def refused(app: FastAPI, path: str, method: str = "GET", **request: Any) -> tuple[int, str]:
    answer = ask(app, path, method, **request)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["detail"]


def test_a_caller_is_known_by_the_key(app: FastAPI, ring: Keyring) -> None:
    caller = ask(app, "/send", "POST", headers=ring.bearer("submitter")).json()
    assert caller == {"id": next(iter(ring.store.rows)), "name": "ci", "role": "submitter"}


@pytest.mark.parametrize(("role", "statuses"), [("viewer", [200, 403, 403]), ("submitter", [200, 200, 403]), ("admin", [200, 200, 200])])
def test_a_role_opens_what_it_includes(app: FastAPI, ring: Keyring, role: Role, statuses: list[int]) -> None:
    calls = [("/look", "GET"), ("/send", "POST"), ("/rule", "POST")]
    assert [ask(app, path, method, headers=ring.bearer(role)).status_code for path, method in calls] == statuses


def test_too_low_a_role_is_told(app: FastAPI, ring: Keyring) -> None:
    assert refused(app, "/rule", "POST", headers=ring.bearer("submitter")) == (
        403,
        "this needs the role 'admin', and the API key 'ci' has the role 'submitter'. Use another key, or ask an admin for one.",
    )


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, MISSING),
        ({"Authorization": ""}, MALFORMED),
        ({"Authorization": "Basic YTpi"}, MALFORMED),
        ({"Authorization": "Bearer"}, MALFORMED),
        ({"Authorization": "Bearer x"}, MALFORMED),
        ({"Authorization": f"Bearer acc_key0_{'x' * 43}"}, UNKNOWN),
    ],
)
@pytest.mark.parametrize("path", ["/look", "/jobs/1"])
def test_without_a_good_key_nobody_passes(app: FastAPI, path: str, headers: Mapping[str, str], reason: str) -> None:
    assert refused(app, path, headers=headers) == (401, reason)
    assert ask(app, path, headers=headers).headers["www-authenticate"] == "Bearer"


def test_a_key_works_however_bearer_is_written(app: FastAPI, ring: Keyring) -> None:
    assert ask(app, "/look", headers={"Authorization": f"bearer  {ring.text()} "}).status_code == 200


def test_a_revoked_key_is_refused_from_the_next_request_on(app: FastAPI, ring: Keyring) -> None:
    header = ring.bearer("admin")
    key_id = next(iter(ring.store.rows))
    assert ask(app, f"/api/v1/keys/{key_id}", "DELETE", headers=header).status_code == 200
    status, reason = refused(app, "/look", headers=header)
    assert (status, "was revoked" in reason) == (401, True)


def test_a_key_does_not_count_in_the_address(app: FastAPI, ring: Keyring) -> None:
    assert refused(app, f"/look?key={ring.text()}&access_token={ring.text()}") == (401, MISSING)


def test_the_guard_comes_before_the_body_and_the_query(app: FastAPI) -> None:
    assert refused(app, "/api/v1/keys", "POST", content=b"{", headers={"Content-Type": "application/json"}) == (401, MISSING)


def test_the_handlers_log_knows_job_and_key(app: FastAPI, ring: Keyring) -> None:
    assert ask(app, "/jobs/j-7", headers=ring.bearer()).json() == ["j-7", next(iter(ring.store.rows))]


def test_this_machine_needs_no_key_where_there_are_none(open_app: FastAPI) -> None:
    assert ask(open_app, "/look").json() == ANONYMOUS.model_dump()
    assert ask(open_app, "/rule", "POST").status_code == 200


def test_a_bad_key_is_told_even_where_none_is_needed(open_app: FastAPI) -> None:
    assert refused(open_app, "/look", headers={"Authorization": f"Bearer acc_key0_{'x' * 43}"}) == (401, UNKNOWN)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1"]
)
def test_a_name_of_somebody_elses_is_refused_without_keys(open_app: FastAPI, host: str) -> None:
    assert refused(open_app, "/look", host=host) == (
        403,
        f"without API keys this server answers only to localhost, 127.0.0.1 and [::1], got Host '{host}'. "
        "Make an API key (tuner keys create NAME) and send it as 'Authorization: Bearer acc_…'.",
    )


def test_with_a_key_any_name_will_do(open_app: FastAPI, app: FastAPI, ring: Keyring) -> None:
    for one in (open_app, app):
        assert ask(one, "/send", "POST", host="acc.example", headers=ring.bearer("admin") | {"Origin": "https://x"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1", "127.0.0.1:80", "127.0.0.2", "[::1]", "[::1]:8000"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", ":8000", "[::1", "::1", "a b", "localhost.", "0", "[::ffff:8.8.8.8]", "\x00", "127.1"])
def test_no_names_of_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://["},
    ],
)
def test_another_page_changes_nothing_without_keys(open_app: FastAPI, headers: Mapping[str, str]) -> None:
    assert refused(open_app, "/rule", "POST", headers=headers) == (
        403,
        "without API keys this server takes no changes from another website's page. "
        "Make an API key (tuner keys create NAME) and send it as 'Authorization: Bearer acc_…'.",
    )
    assert ask(open_app, "/look", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}])
def test_our_own_page_may_change(open_app: FastAPI, headers: Mapping[str, str]) -> None:
    assert ask(open_app, "/rule", "POST", headers=headers).status_code == 200


@pytest.mark.parametrize(("role", "statuses"), [("viewer", [200, 403, 403]), ("submitter", [200, 200, 403]), ("admin", [200, 200, 200])])
def test_a_session_opens_what_its_keys_role_includes(app: FastAPI, ring: Keyring, role: Role, statuses: list[int]) -> None:
    headers = ring.cookie(role) | OURS
    calls = [("/look", "GET"), ("/send", "POST"), ("/rule", "POST")]
    assert [ask(app, path, method, headers=headers).status_code for path, method in calls] == statuses
    assert ask(app, "/jobs/j-7", headers=headers).json() == ["j-7", next(iter(ring.store.rows))]


def test_a_cookie_that_proves_nothing_is_told(app: FastAPI, ring: Keyring) -> None:
    token = ring.token()
    for forged in ("", token[:-1], f"{token}A", f'"{token}"', "é"):
        assert refused(app, "/look", headers={"Cookie": f"{COOKIE}={forged}".encode()}) == (401, OVER)
    for other in (f"{COOKIE}x={token}", f"{COOKIE.upper()}={token}", token):
        assert refused(app, "/look", headers={"Cookie": other}) == (401, MISSING)


def test_a_session_is_over_with_its_key_from_the_next_request_on(app: FastAPI, ring: Keyring) -> None:
    mine, key_id = ring.cookie(), next(iter(ring.store.rows))
    assert ask(app, "/look", headers=mine).json()["id"] == key_id
    ring.keys.revoke(key_id)
    status, reason = refused(app, "/look", headers=mine)
    assert (status, "the API key 'ci' was revoked" in reason) == (401, True)


def test_of_two_cookies_the_first_counts(app: FastAPI, ring: Keyring) -> None:
    """Browsers send the one of the longest path first."""
    mine, other = ring.token("viewer"), ring.token("admin")
    cookies = f"theme=dark;  {COOKIE}={mine}; {COOKIE}={other}"
    assert ask(app, "/look", headers={"Cookie": cookies}).json()["role"] == "viewer"
    assert ask(app, "/look", headers=[("Cookie", f"{COOKIE}={other}"), ("Cookie", f"{COOKIE}={mine}")]).json()["role"] == "admin"


def test_a_key_counts_before_a_cookie_and_whatever_that_is(app: FastAPI, ring: Keyring) -> None:
    key = ring.bearer("submitter")
    for cookie in (ring.cookie("admin"), {"Cookie": f"{COOKIE}=forged"}):
        for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://x"}):
            assert ask(app, "/send", "POST", headers=cookie | key | headers).json()["role"] == "submitter"
        assert refused(app, "/look", headers=cookie | {"Authorization": "Bearer x"}) == (401, MALFORMED)


def test_a_cookie_counts_nothing_where_no_key_is_needed(open_app: FastAPI, ring: Keyring) -> None:
    for cookie in (ring.cookie("viewer"), {"Cookie": f"{COOKIE}=forged"}):
        assert ask(open_app, "/rule", "POST", headers=cookie).status_code == 200
        assert refused(open_app, "/look", host="evil.example", headers=cookie)[0] == 403
        assert refused(open_app, "/rule", "POST", headers=cookie | {"Origin": "https://evil.example"})[0] == 403


def test_another_page_may_look_by_cookie_but_change_nothing(app: FastAPI, ring: Keyring) -> None:
    mine = ring.cookie("admin")
    for headers in ({"Sec-Fetch-Site": "same-site"}, {"Origin": "http://localhost:3000"}, {}):
        status, reason = refused(app, "/rule", "POST", headers=mine | headers)
        assert (status, "does not come from a page of this server" in reason) == (403, True)
        assert ask(app, "/look", headers=mine | headers).status_code == 200
    assert ask(app, "/rule", "POST", host="acc.example:81", headers=mine | {"Origin": "https://acc.example:81"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "ours"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("https://Acc.Example", "acc.example", True),
        ("http://[::1]:80", "[::1]:80", True),
        ("http://localhost", "localhost:80", False),
        ("http://a/", "a", False),
        ("http://u@a", "a", False),
        ("a", "a", False),
        ("null", "", False),
        ("http://", "", False),
        ("", "", False),
        (None, "", False),
    ],
)
def test_an_origin_names_the_host_exactly(origin: str | None, host: str, ours: bool) -> None:
    assert is_from(origin, host) is ours


def test_what_is_public_is_so_for_its_method_alone() -> None:
    path = "/api/v1/session"
    assert [is_public(method, path) for method in ("POST", "DELETE", "GET", "ANY")] == [True, True, False, False]
    assert [is_public("GET", path) for path in ("/healthz", "/api/v1/jobs", "/metrics")] == [True, False, False]


def test_each_key_has_its_own_rate(ring: Keyring) -> None:
    now = [0.0]
    limited = services_with(keys=ring.keys, settings=Settings(requests_per_minute=2), buckets=Buckets(lambda: now[0]))
    app, first, second = application(limited), ring.bearer(), ring.bearer()
    assert [ask(app, "/look", headers=first).status_code for _ in range(3)] == [200, 200, 429]
    answer = ask(app, "/look", headers=first)
    assert (answer.headers["retry-after"], answer.json()["type"]) == ("30", "urn:problem-type:accutune:too-many")
    assert answer.json()["detail"] == "a key may make 2 requests per minute, and this one has. Wait 30 s, then go on more slowly."
    assert ask(app, "/look", headers=second).status_code == 200
    now[0] = 30.0
    assert [ask(app, "/look", headers=first).status_code for _ in range(2)] == [200, 429]


def test_a_bucket_fills_evenly_and_not_beyond_a_minute() -> None:
    now = [0.0]
    buckets = Buckets(lambda: now[0])

    def passed(tries: int) -> int:
        return sum(not buckets.take("k", 60) for _ in range(tries))

    assert passed(100) == 60
    now[0] = 10.0
    assert passed(100) == 10
    now[0] = 1e6
    assert passed(100) == 60
    assert buckets.take("k", 60) == 1
    assert buckets.take("other", 6) == 0


def test_no_limit_counts_nothing() -> None:
    buckets = Buckets(lambda: 0.0)
    assert {buckets.take("k", 0) for _ in range(1000)} == {0}


@pytest.mark.parametrize(
    ("caller", "owner"),
    [(Caller(id="a", name="x", role="submitter"), "a"), (Caller(id="b", name="x", role="admin"), "a"), (ANONYMOUS, None)],
)
def test_owners_and_admins_may_change(caller: Caller, owner: str | None) -> None:
    may_change(caller, owner)


@pytest.mark.parametrize(("id", "owner"), [("b", "a"), ("b", None), ("b", ""), (None, None)])
def test_others_may_not(id: str | None, owner: str | None) -> None:
    with pytest.raises(Forbidden, match="only its owner or an admin may change it"):
        may_change(Caller(id=id, name="x", role="submitter"), owner)


def test_every_route_has_a_guard_or_is_public(app: FastAPI) -> None:
    assert unguarded(app) == []


def test_a_route_without_a_guard_is_found(app: FastAPI) -> None:
    nested, inner = APIRouter(), APIRouter()
    inner.get("/naked/{x}")(lambda: 1)
    nested.include_router(inner, prefix="/deep")
    nested.get("/clothed", dependencies=[Depends(needs("viewer"))])(lambda: 1)
    app.include_router(nested, prefix="/api/v1")
    app.mount("/files", FastAPI())
    app.add_route("/plain", lambda _request: None)
    assert unguarded(app) == ["GET /api/v1/deep/naked/{x}", "ANY /files", "GET,HEAD /plain"]


def test_the_roles_of_routes_can_be_read(app: FastAPI) -> None:
    found = roles(app)
    assert (found["GET /look"], found["POST /send"], found["DELETE /api/v1/keys/{key_id:id}"]) == ("viewer", "submitter", "admin")
    assert "GET /healthz" not in found


def test_a_key_that_is_shown_is_not_logged(app: FastAPI, ring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = ring.text()
    ask(app, "/look", headers={"Authorization": f"Bearer {key}"})
    ask(app, "/look", headers={"Authorization": f"Bearer {key}x"})
    assert key.split("_", 2)[2] not in caplog.text
