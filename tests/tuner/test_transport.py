"""What the client makes of answers, of none, and of servers that are busy."""

from __future__ import annotations

import httpx
import pytest

from tests.fake_service import KEY, URL, FakeService, problem
from tuner.client import BadRequest, Client, Conflict, Forbidden, NotFound, ServiceError, TooMany, Unauthorized, Unavailable
from tuner.errors import InputError
from tuner.transport import SentEvent, server_sent
from tuner.wire import ProblemItem


def refused(service: FakeService, kind: type[ServiceError] = ServiceError, **options: object) -> ServiceError:
    with service.client(**options) as client, pytest.raises(kind) as caught:
        client.job("job-0")
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind", "bad_input"),
    [
        *((status, BadRequest, True) for status in (400, 413, 415, 422)),
        (401, Unauthorized, True),
        (403, Forbidden, True),
        (404, NotFound, True),
        (409, Conflict, False),
        (429, TooMany, False),
        (500, ServiceError, False),
        (507, ServiceError, False),
        *((status, Unavailable, False) for status in (502, 503, 504)),
    ],
)
def test_each_status_has_its_exception_with_the_problem(status: int, kind: type[ServiceError], bad_input: bool) -> None:
    service = FakeService()
    service.next = [problem(status, "the reason and the way out")]
    error = refused(service, kind, retries=0)
    assert str(error) == "the reason and the way out"
    assert (error.status, error.problem.detail) == (status, "the reason and the way out")  # type: ignore[union-attr]
    assert isinstance(error, InputError) is bad_input


def test_errors_that_the_detail_does_not_tell_are_added() -> None:
    service = FakeService()
    told = ProblemItem(field="space", rule="unknown space 'int9'", remedy="Use int8.")
    more = ProblemItem(field="seed", value="-1", rule="seed must be 0 or more", remedy="Leave it out.")
    service.next = [problem(422, "unknown space 'int9'. Did you mean 'int8'?", told, more)]
    error = refused(service, BadRequest)
    assert str(error) == "unknown space 'int9'. Did you mean 'int8'?; seed must be 0 or more, got -1. Leave it out."
    assert isinstance(error, BadRequest)
    assert error.field == "space"
    service.next = [problem(422, "too short.", ProblemItem(field="request", rule="too short", remedy="Send more."))]
    assert str(nameless := refused(service, BadRequest)) == "too short."
    assert isinstance(nameless, BadRequest)
    assert nameless.field is None


def test_an_answer_of_something_else_is_no_riddle() -> None:
    service = FakeService()
    service.next = [httpx.Response(500, text="<html>oops"), httpx.Response(200, text="<html>welcome")]
    assert str(refused(service)) == f"{URL} answered 500 Internal Server Error to GET /jobs/job-0"
    assert str(refused(service)).endswith("is the URL that of a `tuner serve` of this version?")


def test_redirects_are_not_followed() -> None:
    service = FakeService()
    service.next = [httpx.Response(307, headers={"Location": "http://elsewhere/api"})]
    assert str(refused(service)) == f"{URL} redirects to http://elsewhere/api; give that server's own URL"
    assert service.seen == ["GET /jobs/job-0"]


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), problem(503, "starting"), problem(502, "")])
def test_what_passes_is_tried_again_after_doubling_pauses(fault: httpx.Response | Exception) -> None:
    service = FakeService()
    service.next = [fault, fault, fault, fault]
    refused(service, Unavailable)
    assert service.pauses == [0.25, 0.5, 1.0]
    assert service.seen == ["GET /jobs/job-0"] * 4


@pytest.mark.parametrize(("wait", "pauses", "requests"), [("7", [7.0], 2), ("3600", [], 1), ("Fri, 21 Nov 2026 10:00:00 GMT", [0.25], 2)])
def test_a_busy_server_says_how_long_to_wait(wait: str, pauses: list[float], requests: int) -> None:
    service = FakeService()
    service.next = [problem(429, "slower, please", **{"Retry-After": wait}), problem(404, "gone")]
    refused(service, NotFound if requests == 2 else TooMany)
    assert (service.pauses, len(service.seen)) == (pauses, requests)


def test_what_is_not_idempotent_is_sent_once() -> None:
    for name in ("cancel", "resume"):
        service = FakeService()
        service.next = [problem(503, "starting")]
        with service.client() as client, pytest.raises(Unavailable):
            getattr(client, name)("job-0")
        assert service.seen == [f"POST /jobs/job-0/{name}"]


def test_deleting_is_tried_again() -> None:
    service = FakeService()
    service.next = [httpx.ReadError("reset"), httpx.Response(204)]
    with service.client() as client:
        client.delete("job-0")
    assert service.seen == ["DELETE /jobs/job-0"] * 2


def test_nothing_at_the_address_names_it_and_the_command() -> None:
    service = FakeService()
    service.next = [httpx.ConnectError("[Errno 111] Connection refused")]
    text = str(refused(service, Unavailable, retries=0))
    assert text == (
        f"nothing answers at {URL} ([Errno 111] Connection refused); start a server there with `tuner serve`, or give the URL of one that "
        "runs with --url, ACCUTUNE_URL or Client(url)"
    )


def test_the_key_travels_in_a_header_and_shows_nowhere() -> None:
    service = FakeService()
    service.next = [problem(401, f"the key {KEY} is revoked\x1b[2J\nask for another")]
    error = refused(service, Unauthorized)
    assert str(error) == "the key … is revoked [2J ask for another"
    (request,) = service.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(request.url)
    assert repr(service.client()) == f"Client('{URL}')"


def test_without_a_key_the_message_says_where_to_put_one() -> None:
    with Client(URL, transport=httpx.MockTransport(FakeService())) as client, pytest.raises(Unauthorized) as caught:
        client.job("job-0")
    assert str(caught.value) == "no API key was given. Give a key with --key, ACCUTUNE_KEY or Client(key=…)"


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://host/?q=1", "http://[", "/tmp"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Client(url)
    assert str(caught.value) == f"the server's URL must look like http://127.0.0.1:8000, got '{url}'"


def test_a_url_or_key_that_could_leak_is_not_repeated() -> None:
    with pytest.raises(InputError, match="must not hold a user or password") as caught:
        Client("https://me:hush@host")
    assert "hush" not in str(caught.value)
    with pytest.raises(InputError, match="must be one word of plain letters") as caught:
        Client(URL, "hush hush")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host:1/behind", "http://host:1/behind/", "http://host:1/behind/api/v1"])
def test_urls_may_have_a_path(url: str) -> None:
    assert Client(url).url == "http://host:1/behind"


def test_events_are_taken_apart_wherever_the_bytes_are_cut() -> None:
    first = 'retry: 1\r\n\r\n: alive\n\nid: 1\nevent: trial\ndata: {"a":\ndata: "x\u2028y\x85"}\n\n'
    text = f"{first}id:2\ndata:b\r\n\r\nid: 3\ndata: cut".encode()
    expected = [SentEvent(None), SentEvent('{"a":\n"x\u2028y\x85"}', "1"), SentEvent("b", "2")]
    for size in (1, 2, 3, 7, len(text)):
        assert list(server_sent(text[start : start + size] for start in range(0, len(text), size))) == expected
