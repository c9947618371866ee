"""Values for tests of the stores, and what SQLite intends to do for a statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, event, func, select, update

from server.store.database import Database
from server.store.events import EventReader
from server.store.files import FileStore
from server.store.jobs import Claim, JobStore
from server.store.models import Base, JobRow
from server.store.trials import SqlTrialStore
from tuner.job import Constraint, DataRef, DataSpec, JobSpec
from tuner.results import Baseline, Drop, Interval, JobResult, Measurement, Outcome, TrialResult, TrialState, Verdict
from tuner.wire import ArrayView, ArtifactView, DataFacts, JobEvent, JobView, LayerView, ModelFacts, Page, TensorView

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Ticking:
    """A clock that is one second later at every look, and that can be put forward."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


def spec(name: str = "job", model: str = "mdl-1", data: str = "dat-1") -> JobSpec:
    data_spec = DataSpec(validation=DataRef(file=data, rows=(0, 50)), holdout=DataRef(file=data, rows=(50, 100)))
    return JobSpec(name=name, model=model, data=data_spec, constraints=(Constraint(metric="top1", max_drop=0.01),))


def add_job(jobs: JobStore, job_id: str, name: str = "job", model: str = "mdl-1", owner: str | None = None) -> str:
    return jobs.submit(job_id, spec(name, model), owner=owner, files=())[0]


def page_of(jobs: JobStore, **given: Any) -> Page[JobView]:
    """A page of the list of jobs."""
    return Page[JobView].model_validate_json(jobs.page(**{"cursor": None, "limit": 50} | given))


def model_facts(layers: int = 2) -> ModelFacts:
    tensor = TensorView(name="x", dtype="float32", shape=(None, 16))
    names = [f"fc{index}" for index in range(layers)]
    return ModelFacts(
        opset=17,
        parameters=99,
        macs=None,
        inputs=(tensor,),
        outputs=(tensor,),
        layers=tuple(
            LayerView(name=name, op="Gemm", weight_shape=(16, 4), output_shape=(None, 4), params=64, macs=64, quantizable=name != "fc0")
            for name in names
        ),
    )


DATA_FACTS = DataFacts(format="npz", arrays=(ArrayView(name="x", dtype="float32", shape=(100, 16)),))


def add_files(files: FileStore, sign: str = "a") -> tuple[str, str]:
    """The ids of a model and a data file."""
    model, _ = files.add_model(name="m.onnx", sha256=sign * 64, size_bytes=1000, owner=None, facts=model_facts())
    data, _ = files.add_dataset(name="d.npz", sha256=sign * 64, size_bytes=500, owner=None, facts=DATA_FACTS)
    return model.id, data.id


def trial(
    number: int, violation: float | None = None, speedup: float | None = None, size: float | None = None, **fields: Any
) -> TrialResult:
    judged = {"metric": "top1", "drop": 0.0, "lower": 0.0, "upper": 0.0, "confidence": 0.95, "decision": "met"}
    return TrialResult(
        **{"number": number, "state": TrialState.COMPLETE, "assignment": {"fc1": "float"}, "plan_digest": f"d{number}"}
        | {"verdicts": () if violation is None else (Verdict(**judged, violation=violation),)}
        | {"speedup": None if speedup is None else Interval(value=speedup, lower=speedup, upper=speedup)}
        | {"measurements": {} if size is None else {"size_bytes": Measurement(metric="size_bytes", value=size)}}
        | fields
    )


def save_trials(database: Database, job_id: str, *trials: TrialResult) -> None:
    store = SqlTrialStore(database)
    for one in trials:
        store.save_trial(job_id, one)


def result(job_id: str, feasible: bool = True) -> JobResult:
    baseline = Baseline(measurements={"top1": Measurement(metric="top1", value=0.9)})
    one = Interval(value=2.0, lower=1.9, upper=2.1)
    drop = Drop(value=0.0, lower=0.0, upper=0.01)
    best = Outcome(**dict(baseline), trial=3, plan_digest="d3", drop=drop, speedup=one, size_ratio=0.3, verdict="met", verdicts=())
    texts = {"name": "job", "summary": "Smaller.", "stop_reason": "trials"}
    return JobResult(job_id=job_id, state="succeeded", feasible=feasible, seconds=9.5, trials={}, baseline=baseline, best=best, **texts)


def artifact(name: str, sign: str = "f", size_bytes: int = 7) -> ArtifactView:
    return ArtifactView(name=name, size_bytes=size_bytes, sha256=sign * 64, media_type="application/json", created=START)


def told(database: Database, job_id: str) -> list[str]:
    """Number and state of every event of a job."""
    events = [JobEvent.model_validate_json(text) for _, text in EventReader(database).after(job_id, 0)]
    return [f"{event.seq} {event.state}" for event in events]


def claimed(jobs: JobStore, job_id: str = "j", seconds: float = 1e6) -> Claim:
    add_job(jobs, job_id)
    claim = jobs.claim("node", seconds)
    assert claim is not None
    assert claim.job_id == job_id
    return claim


def put(database: Database, job_id: str, **values: object) -> None:
    with database.write("testing") as connection:
        connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(**values))


def row_counts(database: Database) -> dict[str, int]:
    """How many rows each table has that has any."""
    with database.read("counting") as connection:
        counts = {name: connection.scalar(select(func.count()).select_from(table)) for name, table in Base.metadata.tables.items()}
    return {name: count for name, count in counts.items() if count}


@contextmanager
def watched_selects() -> Iterator[list[tuple[str, Any]]]:
    """Every SELECT that is executed meanwhile, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def slow_steps(database: Database, selects: list[tuple[str, Any]]) -> list[str]:
    """The steps of SQLite's plans that read a whole table or sort: none for a list whose pages cost the same however long it is."""
    found = []
    with database.read("explaining") as connection:
        for statement, parameters in list(selects):
            for *_, step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                if "TEMP B-TREE" in step or (step.startswith("SCAN") and "USING" not in step):
                    found.append(f"{step}: {statement}")
    return found
