"""Cancelling over REST, in every phase of a job, and going on with what was finished.

How long each cancel took is printed: `.venv/bin/python -m pytest tests/e2e/test_cancel_resume.py -s`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from running_server import RunningServer
from slow_jobs import slow_job
from tiny_jobs import tiny_job

from tuner.job import Budget

TRIALS = 4
SECONDS = 10.0
"""Far beyond the two seconds that are promised: what is measured is printed, and a machine that is busy fails nothing."""


def follow(server: RunningServer, job_id: str, after: int, wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Read events as they come until one is wanted; its number."""
    with httpx.stream("GET", f"{server.url}/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(after)}, timeout=120) as answer:
        for line in answer.iter_lines():
            event = json.loads(line[5:]) if line.startswith("data:") else None
            if event is not None and wanted(event):
                return int(event["seq"])
    raise AssertionError(f"job {job_id} ended before it came to that")


def last_event(server: RunningServer, job_id: str, after: int) -> dict[str, Any]:
    """The last event of a settled job."""
    headers = {"Last-Event-ID": str(after)}
    text = httpx.get(f"{server.url}/api/v1/jobs/{job_id}/events", headers=headers, timeout=60).text
    event: dict[str, Any] = json.loads([line[5:] for line in text.splitlines() if line.startswith("data:")][-1])
    return event


def cancel(server: RunningServer, job_id: str, after: int) -> tuple[float, float, int]:
    """Cancel a running job: seconds by the server's clock until it was cancelled, seconds until its processes were gone, last event."""
    began = time.monotonic()
    asked = server.post(f"/jobs/{job_id}/cancel")
    assert (asked["state"], asked["cancel_requested"]) == ("running", True)
    server.wait(job_id, "cancelled", seconds=SECONDS)
    while workers(server) and time.monotonic() < began + SECONDS:
        time.sleep(0.02)
    gone = time.monotonic() - began
    assert workers(server) == []
    last = last_event(server, job_id, after)
    assert last["state"] == "cancelled"
    moments = [datetime.fromisoformat(text) for text in (asked["updated"], last["at"])]
    return (moments[1] - moments[0]).total_seconds(), gone, int(last["seq"])


def workers(server: RunningServer) -> list[str]:
    """The processes that run jobs, and those that these started."""
    found = []
    for process in server.family():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [command for command in found if "server.runner" in command or "tuner.worker" in command]


def finished(server: RunningServer, job_id: str) -> dict[int, dict[str, Any]]:
    items = server.get(f"/jobs/{job_id}/trials", limit=200)["items"]
    done = [item["number"] for item in items if item["state"] == "complete"]
    return {number: server.get(f"/jobs/{job_id}/trials/{number}") for number in done}


def refused(server: RunningServer, path: str) -> str:
    answer = httpx.post(f"{server.url}/api/v1{path}", timeout=30)
    assert answer.status_code == 409
    return str(answer.json()["detail"])


PHASES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "start": lambda event: event["state"] == "running",
    "prepare": lambda event: event["phase"] == "prepare",
    "baseline": lambda event: event["phase"] == "baseline",
    "calibrate": lambda event: event["phase"] == "calibrate",
    "sensitivity": lambda event: event["phase"] == "sensitivity",
    "search": lambda event: event["kind"] == "trial" and event["trial"]["number"] == 1,
    "certify": lambda event: event["phase"] == "certify",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_is_cancelled_in_every_phase_and_goes_on_with_what_it_has(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with RunningServer(tmp_path) as server:
        job_id = server.submit(slow_job(tmp_path, TRIALS).model_dump(mode="json", exclude_none=True))
        kept: dict[int, dict[str, Any]] = {}
        last = 0
        for phase, reached in PHASES.items():
            follow(server, job_id, last, reached)
            if phase == "search":
                time.sleep(0.3)  # In the midst of the next trial.
            state, gone, last = cancel(server, job_id, last)
            record_property(f"cancelled in {phase}", (state, gone))
            print(f"cancelled in {phase}: state after {state:.2f} s, processes gone after {gone:.2f} s")  # noqa: T201
            now = finished(server, job_id)
            assert {number: now.get(number) for number in kept} == kept
            kept = now
            resumed = server.post(f"/jobs/{job_id}/resume")
            assert (resumed["state"], resumed["cancel_requested"]) == ("queued", False)
        assert len(kept) == TRIALS
        server.wait(job_id, "succeeded", seconds=240)
        trials = server.get(f"/jobs/{job_id}/trials", limit=200)["items"]
        assert [trial["number"] for trial in trials] == list(range(TRIALS))
        assert finished(server, job_id) == kept
        assert httpx.get(f"{server.url}/api/v1/jobs/{job_id}/best", timeout=30).status_code == 200


@pytest.mark.slow
def test_what_waits_is_cancelled_at_once_and_what_does_not_fit_the_state_is_refused(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        job = slow_job(tmp_path, TRIALS).model_dump(mode="json", exclude_none=True)
        first, second = server.submit(job), server.submit(job)
        server.wait(first, "running")
        assert "Cancel it first" in refused(server, f"/jobs/{first}/resume")
        answer = httpx.post(f"{server.url}/api/v1/jobs/{second}/cancel", timeout=30)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        told = refused(server, f"/jobs/{second}/cancel")
        assert told == f"job '{second}' is cancelled already. Only a job that is queued, running or interrupted can be cancelled."
        cancel(server, first, 0)
        assert "is cancelled already" in refused(server, f"/jobs/{first}/cancel")
        server.post(f"/jobs/{second}/resume")
        server.wait(second, "running")
        events = httpx.get(f"{server.url}/api/v1/jobs/{first}/events", timeout=60).text
        assert [json.loads(line[5:])["state"] for line in events.splitlines() if line.startswith("data:")][-1] == "cancelled"


@pytest.mark.slow
def test_a_job_that_is_cancelled_and_resumed_over_and_over_ends_well(tmp_path: Path) -> None:
    """Faster than its process can notice: each resume must find the job its own, whatever its last process still does."""
    with RunningServer(tmp_path) as server:
        budget = Budget(trials=6, seconds=300, threads=1)
        job = tiny_job(tmp_path, budget=budget, early_stopping=False, strategy="random")
        job_id = server.submit(job.model_dump(mode="json", exclude_none=True))
        for pause in (0.0, 0.02, 0.3, 1.0, 2.2, 0.0):
            server.wait(job_id, "running")
            time.sleep(pause)
            server.post(f"/jobs/{job_id}/cancel")
            server.wait(job_id, "cancelled", seconds=SECONDS)
            server.post(f"/jobs/{job_id}/resume")
        server.wait(job_id, "succeeded")
        assert [trial["number"] for trial in server.get(f"/jobs/{job_id}/trials")["items"]] == list(range(6))
        assert len(server.studies()) <= 1


@pytest.mark.slow
def test_a_job_whose_server_is_killed_while_it_starts_does_no_work_for_nobody(tmp_path: Path) -> None:
    """In its first second a process loads libraries, and has no eyes for its parent."""
    with RunningServer(tmp_path) as server:
        job_id = server.submit(slow_job(tmp_path, TRIALS).model_dump(mode="json", exclude_none=True))
        deadline = time.monotonic() + 60
        while not server.studies():
            assert time.monotonic() < deadline
        server.kill()
        assert server.gone() == []
        server.start()
        assert server.wait(job_id, "running", seconds=30) == "running"
