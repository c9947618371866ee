"""Requests that must be refused for what they ask, how they ask it, or who asks."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from hostile.world import Case, World, answered

LISTED = "All addresses are listed in /api/v1/openapi.json"
NEW_KEY = "Ask an admin of this server for a new one"
CORRECT = "Correct this and send the request again"
SUBMITTER_NEEDED = "Use another key, or ask an admin for one"
OWNER_NEEDED = "Ask one of them, or send your own"
LOOPBACK = "Make an API key (tuner keys create NAME)"


def get(name: str, path: str, says: str, status: int = 422, headers: dict[str, str] | None = None) -> Case:
    """path: may have {done} and the like in it."""
    return Case(name, status, says, lambda world: world.send("GET", path.format_map(world.ids), headers=headers or {}))


def asked(name: str, method: str, path: str, says: str, status: int, key: str | None = "submitter", **content: Any) -> Case:
    return Case(name, status, says, lambda world: world.send(method, path.format_map(world.ids), key, **content))


def raw(name: str, path: str, says: str = LISTED, status: int = 404) -> Case:
    """A path that goes over the wire as it stands, not tidied up by a client."""
    return Case(f"path: {name}", status, says, lambda world: world.raw(f"GET {path} HTTP/1.1"))


PATHS = [
    raw("upward", "/api/v1/jobs/../../../../etc/passwd"),
    raw("encoded once", "/api/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    raw("double encoding", "/api/v1/models/%252e%252e%252fetc%252fpasswd"),
    raw("overlong UTF-8", "/api/v1/models/%c0%ae%c0%ae%c0%afetc"),
    raw("null byte", "/api/v1/models/mdl-0%00.onnx"),
    raw("line break", "/api/v1/models/mdl-0%0d%0aX-Evil:1"),
    raw("backslashes", "/api/v1/models/..%5c..%5cetc"),
    raw("an endless id", f"/api/v1/models/{'m' * 20_000}"),
    raw("two slashes", "//api/v1/jobs"),
    raw("a slash at the end", "/api/v1/jobs/"),
    raw("a URL", "/api/v1/models/http:%2f%2f169.254.169.254%2f"),
    raw("digits of another script", "/api/v1/jobs/x/trials/%d9%a1"),
    raw("a number that no column holds", "/api/v1/jobs/x/trials/99999999999999999999"),
    get("path: unknown route", "/nothing", LISTED, 404),
    get("path: the code's own files", "/../../server/settings.py", LISTED, 404),
    get("artefact: leads upward", "/jobs/{done}/artifacts/..%2f..%2faccutune.db", LISTED, 404),
    get("artefact: double encoding", "/jobs/{done}/artifacts/%252e%252e%252faccutune.db", LISTED, 404),
    get("artefact: unknown", "/jobs/{done}/artifacts/accutune.db", "/artifacts lists those there are", 404),
    get("id: unknown job", "/jobs/20200101-000000-00000", "GET /api/v1/jobs", 404),
    get("id: unknown model", "/models/mdl-0000000000000000", "GET /api/v1/models", 404),
    get("id: a model among datasets", "/datasets/{model}", "GET /api/v1/datasets", 404),
    get("id: a job among models", "/models/{done}", "GET /api/v1/models", 404),
    get("id: SQL", "/jobs/x'%20OR%20'1'='1", LISTED, 404),
    get("trial: unknown", "/jobs/{done}/trials/5", "/trials", 404),
    get("best: of a job that runs", "/jobs/{running}/best", "Follow it: GET /api/v1/jobs/", 409),
    get("report: of a job that left none", "/jobs/{done}/report", "/artifacts lists what there is", 404),
]

QUERIES = [
    get("cursor: foreign", "/jobs/{done}/trials?cursor=bm90LW91cnM", "Leave it out to begin at the first page"),
    get("cursor: not base64", "/models?cursor=a-b", "Leave it out to begin at the first page"),
    get("cursor: SQL", "/jobs?cursor=' OR 1=1 --", CORRECT),
    get("cursor: very long", f"/models?cursor={'a' * 5000}", CORRECT),
    get("cursor: nested JSON", "/models?cursor=W1tbW1tbW1tbW1tbW11dXV1dXV1dXV1dXV0", "Leave it out to begin at the first page"),
    get("limit: 0", "/jobs?limit=0", "greater than or equal to 1"),
    get("limit: a million", "/jobs?limit=1000000", "less than or equal to 200"),
    get("limit: a word", "/jobs/{done}/trials?limit=all", "valid integer"),
    get("sort: unknown", "/jobs/{done}/trials?sort=__dict__", "'number', 'violation', 'speedup' or 'size_bytes'"),
    get("order: unknown", "/jobs/{done}/trials?order=up", "'asc' or 'desc'"),
    get("state: unknown", "/jobs?state=lost", "'queued'"),
    get("name: markup as filter", "/jobs?name=<script>", CORRECT),
    get("sha256: of another length", "/models?sha256=abc", CORRECT),
    get("after: not a number", "/jobs/{running}/events?after=x", "or leave it out to get all of them"),
    get("Last-Event-ID: a word", "/jobs/{running}/events", "or leave it out to get all of them", headers={"Last-Event-ID": "last"}),
    get("Last-Event-ID: below zero", "/jobs/{running}/events", "or leave it out to get all of them", headers={"Last-Event-ID": "-1"}),
    get("Last-Event-ID: 30 digits", "/jobs/{running}/events", "or leave it out to get all of them", headers={"Last-Event-ID": "9" * 30}),
    get("Range: behind the end", "/jobs/{done}/best", "Ask for a part of that, or for the whole file", 416, {"Range": "bytes=999-"}),
    get("Range: the last none", "/jobs/{done}/best", "Ask for a part of that, or for the whole file", 416, {"Range": "bytes=-0"}),
]

METHODS = [
    asked("method: PUT", "PUT", "/jobs/{done}", "only DELETE, GET. See /api/v1/openapi.json", 405),
    asked("method: PATCH", "PATCH", "/models", "only GET, POST. See /api/v1/openapi.json", 405),
    asked("method: TRACE", "TRACE", "/jobs", "only GET, POST. See /api/v1/openapi.json", 405),
    asked("method: of another protocol", "PROPFIND", "/spaces", "only GET. See /api/v1/openapi.json", 405),
    asked("method: cancel by GET", "GET", "/jobs/{running}/cancel", "only POST. See /api/v1/openapi.json", 405),
    asked(
        "job: cancel a finished one",
        "POST",
        "/jobs/{done}/cancel",
        "Only a job that is queued, running or interrupted can be cancelled",
        409,
        "owner",
    ),
    asked(
        "job: resume a finished one",
        "POST",
        "/jobs/{done}/resume",
        "Only a job that was cancelled, failed or interrupted can be resumed",
        409,
        "owner",
    ),
    asked("job: delete one that runs", "DELETE", "/jobs/{running}", "Cancel it first: POST /api/v1/jobs/", 409, "owner"),
    asked("model: delete one that a job needs", "DELETE", "/models/{their model}", "DELETE", 409, "owner"),
]

OTHERS = [
    asked("another's job: cancel", "POST", "/jobs/{running}/cancel", OWNER_NEEDED, 403),
    asked("another's job: resume", "POST", "/jobs/{done}/resume", OWNER_NEEDED, 403),
    asked("another's job: delete", "DELETE", "/jobs/{done}", OWNER_NEEDED, 403),
    asked("another's model: delete", "DELETE", "/models/{their model}", OWNER_NEEDED, 403),
    asked("another's data: delete", "DELETE", "/datasets/{their rows}", OWNER_NEEDED, 403),
    asked("viewer: submits", "POST", "/jobs", SUBMITTER_NEEDED, 403, "viewer", json={}),
    asked("viewer: uploads", "POST", "/models?name=net.onnx", SUBMITTER_NEEDED, 403, "viewer", content=b"\x08"),
    asked("viewer: cancels", "POST", "/jobs/{running}/cancel", SUBMITTER_NEEDED, 403, "viewer"),
    asked("submitter: makes keys", "POST", "/keys", SUBMITTER_NEEDED, 403, json={"name": "me", "role": "admin"}),
    asked("submitter: lists keys", "GET", "/keys", SUBMITTER_NEEDED, 403),
    asked("submitter: revokes keys", "DELETE", "/keys/key0000000000000000", SUBMITTER_NEEDED, 403),
    asked("admin: key for no role", "POST", "/keys", "'viewer', 'submitter' or 'admin'", 422, "admin", json={"name": "a", "role": "x"}),
    asked("admin: key that is good for ever and ever", "POST", "/keys", "3650", 422, "admin", json={"name": "a", "days": 10**9}),
    asked("admin: key with markup as name", "POST", "/keys", CORRECT, 422, "admin", json={"name": "<b>"}),
    asked("admin: unknown key revoked", "DELETE", "/keys/key0000000000000000", "tuner keys list", 404, "admin"),
]


def shown(name: str, header: str | None, says: str) -> Case:
    headers = {} if header is None else {"Authorization": header}
    wants = {"WWW-Authenticate": "Bearer"}
    return Case(f"key: {name}", 401, says, lambda world: world.send("GET", "/jobs", None, headers=headers), wants)


def held(name: str, key: str, says: str) -> Case:
    wants = {"WWW-Authenticate": "Bearer"}
    return Case(f"key: {name}", 401, says, lambda world: world.submit(world.job(), key), wants)


def wrong_secret(world: World) -> httpx.Response:
    key = world.keys["admin"]
    return world.send("GET", "/keys", None, headers={"Authorization": f"Bearer {key[:-4]}AAAA"})


def too_many(world: World) -> httpx.Response:
    """One key asks until it is stopped."""
    for _ in range(2000):
        answer = world.send("GET", "/passes", "hasty")
        if not answer.is_success:
            return answer
    return answer


MALFORMED = "It must read 'Bearer acc_…', with the whole key as it was shown"
WHOLE = "Check that it was copied whole and belongs to this server"
KEYS = [
    shown("missing", None, "who runs this server makes keys with: tuner keys create NAME"),
    held("expired", "expired", NEW_KEY),
    held("revoked", "revoked", NEW_KEY),
    shown("of another scheme", "Basic YWRtaW46YWRtaW4=", MALFORMED),
    shown("empty", "Bearer", MALFORMED),
    shown("not ours", "Bearer sk-1234567890", MALFORMED),
    shown("unknown", "Bearer acc_key0000000000000000_" + "A" * 43, WHOLE),
    shown("SQL", "Bearer acc_'OR'1'='1_x", MALFORMED),
    shown("very long", "Bearer acc_" + "a" * 10_000, MALFORMED),
    Case("key: a good id with another secret", 401, WHOLE, wrong_secret),
    Case("limit: too many requests", 429, "then go on more slowly", too_many),
    Case("limit: too many jobs", 429, "Wait until one is finished, or cancel one", lambda world: world.submit(world.job(), "owner")),
    Case(
        "limit: too much stored",
        413,
        "Delete models or data that you no longer need",
        lambda world: world.upload("models", b"\x08" * 100, "net.onnx", "hoarder"),
    ),
]

SIGN_IN = "Sign in again with an API key"
OWN_PAGE = "Open this server's address in the browser and do it there"
OURS = {"Sec-Fetch-Site": "same-origin"}


def cookie(name: str, whose: str, says: str, forge: Callable[[str], str] = str) -> Case:
    """A look by a session that is none, or no longer."""

    def send(world: World) -> httpx.Response:
        return world.send("GET", "/jobs", None, headers={"Cookie": f"accutune_session={forge(world.sessions[whose])}"})

    return Case(f"session: {name}", 401, says, send, {"WWW-Authenticate": "Bearer"})


def elsewhere(name: str, method: str, path: str, says: str = OWN_PAGE, whose: str = "admin", /, **headers: str) -> Case:
    """A change by an admin's session that another page makes the browser send."""

    def send(world: World) -> httpx.Response:
        sent = {"Cookie": f"accutune_session={world.sessions[whose]}"} | headers
        content = {"json": {"key": world.keys["viewer"]}} if path == "/session" and method == "POST" else {}
        return world.send(method, path.format_map(world.ids), None, headers=sent, **content)

    return Case(f"session: {name}", 403, says, send)


def entry(name: str, key: str, says: str) -> Case:
    return Case(f"sign-in: {name}", 401, says, lambda world: world.send("POST", "/session", None, json={"key": world.keys.get(key, key)}))


SESSIONS = [
    cookie("forged", "admin", SIGN_IN, lambda token: "A" * len(token)),
    cookie("truncated", "admin", SIGN_IN, lambda token: token[:-1]),
    cookie("its hash", "admin", SIGN_IN, lambda token: hashlib.sha256(token.encode()).hexdigest()),
    cookie("empty", "admin", SIGN_IN, lambda _: ""),
    cookie("SQL", "admin", SIGN_IN, lambda _: "'OR'1'='1"),
    cookie("very long", "admin", SIGN_IN, lambda token: token * 200),
    cookie("used again after it was signed out", "ended", SIGN_IN),
    cookie("twelve hours old", "old", SIGN_IN),
    cookie("of a revoked key", "revoked", NEW_KEY),
    cookie("of an expired key", "expired", SIGN_IN),
    elsewhere("another site makes a key", "POST", "/keys", **{"Sec-Fetch-Site": "cross-site"}),
    elsewhere("another site submits, by an older browser", "POST", "/jobs", Origin="https://attacker.example"),
    elsewhere("a program of this machine deletes", "DELETE", "/jobs/{done}", **{"Sec-Fetch-Site": "same-site"}),
    elsewhere("nobody says whose page uploads", "POST", "/models?name=net.onnx"),
    elsewhere("another site signs out", "DELETE", "/session", Origin="null"),
    elsewhere("another site signs in as somebody else", "POST", "/session", **{"Sec-Fetch-Site": "cross-site"}),
    elsewhere("a viewer uploads", "POST", "/models?name=net.onnx", SUBMITTER_NEEDED, "viewer", **OURS),
    elsewhere("a submitter lists keys", "GET", "/keys", SUBMITTER_NEEDED, "submitter"),
    entry("no key", "", MALFORMED),
    entry("a wrong key", "acc_key0000000000000000_" + "A" * 43, WHOLE),
    entry("a revoked key", "revoked", NEW_KEY),
    entry("an expired key", "expired", NEW_KEY),
    asked("sign-in: too long", "POST", "/session", "1,024 bytes at most", 413, None, json={"key": "acc_" + "a" * 2000}),
    asked("sign-in: a form", "POST", "/session", '{"key": "acc_…"}', 415, None, data={"key": "acc_a_b"}),
]

CASES = [*PATHS, *QUERIES, *METHODS, *OTHERS, *KEYS, *SESSIONS]


def strange(name: str, method: str, path: str, says: str = LOOPBACK, **headers: str) -> Case:
    """What a page of some website makes a browser on this machine send to a server without keys."""
    return Case(name, 403, says, lambda world: world.send(method, path, None, headers=headers))


OPEN_CASES = [
    strange("host: a name of the website's own that leads here", "GET", "/jobs", Host="attacker.example"),
    strange("host: another machine", "GET", "/jobs", Host="192.168.1.7:8000"),
    strange("host: like loopback", "GET", "/jobs", Host="127.0.0.1.attacker.example"),
    strange("host: localhost as user", "GET", "/jobs", Host="localhost@attacker.example"),
    strange("host: empty", "GET", "/jobs", Host=""),
    strange("origin: another site's page uploads", "POST", "/models?name=net.onnx", Origin="https://attacker.example"),
    strange("origin: another port of this machine", "POST", "/jobs", Origin="http://127.0.0.1:1"),
    strange("origin: null", "POST", "/jobs", Origin="null"),
    strange("origin: a page deletes", "DELETE", "/models/mdl-0000000000000000", Origin="https://attacker.example"),
    strange("origin: the browser says cross-site", "POST", "/keys", **{"Sec-Fetch-Site": "cross-site"}),
    strange("host: a name that leads here, with a cookie", "GET", "/jobs", Host="attacker.example", Cookie="accutune_session=a"),
    strange("host: a name that leads here signs in", "POST", "/session", Host="attacker.example"),
    strange("origin: with a cookie", "POST", "/jobs", Origin="https://attacker.example", Cookie="accutune_session=a"),
    strange("origin: no address", "POST", "/jobs", Origin="http://["),
    asked("sign-in: where no key is needed", "POST", "/session", "Go on without signing in", 409, None, json={"key": "acc_a_b"}),
]


def head(name: str, sent: bytes, status: int = 400, says: str = "Check the client, and any proxy that it goes through") -> Case:
    """What is hardly HTTP, or too much of it."""

    def send(world: World) -> httpx.Response:
        with socket.create_connection(("127.0.0.1", world.server.port), timeout=20) as wire:
            with suppress(ConnectionError):  # The answer comes before all was sent.
                wire.sendall(sent)
            return answered(wire)

    return Case(f"head: {name}", status, says, send, {"Connection": "close"})


POST, GET, HOST = b"POST /api/v1/jobs HTTP/1.1\r\n", b"GET /api/v1/jobs HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n"
SHORTER = "send fewer or shorter ones"
HEADS = [
    head("TLS on a port without", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
    head("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    head("a method that is none", b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n"),
    head("a length that is no number", POST + HOST + b"Content-Length: ten\r\n\r\n"),
    head("a length below zero", POST + HOST + b"Content-Length: -5\r\n\r\n"),
    head("a length of 30 digits", POST + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n"),
    head("two lengths", POST + HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"),
    head("a length and chunks", POST + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    head("a null byte in a field", GET + HOST + b"X-A: a\0b\r\n\r\n"),
    head("a null byte in the address", b"GET /api/v1/jobs\0 HTTP/1.1\r\n" + HOST + b"\r\n"),
    head("one field of 10 MB", GET + HOST + b"X-A: " + b"a" * 10**7 + b"\r\n\r\n", 431, SHORTER),
    head("a field without end", GET + HOST + b"X-A: " + b"a" * 10**6, 431, SHORTER),
    head("20,000 fields", GET + HOST + b"X-A: aaaa\r\n" * 20_000 + b"\r\n", 431, SHORTER),
    head("an address of 10 MB", b"GET /" + b"a" * 10**7 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431, SHORTER),
]
OPEN_CASES += HEADS
