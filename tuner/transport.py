"""Talks HTTP to the service: errors as exceptions, attempts again where that is safe, event streams taken apart.

The API key travels in a header alone. Redirects are not followed: they could carry it to another server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from tuner.errors import AccutuneError, InputError
from tuner.wire import Problem, ProblemItem

Value = TypeVar("Value")
Body = TypeVar("Body", bound=BaseModel)
Content = Callable[[], Iterator[bytes]]
"""Gives the body from its beginning, at each attempt."""

PREFIX = "/api/v1"
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 8.0
LONGEST_WAIT_SECONDS = 60.0
"""A `Retry-After` beyond it is left to the caller."""
PASSING = (502, 503, 504)


class ServiceError(AccutuneError):
    """The service did not do what was asked. `status` is None where no answer came, `problem` where it was none of the service's."""

    passing = False
    """Whether the same request may well succeed a little later."""

    def __init__(
        self, message: str, *, status: int | None = None, problem: Problem | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.problem, self.retry_after = status, problem, retry_after


class BadRequest(ServiceError, InputError):
    """What was sent cannot be used (400, 413, 415, 422)."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        fields = [item.field for item in self.problem.errors] if self.problem else []
        self.field = fields[0] if fields and fields[0] != "request" else None


class Unauthorized(BadRequest):
    """No API key, or one that is not good (401)."""


class Forbidden(BadRequest):
    """The key may not do this (403)."""


class NotFound(BadRequest):
    """There is no such thing on this server (404)."""


class Conflict(ServiceError):
    """Not possible in the state that it is in (409)."""


class TooMany(ServiceError):
    """Too many requests or jobs (429); `retry_after` says in how many seconds there is room again."""

    passing = True


class Unavailable(ServiceError):
    """No answer, a connection that broke, or a server that is starting or stopping (502, 503, 504)."""

    passing = True


KINDS: Mapping[int, type[ServiceError]] = {
    **dict.fromkeys((400, 413, 415, 422), BadRequest),
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: TooMany,
    **dict.fromkeys(PASSING, Unavailable),
}


class Transport:
    """One server, one key. Safe to use from several threads."""

    def __init__(
        self, url: str, key: str | None, timeout: float, retries: int, sleep: Callable[[float], None], via: httpx.BaseTransport | None
    ) -> None:
        self.url, self.timeout, self.retries = checked_url(url), timeout, retries
        self._key, self._sleep = checked_key(key), sleep
        headers = {"User-Agent": "accutune"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        # A proxy of the environment is for other machines; this one's services are not reached through it.
        away = not _is_loopback(httpx.URL(self.url).host)
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=via, trust_env=away, follow_redirects=False)

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        again: bool = True,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Content | None = None,
        seconds: float | None = None,
    ) -> httpx.Response:
        """The whole answer of a request that succeeded. again: whether repeating it is harmless; seconds: how long the answer
        may take beyond the time-out."""

        def once() -> httpx.Response:
            with self.stream(method, path, params=params, headers=headers, content=content, seconds=seconds) as response:
                response.read()
                return response

        return self.repeated(once) if again else once()

    def fetch(self, body: type[Body], method: str, path: str, **request: Any) -> Body:
        """The answer as a typed value. Fields that a newer server adds are passed over."""
        response = self.call(method, path, **request)
        try:
            return body.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise self.strange(f"{method} {path}", error) from error

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Content | None = None,
        seconds: float | None = None,
    ) -> Iterator[httpx.Response]:
        """One attempt; the answer's body is read by the caller. Whatever fails, also while it is read, is a ServiceError."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        timeout = httpx.Timeout(self.timeout, read=self.timeout if seconds is None else max(seconds, self.timeout))
        try:
            with self._http.stream(
                method,
                f"{self.url}{PREFIX}{path}",
                params=given,
                headers=dict(headers or {}),
                content=content() if callable(content) else content,
                timeout=timeout,
            ) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response, f"{method} {path}")
                yield response
        except httpx.HTTPError as error:
            raise self._broken(error, timeout) from error

    def repeated(self, work: Callable[[], Value]) -> Value:
        """Do `work`, again after a pause where it failed for what passes."""
        failures = 0
        while True:
            try:
                return work()
            except ServiceError as error:
                self.pause(error, failures, self.retries)
                failures += 1

    def pause(self, error: ServiceError, failures: int, allowed: int) -> None:
        """Wait before the next attempt; raises `error` where there shall be none. failures: how many attempts failed before."""
        wait = min(FIRST_PAUSE_SECONDS * 2**failures, LONGEST_PAUSE_SECONDS) if error.retry_after is None else error.retry_after
        if not error.passing or failures >= allowed or wait > LONGEST_WAIT_SECONDS:
            raise error
        self._sleep(wait)

    def strange(self, what: str, error: Exception | None = None) -> ServiceError:
        """The complaint about an answer that is none of Accutune's."""
        why = f" ({' '.join(str(error).split())[:200]})" if error else ""
        return ServiceError(f"what {self.url} answered to {what} cannot be read{why}; is the URL that of a `tuner serve` of this version?")

    def _refusal(self, response: httpx.Response, what: str) -> ServiceError:
        status = response.status_code
        if response.is_redirect:
            where = response.headers.get("location", "another address")[:200]
            return ServiceError(f"{self.url} redirects to {self._clean(where)}; give that server's own URL", status=status)
        problem = _problem(response)
        text = _said(problem) if problem else f"{self.url} answered {status} {response.reason_phrase} to {what}"
        if status == 401 and self._key is None:
            text = f"{text.rstrip('.')}. Give a key with --key, ACCUTUNE_KEY or Client(key=…)"
        wait = response.headers.get("retry-after", "")
        kind = KINDS.get(status, ServiceError)
        return kind(self._clean(text), status=status, problem=problem, retry_after=float(wait) if re.fullmatch(r"\d{1,6}", wait) else None)

    def _broken(self, error: httpx.HTTPError, timeout: httpx.Timeout) -> ServiceError:
        reason = self._clean(str(error) or type(error).__name__)
        if isinstance(error, httpx.LocalProtocolError | httpx.DecodingError | httpx.UnsupportedProtocol):
            return ServiceError(f"the exchange with {self.url} went wrong: {reason}")
        if isinstance(error, httpx.ConnectError):
            return Unavailable(
                f"nothing answers at {self.url} ({reason}); start a server there with `tuner serve`, or give the URL of one that runs "
                "with --url, ACCUTUNE_URL or Client(url)"
            )
        if isinstance(error, httpx.TimeoutException):
            return Unavailable(f"{self.url} did not answer within {timeout.read:g} s; try again, or allow more time with Client(timeout=…)")
        return Unavailable(f"the connection to {self.url} broke ({reason}); try again")

    def _clean(self, text: str) -> str:
        """Another machine's words in one line, without what a terminal would act on, and without the key."""
        line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return line.replace(self._key, "…") if self._key else line


class SentEvent(NamedTuple):
    """One event of a stream, or with `data` None a sign of life."""

    data: str | None
    id: str = ""


def server_sent(chunks: Iterable[bytes]) -> Iterator[SentEvent]:
    """The events in a stream of bytes; one that is cut off is left out.

    Lines end at LF or CRLF only: texts in the data may hold other characters that count as line ends elsewhere."""
    rest, last = b"", ""
    data: list[str] = []
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in (line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line and data:
                yield SentEvent("\n".join(data), last)
                data = []
            elif line.startswith(":"):
                yield SentEvent(None)
            elif name == "data":
                data.append(value)
            elif name == "id":
                last = value


def checked_url(url: str) -> str:
    """The server's URL without what follows its path. InputError where it is none, or holds a password."""
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL("")
    if parsed.userinfo:
        raise InputError("the server's URL must not hold a user or password; give the API key with --key, ACCUTUNE_KEY or Client(key=…)")
    host = re.fullmatch(rb"[\w.:-]+", parsed.raw_host)
    if parsed.scheme not in ("http", "https") or host is None or parsed.query or parsed.fragment:
        raise InputError(f"the server's URL must look like http://127.0.0.1:8000, got '{url[:200]}'")
    return str(parsed).rstrip("/").removesuffix(PREFIX)


def checked_key(key: str | None) -> str | None:
    """The key without blanks around it. InputError for what cannot be one; the message does not show it."""
    key = key.strip() if key else None
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InputError("the API key must be one word of plain letters, digits and signs; copy it as `tuner keys create` showed it")
    return key or None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _problem(response: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(response.content, extra="ignore")
    except ValidationError:
        return None


def _said(problem: Problem) -> str:
    """The problem's detail, and what its errors add to it."""
    more = [_item(item) for item in problem.errors if item.rule not in problem.detail]
    return "; ".join([problem.detail, *more] if problem.detail else more) or problem.title


def _item(item: ProblemItem) -> str:
    got = f", got {item.value}" if item.value is not None else ""
    where = "" if item.rule.startswith(item.field) else f"{item.field}: "
    return f"{where}{item.rule.rstrip('.')}{got}. {item.remedy}".rstrip()
