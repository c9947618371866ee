"""The log: one line per record, ids from the context, and nothing that callers send."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from fastapi import FastAPI, Response

from server import logs
from server.logs import RequestLog, configure
from server.metrics import route_template
from tests.api_parts import ask

KEY = "acc_key0123456789abcdef_s3cret-part_of-it"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where logs go, in JSON; the set-up of before comes back afterwards."""
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    before = root.handlers[:], root.level, access.disabled
    made = io.StringIO()
    configure("json", "info", made)
    yield made
    (root.handlers[:], level, access.disabled) = before
    root.setLevel(level)


@pytest.fixture
def lines(stream: io.StringIO) -> Lines:
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def formatted(style: Literal["text", "json"], message: str, *args: object, **fields: object) -> str:
    record = logging.getLogger("accutune.x").makeRecord("accutune.x", logging.WARNING, "f", 1, message, args, None, extra=fields)
    record.created = 1795262400.25
    return logs.LogFormatter(style).format(record)


def test_a_line_as_json() -> None:
    assert json.loads(formatted("json", "job %s", "ended", job_id="j1", ms=1.5)) == {
        "time": "2026-11-21T12:00:00.250Z",
        "level": "warning",
        "event": "job ended",
        "logger": "accutune.x",
        "job_id": "j1",
        "ms": 1.5,
    }


def test_a_line_as_text() -> None:
    line = formatted("text", "job ended", job_id="j1", why='it "broke" down')
    assert line == '2026-11-21T12:00:00.250Z WARNING job ended logger=accutune.x job_id=j1 why="it \\"broke\\" down"'


def test_the_ids_come_from_the_context() -> None:
    tokens = logs.request_id.set("r1"), logs.job_id.set("j1"), logs.key_id.set("key1")
    try:
        entry = json.loads(formatted("json", "x"))
    finally:
        logs.request_id.reset(tokens[0]), logs.job_id.reset(tokens[1]), logs.key_id.reset(tokens[2])
    assert (entry["request_id"], entry["job_id"], entry["key_id"]) == ("r1", "j1", "key1")
    assert "request_id" not in json.loads(formatted("json", "x"))


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_line_cannot_be_forged(style: Literal["text", "json"]) -> None:
    line = formatted(style, "name %s", "a\n2026-11-21T12:00:00.250Z INFO all is well\x1b[2J", other="b\nc\r")
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_is_there_and_cannot_be_taken_for_lines(style: Literal["text", "json"]) -> None:
    formatter = logs.LogFormatter(style)
    try:
        raise ValueError("first\n2026-11-21 forged")
    except ValueError as error:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "broke", (), (type(error), error, error.__traceback__))
    first, *rest = formatter.format(record).splitlines()
    if style == "json":
        assert "ValueError: first\n2026-11-21 forged" in json.loads(first)["traceback"]
        assert rest == []
    else:
        assert rest[-1] == "    2026-11-21 forged"
        assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_key_never_stands_in_a_line(style: Literal["text", "json"]) -> None:
    line = formatted(style, f"got {KEY}", header=f"Bearer {KEY}")
    assert "s3cret" not in line
    assert "of-it" not in line
    assert line.count("acc_key0123456789abcdef_***") == 2


def test_the_log_is_set_up_once_for_all(stream: io.StringIO) -> None:
    other = io.StringIO()
    configure("text", "warning", other)
    logging.getLogger("uvicorn.error").warning("w")
    logging.getLogger("uvicorn.error").info("i")
    logging.getLogger("uvicorn.access").warning("GET /?key=x")
    assert stream.getvalue() == ""
    assert re.fullmatch(r"\S+ WARNING w logger=uvicorn.error\n", other.getvalue())


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/jobs/{job_id}")
    def job(job_id: str) -> str:
        logging.getLogger("accutune.t").info("inside")
        return job_id

    @app.get("/own")
    def own() -> Response:
        return Response("x", headers={"Cache-Control": "private", "Content-Security-Policy": "sandbox", "X-Request-ID": "theirs"})

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("boom")

    # Inside of what turns an error into an answer, so that none comes by here.
    ticks = iter(range(100))
    app.add_middleware(RequestLog, route_of=route_template, clock=lambda: float(next(ticks)))
    return app


def test_a_request_has_one_line_without_what_was_sent(lines: Lines) -> None:
    answer = ask(application(), f"/jobs/private-7?token={KEY}", headers={"Authorization": f"Bearer {KEY}", "X-Request-ID": "from.proxy_1"})
    inside, line = lines()
    assert (inside["event"], inside["request_id"]) == ("inside", "from.proxy_1")
    assert {name: value for name, value in line.items() if name != "time"} == {
        "level": "info",
        "event": "request",
        "logger": "accutune.http",
        "request_id": "from.proxy_1",
        "method": "GET",
        "route": "/jobs/{job_id}",
        "status": 200,
        "ms": 1000.0,
    }
    assert answer.headers["x-request-id"] == "from.proxy_1"


def test_a_request_without_an_answer_has_its_line_too(lines: Lines) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        ask(application(), "/boom")
    line = lines()[-1]
    assert (line["event"], line["route"]) == ("request", "/boom")
    assert "status" not in line


def test_an_unknown_address_is_not_logged(lines: Lines) -> None:
    ask(application(), "/secret-path")
    assert (lines()[-1]["route"], lines()[-1]["status"]) == ("unmatched", 404)
    assert "secret-path" not in json.dumps(lines())


@pytest.mark.parametrize("given", ["", "has space", "a" * 65, "semi;colon", "ü".encode().decode("latin-1"), "<script>"])
def test_an_unsafe_request_id_is_replaced(given: str) -> None:
    made = ask(application(), "/jobs/1", headers=[(b"x-request-id", given.encode("latin-1"))]).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", made)


def test_two_requests_have_two_ids() -> None:
    app = application()
    assert ask(app, "/jobs/1").headers["x-request-id"] != ask(app, "/jobs/1").headers["x-request-id"]


def test_every_answer_has_the_headers_that_keep_browsers_careful() -> None:
    for path in ("/jobs/1", "/nothing-here"):
        headers = ask(application(), path).headers
        assert {name: headers.get_list(name) for name in ("x-content-type-options", "referrer-policy", "cache-control")} == {
            "x-content-type-options": ["nosniff"],
            "referrer-policy": ["no-referrer"],
            "cache-control": ["no-store"],
        }
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_handler_may_say_otherwise_but_not_about_the_id() -> None:
    headers = ask(application(), "/own", headers={"X-Request-ID": "mine"}).headers
    assert (headers.get_list("cache-control"), headers.get_list("content-security-policy")) == (["private"], ["sandbox"])
    assert headers.get_list("x-request-id") == ["mine"]
