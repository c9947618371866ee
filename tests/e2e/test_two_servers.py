"""Two servers on one PostgreSQL and one folder of artefacts: they share the queue, and one takes over from the other."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from running_server import RunningServer
from slow_jobs import slow_job
from tiny_jobs import tiny_job

LEASE_SECONDS = 2
TRIALS = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Pair = tuple[RunningServer, RunningServer]


@pytest.fixture
def pair(tmp_path: Path, postgres_url: str) -> Iterator[Pair]:
    shared = {"database_url": postgres_url, "artifacts_url": tmp_path / "artifacts", "lease_seconds": LEASE_SECONDS}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with RunningServer(tmp_path / "a", **shared) as first, RunningServer(tmp_path / "b", **shared) as second:
        yield first, second


def started(server: RunningServer) -> list[str]:
    """The jobs whose processes this server started, in order."""
    return re.findall(r"job started .*job_id=(\S+)", server.log())


def events(server: RunningServer, job_id: str) -> list[dict[str, Any]]:
    """All events of a job, read until it is settled."""
    text = httpx.get(f"{server.url}/api/v1/jobs/{job_id}/events", timeout=120).text
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def states(told: list[dict[str, Any]]) -> list[str]:
    return [event["state"] for event in told if event["kind"] == "state"]


def trials(told: list[dict[str, Any]]) -> list[int]:
    return [event["trial"]["number"] for event in told if event["kind"] == "trial"]


def whole(told: list[dict[str, Any]]) -> bool:
    return [event["seq"] for event in told] == list(range(1, len(told) + 1))


def finished(server: RunningServer, job_id: str) -> dict[int, dict[str, Any]]:
    items = server.get(f"/jobs/{job_id}/trials", limit=200)["items"]
    return {item["number"]: server.get(f"/jobs/{job_id}/trials/{item['number']}") for item in items if item["state"] == "complete"}


def runs(pair: Pair, job_id: str) -> Pair:
    """The server that runs a job, once it has finished two trials, and the other one."""
    deadline = time.monotonic() + 120
    while len(finished(pair[0], job_id)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return pair if job_id in started(pair[0]) else (pair[1], pair[0])


def test_servers_share_the_queue_and_tell_of_each_others_jobs(pair: Pair, tmp_path: Path) -> None:
    first, second = pair
    job = tiny_job(tmp_path).model_dump(mode="json", exclude_none=True)
    submitted = [first.submit(job) for _ in range(6)]
    for job_id in submitted:
        first.wait(job_id, "succeeded", seconds=240)
    ran = started(first), started(second)
    assert sorted(ran[0] + ran[1]) == sorted(submitted)
    assert all(ran)
    for ours, theirs in zip(ran, (second, first), strict=True):
        for job_id in ours:
            told = events(theirs, job_id)
            assert states(told) == ["queued", "running", "succeeded"]
            assert (whole(told), trials(told)) == (True, list(range(5)))
            best = httpx.get(f"{theirs.url}/api/v1/jobs/{job_id}/best", timeout=30)
            assert best.status_code == 200
            assert sorted(finished(theirs, job_id)) == list(range(5))


def test_when_a_server_dies_the_other_goes_on_with_its_job(pair: Pair, tmp_path: Path) -> None:
    job_id = pair[0].submit(slow_job(tmp_path, TRIALS).model_dump(mode="json", exclude_none=True))
    lost, other = runs(pair, job_id)
    kept = finished(other, job_id)
    lost.kill()
    assert lost.gone() == []
    other.wait(job_id, "succeeded", seconds=240)
    done = finished(other, job_id)
    assert {number: done.get(number) for number in kept} == kept
    assert sorted(done) == list(range(TRIALS))
    assert started(other) == [job_id]
    told = events(other, job_id)
    assert (whole(told), states(told)) == (True, ["queued", "running", "running", "succeeded"])
    assert len(set(trials(told))) == len(trials(told))
    lost.start()
    assert finished(lost, job_id) == done
    assert states(events(lost, job_id)) == ["queued", "running", "running", "succeeded"]


@pytest.mark.parametrize("whole_machine", [False, True])
def test_a_server_that_slept_through_its_lease_lets_go_of_its_job(pair: Pair, tmp_path: Path, whole_machine: bool) -> None:
    job_id = pair[0].submit(slow_job(tmp_path, TRIALS).model_dump(mode="json", exclude_none=True))
    asleep, other = runs(pair, job_id)
    kept = finished(other, job_id)
    assert asleep.process is not None
    sleeping = asleep.family() if whole_machine else [psutil.Process(asleep.process.pid)]
    for process in sleeping:
        process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while job_id not in started(other):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for process in sleeping:
        process.send_signal(signal.SIGCONT)
    while asleep.studies():
        assert time.monotonic() < deadline, other.log()[-2000:]
        time.sleep(0.1)
    assert other.wait(job_id, "running", "succeeded") in ("running", "succeeded")
    other.wait(job_id, "succeeded", seconds=240)
    done = finished(other, job_id)
    assert {number: done.get(number) for number in kept} == kept
    assert sorted(done) == list(range(TRIALS))
    told = events(asleep, job_id)
    assert (whole(told), states(told)) == (True, ["queued", "running", "running", "succeeded"])
    assert len(set(trials(told))) == len(trials(told))
    assert "job was taken over by another server and has ended here" in asleep.log()
    assert (started(asleep), started(other)) == ([job_id], [job_id])
