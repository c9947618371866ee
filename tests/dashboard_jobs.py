"""Jobs for tests of the dashboard: one that found something, one with thousands of trials, one that fails, one that is cancelled."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from running_server import RunningServer
from slow_jobs import slow_job
from sqlalchemy import insert, select, update
from tiny_jobs import dense, tiny_job

from search_spaces.domains import Scalar
from server.store.database import Database, sqlite_url
from server.store.models import JobRow, TrialRow
from server.store.trials import SqlTrialStore
from tuner.job import Budget, Constraint, JobSpec
from tuner.results import Interval, TrialResult
from tuner.wire import JobProgress, summarize

TRIALS = 10_000


def quick_job(folder: Path, trials: int = 6, **changes: Any) -> JobSpec:
    """A job of seconds whose target is met."""
    limit = Constraint(metric="top1", max_drop=0.05, confidence=0.9)
    budget = Budget(trials=trials, seconds=300, threads=1)
    given: dict[str, Any] = {"name": "quick", "constraints": (limit,), "objectives": ("size", "latency"), "strategy": "auto"}
    return tiny_job(folder, **given | {"budget": budget} | changes)


def long_job(folder: Path, trials: int = 500, name: str = "long") -> JobSpec:
    """A job of which a trial takes a second or two."""
    return slow_job(folder, trials).model_copy(update={"name": name})


def submitted(server: RunningServer, job: JobSpec) -> str:
    return server.submit(job.model_dump(mode="json", exclude_none=True))


def finished(server: RunningServer, folder: Path) -> str:
    """The id of a job that met its target."""
    job_id = submitted(server, quick_job(folder / "quick"))
    server.wait(job_id, "succeeded")
    return job_id


def failed(server: RunningServer, folder: Path) -> tuple[str, str]:
    """The ids of a job that failed, since its model was lost from the disk while it waited, and of the one before it: cancelled."""
    before = submitted(server, long_job(folder / "long"))
    job = quick_job(folder / "lost", model=dense(seed=9), name="lost")
    job_id = submitted(server, job)
    digest = hashlib.sha256(Path(job.model).read_bytes()).hexdigest()
    (server.folder / "data" / "artifacts" / digest[:2] / digest).unlink()
    server.wait(before, "running")
    server.post(f"/jobs/{before}/cancel")
    server.wait(before, "cancelled")
    server.wait(job_id, "failed")
    return job_id, before


def addresses(server: RunningServer, job_id: str) -> dict[str, str]:
    """Every page about a finished job, and those that are about none."""
    best = server.get(f"/jobs/{job_id}")["outcome"]["trial"]
    numbers = [trial["number"] for trial in server.get(f"/jobs/{job_id}/trials", state="complete")["items"]]
    other = next(number for number in numbers if number != best)
    return {
        "jobs": "/",
        "new": "/new",
        "job": f"/jobs/{job_id}",
        "trial": f"/jobs/{job_id}/trials/{best}",
        "compare": f"/jobs/{job_id}/compare?trial={best}&trial={other}",
        "layers": f"/jobs/{job_id}/layers",
        "system": "/system",
        "signin": "/signin",
    }


def grow(server: RunningServer, job_id: str, trials: int = TRIALS) -> None:
    """Give a finished job of a server with SQLite as many trials: its own, and others like them, written straight into the database."""
    database = Database(sqlite_url(server.folder / "data" / "accutune.db"))
    try:
        own = list(SqlTrialStore(database).trials(job_id))
        complete = [trial for trial in own if trial.speedup is not None]
        options = {layer: list(dict.fromkeys(trial.assignment[layer] for trial in complete)) for layer in complete[0].assignment}
        chance, now = random.Random(0), datetime.now(UTC)
        more = [_another(chance.choice(complete), number, options, chance) for number in range(len(own), trials)]
        with database.write("filling") as connection:
            connection.execute(insert(TrialRow), [_row(job_id, trial, now) for trial in more])
            told = connection.scalar(select(JobRow.progress).where(JobRow.job_id == job_id)) or "{}"
            progress = JobProgress.model_validate_json(told).model_copy(update={"trials": trials})
            connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(progress=progress.model_dump_json()))
    finally:
        database.close()


def _another(like: TrialResult, number: int, options: dict[str, list[Scalar]], chance: random.Random) -> TrialResult:
    """A trial with another plan, somewhat smaller or larger, faster or slower."""
    assert like.speedup is not None
    speed, size = chance.uniform(0.8, 1.2), chance.uniform(0.8, 1.2)
    measured = like.measurements["size_bytes"]
    return like.model_copy(
        update={
            "number": number,
            "plan_digest": f"{chance.getrandbits(256):064x}",
            "assignment": {layer: chance.choice(found) for layer, found in options.items()},
            "speedup": Interval(**{name: value * speed for name, value in like.speedup.model_dump().items()}),
            "measurements": like.measurements | {"size_bytes": measured.model_copy(update={"value": round(measured.value * size)})},
        }
    )


def _row(job_id: str, trial: TrialResult, moment: datetime) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "number": trial.number,
        "state": trial.state,
        "plan_digest": trial.plan_digest,
        "feasible": trial.feasible,
        "violation": trial.violation,
        "speedup": trial.speedup.value if trial.speedup else None,
        "size_bytes": trial.value("size_bytes"),
        "created_at": moment,
        "finished_at": moment,
        "summary": summarize(trial).model_dump_json(),
        "result": trial.model_dump_json(),
    }
