"""Whatever is sent to a real server that it cannot use: a 4xx with the way out, nothing left behind, and it goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from hostile import calls, jobs, uploads
from hostile.world import Case, World, open_world, world

CASES = [*uploads.CASES, *jobs.CASES, *calls.CASES]
SECONDS = 10.0
"""How long a server may take to clean up after somebody who is gone already."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("strict")) as made:
        yield made


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("open")) as made:
        yield made


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own() -> None:
    names = [case.name for case in (*CASES, *calls.OPEN_CASES)]
    assert len(names) >= 60
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_request_is_refused_and_leaves_nothing(strict: World, case: Case) -> None:
    refused(strict, case)


@pytest.mark.parametrize("case", calls.OPEN_CASES, ids=lambda case: case.name)
def test_a_server_without_keys_is_no_less_careful(open_to_all: World, case: Case) -> None:
    refused(open_to_all, case)


@pytest.mark.parametrize("path", ["/api/v1/models?name=net.onnx", "/api/v1/datasets?name=rows.npz", "/api/v1/jobs"])
def test_who_hangs_up_leaves_nothing(strict: World, path: str) -> None:
    """A Content-Length that is never reached: there is nobody to answer."""
    before = strict.left()
    kind = "application/json" if path.endswith("jobs") else "application/octet-stream"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: 100000\r\n"
    with socket.create_connection(("127.0.0.1", strict.server.port)) as wire:
        wire.sendall(f"{head}Authorization: Bearer {strict.keys['submitter']}\r\n\r\n".encode() + b"{" * 50_000)
        deadline = time.monotonic() + SECONDS
        while "jobs" not in path and strict.left() == before:  # The first bytes have arrived.
            assert time.monotonic() < deadline
    while strict.left() != before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert strict.well()


def refused(world: World, case: Case) -> None:
    before = world.left()
    answer = case.send(world)
    assert answer.status_code == case.status, answer.text[:2000]
    assert case.says and case.says in advice(answer)
    assert {name: answer.headers.get(name) for name in case.headers} == case.headers
    assert world.well()
    assert world.left() == before


def advice(answer: httpx.Response) -> str:
    """What a problem says, all of it; that it is one was checked."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["type"].startswith("urn:problem-type:accutune:") and problem["title"]
    assert problem.get("request_id") == answer.headers.get("x-request-id")
    assert len(answer.content) < 200_000
    if answer.status_code == 422:
        assert problem["errors"] and all(item["field"] and item["rule"] and item["remedy"] for item in problem["errors"])
    if answer.status_code == 429:
        assert int(answer.headers["retry-after"]) > 0
    return "\n".join([problem["detail"], *(f"{item['rule']}; {item['remedy']}" for item in problem.get("errors", ()))])
