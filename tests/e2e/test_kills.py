"""Kill -9 at random moments, start again: the job ends, and nothing that was finished is lost, changed or done twice.

More rounds by command: `KILL_ROUNDS=50 .venv/bin/python -m pytest tests/e2e/test_kills.py -s --timeout 3600`."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any

import httpx
import onnxruntime
import psutil
import pytest
from running_server import RunningServer
from tiny_jobs import tiny_job

from tuner.job import Budget, JobSpec

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
KILLS = 3
TRIALS = 14


def job_of(folder: Path, seed: int) -> JobSpec:
    return tiny_job(folder, budget=Budget(trials=TRIALS, seconds=300, threads=1), seed=seed, strategy="random", early_stopping=False)


def finished(server: RunningServer, job_id: str) -> dict[int, dict[str, Any]]:
    """The finished trials as the service tells them, whole."""
    found = {}
    for item in server.get(f"/jobs/{job_id}/trials", limit=200)["items"]:
        if item["state"] in ("complete", "stopped", "failed"):
            found[item["number"]] = server.get(f"/jobs/{job_id}/trials/{item['number']}")
    return found


def blobs(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in (folder / "data" / "artifacts").glob("??/*")}


def check_artefacts(server: RunningServer, job_id: str) -> None:
    """Every file that can be seen is whole."""
    for name, path in blobs(server.folder).items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    for item in server.get(f"/jobs/{job_id}/artifacts"):
        answer = httpx.get(f"{server.url}/api/v1/jobs/{job_id}/artifacts/{item['name']}", timeout=30)
        assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, item["sha256"])


def strike(server: RunningServer, chance: random.Random) -> None:
    """Kill the study, the server, or both; whatever was killed and is needed is started again."""
    studies = server.studies()
    target = chance.choice(["server", "study", "both"])
    if target != "server":
        for study in studies:
            try:
                study.kill()
            except psutil.NoSuchProcess:
                continue
    if target != "study":
        server.kill()
        server.start()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_at_random_moments_a_job_still_ends_well(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with RunningServer(tmp_path) as server:
        job_id = server.submit(job_of(tmp_path, seed).model_dump(mode="json", exclude_none=True))
        seen: dict[int, dict[str, Any]] = {}
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.05, 4.0))
            seen |= finished(server, job_id)
            strike(server, chance)
            check_artefacts(server, job_id)
            after = finished(server, job_id)
            assert {number: after.get(number) for number in seen} == seen
        server.wait(job_id, "succeeded", seconds=240)
        trials = finished(server, job_id)
        assert {number: trials[number] for number in seen} == seen
        assert sorted(trials) == list(range(len(trials)))
        assert len(trials) >= TRIALS
        digests = [trial["plan_digest"] for trial in trials.values()]
        assert len(set(digests)) == len(digests)
        check_artefacts(server, job_id)
        best = httpx.get(f"{server.url}/api/v1/jobs/{job_id}/best", timeout=30).content
        assert [node.name for node in onnxruntime.InferenceSession(best, providers=["CPUExecutionProvider"]).get_inputs()] == ["x"]
        assert server.stop() == 0
        assert server.gone() == []
