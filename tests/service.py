"""A service on SQLite and a folder, without a scheduler: jobs are brought into states through the stores."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from server.api.hub import EventHub
from server.api.services import Services
from server.app import create_app
from server.artifacts import Artifacts
from server.auth import Keys
from server.gate import Gate
from server.sessions import Sessions
from server.settings import Settings
from server.store.database import Database, sqlite_url
from server.store.events import EventReader
from server.store.files import FileStore
from server.store.jobs import Claim, JobStore
from server.store.keys import KeyStore
from server.store.sessions import SessionStore
from server.store.trial_lists import TrialReader
from server.store.trials import SqlTrialStore
from tuner.errors import JobError, ModelError
from tuner.job import JobSpec
from tuner.preview import JobPreview, LabelRange, Overlap
from tuner.results import (
    Baseline,
    Drop,
    Interval,
    JobResult,
    Measurement,
    Outcome,
    SensitivityRow,
    TrialFailure,
    TrialResult,
    TrialState,
    Verdict,
)
from tuner.store import JobState
from tuner.wire import ArrayView, ArtifactView, DataFacts, JobProgress, KeyRequest, LayerView, ModelFacts, Role, TensorView

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # It would rather have another HTTP library.
    from starlette.testclient import TestClient as TestClient

BINARY = {"Content-Type": "application/octet-stream"}
LAYER = LayerView(name="fc1", op="Gemm", weight_shape=(16, 5), output_shape=(None, 5), params=80, macs=80, quantizable=True)
MODEL = ModelFacts(
    opset=17,
    parameters=80,
    macs=80,
    inputs=(TensorView(name="x", dtype="float32", shape=(None, 16)),),
    outputs=(TensorView(name="y", dtype="float32", shape=(None, 5)),),
    layers=(LAYER,),
)
DATA = DataFacts(format="npz", arrays=(ArrayView(name="x", dtype="float32", shape=(100, 16)),))
PREVIEW = JobPreview(
    goal="top1 may get worse by at most 0.01",
    metrics=("top1",),
    rows={"calibration": 50, "training": 0, "validation": 50, "holdout": 50},
    labels=LabelRange(low=0, high=4, classes=5),
    overlap=Overlap(),
    layers=1,
    options=13,
    plans=13.0,
    notes=("calibration: the first 50 rows of validation",),
    seconds=9.5,
    seconds_most=900.0,
)


class FakeGate(Gate):
    """Answers at once. What begins with `bad` is no model and no data; a job called `bad` has no good data; a model is its plan."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.checked: list[JobSpec] = []

    def inspect_model(self, path: Path, name: str) -> ModelFacts:
        self._look("inspect_model", path, name)
        return MODEL

    def inspect_data(self, path: Path, name: str) -> DataFacts:
        self._look("inspect_data", path, name)
        return DATA

    def check_job(self, job: JobSpec, folder: Path | None = None) -> JobPreview:
        assert folder is not None
        self.checked.append(job)
        self.calls.append("check_job")
        assert all((folder / name).is_file() for name in (job.model, job.data.validation.file))
        if job.name == "bad":
            raise JobError("the validation data has labels outside 0..4, got 7; number the classes from 0", field="data.validation")
        return PREVIEW

    def rebuild(self, plan: Path, model: Path, out: Path, tensors: Path | None = None) -> dict[str, str]:
        self.calls.append("rebuild")
        out.write_bytes(model.read_bytes() + plan.read_bytes() + (b"" if tensors is None else tensors.read_bytes()))
        return {"sha256": ""}

    def close(self) -> None:
        """There is no child."""

    def _look(self, call: str, path: Path, name: str) -> None:
        self.calls.append(call)
        if path.read_bytes().startswith(b"bad"):
            raise ModelError(f"'{name}' is not an ONNX file; export it again")


class Clock:
    """Moves a second on each time it is asked, so that moments differ and repeat."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 10, 15, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@contextmanager
def opened(folder: Path, *, gate: Gate | None = None, anonymous: bool = True, **settings: Any) -> Iterator[Services]:
    """Services on a new database below `folder`."""
    database = Database(sqlite_url(folder / "accutune.db"), Clock())
    database.upgrade()
    events = EventReader(database)
    try:
        yield Services(
            settings=Settings(data_dir=folder, **settings),
            database=database,
            jobs=JobStore(database),
            trials=TrialReader(database),
            events=events,
            files=FileStore(database),
            keys=Keys(KeyStore(database), database.now),
            sessions=Sessions(SessionStore(database), database.now),
            artifacts=Artifacts(str(folder / "artifacts"), folder / "scratch"),
            gate=gate or FakeGate(),
            hub=EventHub(events),
            anonymous=anonymous,
        )
    finally:
        database.close()


class Caller:
    """A service, and somebody who calls it with `requests`-like methods below /api/v1."""

    def __init__(self, services: Services, key: str | None = None) -> None:
        self.services = services
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = TestClient(create_app(services), base_url="http://localhost", headers=headers)

    def call(self, method: str, path: str, **content: Any) -> Any:
        return self.http.request(method, f"/api/v1{path}", **content)

    def get(self, path: str, **content: Any) -> Any:
        return self.call("GET", path, **content)

    def post(self, path: str, **content: Any) -> Any:
        return self.call("POST", path, **content)

    def delete(self, path: str) -> Any:
        return self.call("DELETE", path)

    def upload(self, kind: str = "models", content: bytes = b"a model", name: str = "m.onnx") -> Any:
        return self.post(f"/{kind}", params={"name": name}, content=content, headers=BINARY)

    def job(self, **changes: Any) -> dict[str, Any]:
        """A job on uploads that are made for it."""
        model, data = self.upload().json()["id"], self.upload("datasets", b"some data", "d.npz").json()["id"]
        constraints = [{"metric": "top1", "max_drop": 0.01}]
        return {"name": "tiny", "model": model, "data": {"validation": {"file": data}}, "constraints": constraints} | changes

    def submit(self, **changes: Any) -> str:
        answer = self.post("/jobs", json=self.job(**changes))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def with_key(self, role: Role = "submitter") -> Caller:
        """Somebody else, with a new key."""
        return Caller(self.services, self.services.keys.make(KeyRequest(name=f"a {role}", role=role)).key)


def started(services: Services) -> tuple[Claim, SqlTrialStore]:
    """The oldest waiting job, now running, and the store that its process would have."""
    claim = services.jobs.claim("node", 1000.0)
    assert claim is not None
    return claim, SqlTrialStore(services.database, lease=claim.lease)


def trial(number: int, *, drop: float = 0.01, speedup: float | None = 1.5, **changes: Any) -> TrialResult:
    verdict = Verdict(
        metric="top1", drop=drop, lower=drop - 0.01, upper=drop + 0.01, confidence=0.95, decision="met", violation=drop - 0.02, samples=60
    )
    known: dict[str, Any] = {
        "number": number,
        "state": TrialState.COMPLETE,
        "assignment": {"fc1": "float"},
        "plan_digest": f"digest{number}",
        "measurements": {
            "top1": Measurement(metric="top1", value=0.9 - drop),
            "size_bytes": Measurement(metric="size_bytes", value=1000.0),
        },
        "verdicts": (verdict,),
        "speedup": None if speedup is None else Interval(value=speedup, lower=speedup - 0.1, upper=speedup + 0.1),
        "timings": {"build": 0.5},
    }
    return TrialResult(**known | changes)


def failed(number: int, message: str = "it broke") -> TrialResult:
    error = TrialFailure(type="Timeout", message=message, step="evaluate")
    return trial(number, state=TrialState.FAILED, measurements={}, verdicts=(), speedup=None, error=error)


OUTCOME = Outcome(
    measurements={"top1": Measurement(metric="top1", value=0.89)},
    trial=0,
    plan_digest="digest0",
    drop=Drop(value=0.01, lower=0.0, upper=0.02),
    speedup=Interval(value=1.5, lower=1.4, upper=1.6),
    size_ratio=0.3,
    verdict="met",
    verdicts=(),
    layers={"fc1": "u8-asym-minmax/s8-sym-channel"},
    file="best.onnx",
)
SENSITIVITY = (
    SensitivityRow(layer="=fc1", op="Gemm", scheme="u8-asym-minmax/s8-sym-channel", divergence=0.25, params=80, macs=80, float_ms=0.5),
    SensitivityRow(layer="fc2", op="Gemm", scheme="u8-asym-minmax/s8-sym-channel", divergence=0.5),
)


def result(job_id: str, **changes: Any) -> JobResult:
    known: dict[str, Any] = {
        "job_id": job_id,
        "name": "tiny",
        "state": "succeeded",
        "feasible": True,
        "seconds": 3.0,
        "summary": "met",
        "stop_reason": "budget",
        "trials": {"complete": 1},
        "baseline": Baseline(measurements={}),
        "best": OUTCOME,
        "pareto": (OUTCOME,),
    }
    return JobResult(**known | changes)


def leave(services: Services, job_id: str, name: str, content: bytes, media_type: str = "application/octet-stream") -> ArtifactView:
    """An artefact of the job."""
    stored = services.artifacts.put_bytes(content)
    now = services.database.now()
    view = ArtifactView(name=name, size_bytes=stored.size_bytes, sha256=stored.sha256, media_type=media_type, created=now)
    services.jobs.add_artifact(job_id, view)
    return view


def succeed(services: Services, claim: Claim, store: SqlTrialStore, files: dict[str, tuple[bytes, str]]) -> None:
    """Finish a running job that leaves `files`, {name: (content, media type)}."""
    views = [leave(services, claim.job_id, name, content, kind) for name, (content, kind) in files.items()]
    services.jobs.note(claim.job_id, claim.lease, progress=JobProgress(phase="export", metrics=("top1",), trials=1))
    services.jobs.finish(claim.job_id, claim.lease, result(claim.job_id), views)
    store.set_job_state(claim.job_id, JobState.SUCCEEDED, seconds=3.0)
