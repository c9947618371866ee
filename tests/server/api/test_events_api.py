"""Event streams over a real web server and a real database."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from server.api import events
from server.api.guards import COOKIE
from server.api.hub import EventHub, StoredEvent
from server.api.services import Services
from tests.small_service import Server, end_job, job_at_work, small_app, small_service, tell
from tests.store_samples import add_job
from tuner.errors import AccutuneError
from tuner.wire import JobEvent, KeyRequest

PATH = "/jobs/job-1/events"


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with small_service(tmp_path) as parts:
        yield parts


@pytest.fixture
def server(services: Services) -> Iterator[Server]:
    with Server(small_app(services, events.router)) as running:
        yield running


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ids(server: Server, after: int = 0, stop_after: int | None = None, got: list[int] | None = None) -> list[int]:
    """The ids that a stream gives until it ends, or until that many have come. got: where they are to be seen meanwhile."""
    got = [] if got is None else got
    with httpx.stream("GET", server.url + PATH, headers={"Last-Event-ID": str(after)}, timeout=20) as response:
        for line in response.iter_lines():
            if line.startswith("id: "):
                got.append(int(line[4:]))
            if stop_after is not None and len(got) >= stop_after:
                break
    return got


def test_the_stream_of_a_settled_job(services: Services, server: Server) -> None:
    lease = job_at_work(services)
    tell(services, lease, "two\nlines and „signs“")
    end_job(services, lease)
    response = httpx.get(server.url + PATH)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    retry, *blocks = response.text.removesuffix("\n\n").split("\n\n")
    assert retry == "retry: 2000"
    kinds = ("state", "state", "message", "state")
    stored = services.events.after("job-1", 0)
    assert blocks == [f"id: {seq}\nevent: {kind}\ndata: {text}" for kind, (seq, text) in zip(kinds, stored, strict=True)]
    told = [JobEvent.model_validate_json(block.partition("data: ")[2]) for block in blocks]
    assert [event.state for event in told] == ["queued", "running", None, "failed"]
    assert told[2].message == "two\nlines and „signs“"


def test_who_has_everything_of_a_settled_job_gets_204(services: Services, server: Server) -> None:
    end_job(services, job_at_work(services))
    answers = [httpx.get(server.url + PATH, headers={"Last-Event-ID": seen}) for seen in ("3", "99")]
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
    assert httpx.get(f"{server.url}{PATH}?after=3").status_code == 204
    assert ids(server, 2) == [3]
    # A browser that reconnects sends its header beside the query that the page once wrote.
    assert httpx.get(f"{server.url}{PATH}?after=0", headers={"Last-Event-ID": "3"}).status_code == 204
    assert httpx.get(f"{server.url}{PATH}?after=x", headers={"Last-Event-ID": "3"}).status_code == 422


@pytest.mark.parametrize("name", ["Last-Event-ID", "after"])
def test_a_bad_id_is_refused(services: Services, server: Server, name: str) -> None:
    job_at_work(services)
    for value in ("abc", "-1", "1.0", "1e3", "", "1_0", "9" * 16, "\u0663"):
        given: dict[str, Any] = {"params": {name: value}} if name == "after" else {"headers": {name: value.encode()}}
        response = httpx.get(server.url + PATH, **given)
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json"), value
        (item,) = response.json()["errors"]
        assert item["field"] == name
        assert "must be the id of an event, a whole number from 0" in item["rule"]
        assert item["remedy"] == "Send the id of the last event that you received, or leave it out to get all of them."


def test_an_unknown_job(server: Server) -> None:
    response = httpx.get(server.url + PATH)
    assert response.status_code == 404
    assert "job 'job-1' is not known to this server" in response.json()["detail"]


def test_an_id_that_is_not_there_yet_holds_nothing_up(services: Services, server: Server) -> None:
    lease = job_at_work(services)
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(ids, server, 1000)
        until(lambda: services.hub.streams == 1)
        tell(services, lease, "third")
        end_job(services, lease)
        assert stream.result() == [3, 4]


def test_nothing_is_lost_and_nothing_comes_twice_however_often_one_reconnects(services: Services, server: Server) -> None:
    lease, total = job_at_work(services), 123

    def write(count: int) -> None:
        for number in range(count):
            tell(services, lease, f"message {number}")

    def follow(seed: int) -> list[int]:
        dice, got = random.Random(seed), [0]
        while got[-1] < total:
            got += ids(server, got[-1], dice.choice((1, 2, 5, 20, None)))
        return got[1:]

    with ThreadPoolExecutor(8) as pool:
        followers = [pool.submit(follow, seed) for seed in range(4)]
        for writer in [pool.submit(write, 40) for _ in range(3)]:
            writer.result()
        end_job(services, lease)
        for follower in followers:
            assert follower.result() == list(range(1, total + 1))
    until(lambda: services.hub.watched == 0)


def test_200_streams_at_once(services: Services, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = job_at_work(services)
    for number in range(8):
        tell(services, lease, f"early {number}")
    reads, after = [], services.events.after
    monkeypatch.setattr(services.events, "after", lambda *asked: reads.append(asked) or after(*asked))

    async def follow() -> list[int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
        return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]

    def work() -> None:
        until(lambda: services.hub.streams == 200)
        for number in range(20):
            tell(services, lease, f"late {number}")
        end_job(services, lease)

    async def everything() -> list[list[int]]:
        worker = asyncio.create_task(asyncio.to_thread(work))
        got = await asyncio.gather(*(follow() for _ in range(200)))
        await worker
        return list(got)

    threads = threading.active_count()
    assert asyncio.run(asyncio.wait_for(everything(), 60)) == [list(range(1, 32))] * 200
    assert len(reads) <= 22  # What was there before in one, and at most one for each that came later.
    # Those of the framework's pool (40), the hub's (4) and this test's: none for each stream.
    assert threading.active_count() - threads < 60
    until(lambda: services.hub.watched == 0)


def test_who_goes_away_leaves_nothing_behind(services: Services, server: Server) -> None:
    job_at_work(services)
    with httpx.Client(timeout=20) as client:
        request = client.build_request("GET", server.url + PATH)
        streams = [client.send(request, stream=True) for _ in range(5)]
        until(lambda: services.hub.streams == 5)
        for stream in streams[1:]:
            stream.close()
        until(lambda: services.hub.streams == 1)
    until(lambda: services.hub.watched == 0)


def test_the_server_can_stop_while_streams_are_open(services: Services) -> None:
    job_at_work(services)
    with Server(small_app(services, events.router)) as server, ThreadPoolExecutor(10) as pool:
        got: list[list[int]] = [[] for _ in range(10)]
        streams = [pool.submit(ids, server, got=mine) for mine in got]
        until(lambda: got == [[1, 2]] * 10)
        assert server.stop()
        # Each was brought to an end, not cut off: the client would have raised.
        assert [stream.result() for stream in streams] == [[1, 2]] * 10
        assert services.hub.watched == 0


def shown(services: Services, way: str) -> tuple[str, dict[str, str]]:
    """The id of a new key, and the header that shows it, or a session begun with it."""
    key = services.keys.make(KeyRequest(name="looks", role="viewer"))
    if way == "key":
        return key.id, {"Authorization": f"Bearer {key.key}"}
    return key.id, {"Cookie": f"{COOKIE}={services.sessions.make(key).token}"}


@pytest.mark.parametrize("way", ["key", "session"])
def test_a_key_or_a_session_is_needed(tmp_path: Path, way: str) -> None:
    with small_service(tmp_path, anonymous=False) as services, Server(small_app(services, events.router)) as server:
        end_job(services, job_at_work(services))
        key_id, headers = shown(services, way)
        assert httpx.get(server.url + PATH).status_code == 401
        assert httpx.get(server.url + PATH, headers=headers).status_code == 200
        services.keys.revoke(key_id)
        assert httpx.get(server.url + PATH, headers=headers).status_code == 401


@pytest.mark.parametrize(("way", "ended_by"), [("key", "revoking"), ("session", "revoking"), ("session", "signing out")])
def test_a_stream_ends_soon_after_what_opened_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, ended_by: str) -> None:
    monkeypatch.setattr(events, "RECHECK_SECONDS", 0.0)
    with small_service(tmp_path, anonymous=False) as services, Server(small_app(services, events.router)) as server:
        lease, (key_id, headers) = job_at_work(services), shown(services, way)
        got = []
        with httpx.stream("GET", server.url + PATH, headers=headers, timeout=20) as response:
            for line in response.iter_lines():
                if not line.startswith("id: "):
                    continue
                got.append(line)
                if len(got) == 2:
                    services.keys.revoke(key_id) if ended_by == "revoking" else services.sessions.end(headers["Cookie"].partition("=")[2])
                    tell(services, lease, "not for everybody")
        assert got == ["id: 1", "id: 2"]


class FakeHub:
    """Gives the same batches to everybody."""

    def __init__(self, *batches: list[StoredEvent]) -> None:
        self._batches = batches

    async def events(self, _job_id: str, _after: int) -> AsyncIterator[list[StoredEvent]]:
        for batch in self._batches:
            yield batch


def told(hub: FakeHub, check: Callable[[], object] | None, *moments: float) -> list[bytes]:
    """What a stream sends while the clock shows these moments."""

    async def all_of_it() -> list[bytes]:
        clock = iter(moments)
        return [chunk async for chunk in events.stream(cast("EventHub", hub), "a", 0, check, lambda: next(clock))]

    return asyncio.run(all_of_it())


def test_the_caller_is_checked_once_a_minute() -> None:
    calls = []

    def check() -> None:
        calls.append(True)
        if len(calls) == 2:
            raise AccutuneError("no longer")

    hub = FakeHub([], [(1, '{"seq":1,"kind":"trial"}')], [], [(2, "{}")])
    # Begin; 59.9 s: too early; 60 s: checked; 119 s: too early; 121 s: checked, and refused before anything is sent.
    got = told(hub, check, 0.0, 59.9, 60.0, 60.0, 119.0, 121.0)
    assert got == [events.RETRY, events.KEEP_ALIVE, b'id: 1\nevent: trial\ndata: {"seq":1,"kind":"trial"}\n\n', events.KEEP_ALIVE]
    assert len(calls) == 2


def test_without_a_key_there_is_nothing_to_check() -> None:
    assert told(FakeHub([], []), None, 0.0) == [events.RETRY, events.KEEP_ALIVE, events.KEEP_ALIVE]


def test_the_kind_is_the_event_s_own_and_nothing_from_its_texts(services: Services) -> None:
    lease = job_at_work(services)
    tell(services, lease, '"kind":"state"')
    assert events.kind_of(services.events.after("job-1", 2)[0][1]) == "message"
    assert events.kind_of("{}") == "message"


def test_the_stream_is_documented(services: Services) -> None:
    operation = small_app(services, events.router).openapi()["paths"]["/jobs/{job_id}/events"]["get"]
    assert {"200", "204", "401", "403", "404", "422"} <= set(operation["responses"])
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
    example = operation["responses"]["200"]["content"]["text/event-stream"]["example"]
    JobEvent.model_validate(json.loads(example.partition("data: ")[2].partition("\n")[0]))
    assert {parameter["name"] for parameter in operation["parameters"]} == {"job_id", "Last-Event-ID", "after"}


def test_a_job_that_waits_can_be_followed_until_it_is_cancelled(services: Services, server: Server) -> None:
    add_job(services.jobs, "job-1")
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(ids, server)
        until(lambda: services.hub.streams == 1)
        services.jobs.cancel("job-1")
        assert stream.result() == [1, 2]
