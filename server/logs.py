"""Structured logs on standard error, and the middleware that gives each request its id, its headers and its line.

What callers send is not logged: no bodies, no keys, no query values, and of the path only the route's template."""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
key_id: ContextVar[str | None] = ContextVar("key_id", default=None)
"""Of the caller's key: not secret, and the only way to tell callers apart in the log."""

CONTEXT = {"request_id": request_id, "job_id": job_id, "key_id": key_id}
# A safe id may be passed on from a proxy; anything else could forge lines of the log or headers.
SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
SECRET = re.compile(r"(acc_[a-z0-9]+_)[A-Za-z0-9_-]+")
PLAIN = re.compile(r"[^\s\"'=]+")

HEADERS: RawHeaders = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
"""What every answer has, unless its handler says otherwise."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

log = logging.getLogger("accutune.http")


class LogFormatter(logging.Formatter):
    """One line per record: time, level, event, logger, the ids of the context and the record's extra fields.

    As text, a traceback follows in indented lines, so that nothing a caller made up can pass for a line of the log."""

    def __init__(self, style: Literal["text", "json"]) -> None:
        super().__init__()
        self._json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: variable.get() for name, variable in CONTEXT.items()}
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        known = {name: value for name, value in fields.items() if value is not None}
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        line = self._as_json(record, known, trace) if self._json else self._as_text(record, known, trace)
        return SECRET.sub(r"\1***", line)

    def _as_json(self, record: logging.LogRecord, fields: dict[str, Any], trace: str) -> str:
        entry = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage(), "logger": record.name} | fields
        return json.dumps(entry | ({"traceback": trace} if trace else {}), default=str)

    def _as_text(self, record: logging.LogRecord, fields: dict[str, Any], trace: str) -> str:
        parts = [_time(record), f"{record.levelname:<7}", _printable(record.getMessage())]
        parts += [f"{name}={_value(value)}" for name, value in {"logger": record.name, **fields}.items()]
        lines = [" ".join(parts), *(f"    {_printable(line)}" for line in trace.splitlines())]
        return "\n".join(lines)


def configure(style: Literal["text", "json"] = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send everything that is logged in this process to `stream` (standard error), in place of what was set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LogFormatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        theirs = logging.getLogger(name)
        theirs.handlers.clear()
        theirs.propagate = True
    # It writes whole addresses, with their queries; RequestLog has a line of its own for each request.
    logging.getLogger("uvicorn.access").disabled = True
    for name in ("alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RequestLog:
    """ASGI middleware, the outermost: the request's id, the headers that every answer has, one line in the log.

    route_of: the template of the route that took the request, like /api/v1/jobs/{job_id}."""

    def __init__(self, app: App, route_of: Callable[[Scope], str], clock: Callable[[], float] = time.perf_counter) -> None:
        self._app, self._route_of, self._clock = app, route_of, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Never taken back: a request has its own context, and what the server says of it afterwards shall have the id too.
        this = _request_id(scope["headers"])
        request_id.set(this)
        began, status = self._clock(), None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_headers(message.get("headers", ()), this)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._line(scope, status, round(1000 * (self._clock() - began), 1))

    def _line(self, scope: Scope, status: int | None, milliseconds: float) -> None:
        """status: None where the caller went away before there was an answer."""
        level = logging.WARNING if status is not None and status >= 500 else logging.INFO
        extra = {"method": scope["method"], "route": self._route_of(scope), "status": status, "ms": milliseconds}
        log.log(level, "request", extra=extra)


_numbers = random.Random()
"""Of the program's own, seeded by the system once: an id is to be told from others, not to be kept secret, and asking the system for
each takes a fifth of the time of a small request."""


def _request_id(headers: RawHeaders) -> str:
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given.decode() if SAFE_ID.fullmatch(given) else f"{_numbers.getrandbits(64):016x}"


def _with_headers(headers: Any, this: str) -> RawHeaders:
    given = [(name, value) for name, value in headers if name.lower() != b"x-request-id"]
    names = {name.lower() for name, _ in given}
    return [*given, *(header for header in HEADERS if header[0] not in names), (b"x-request-id", this.encode())]


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    """The text on one line, without anything that moves a terminal's cursor."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _value(value: object) -> str:
    text = str(value)
    return text if PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)
