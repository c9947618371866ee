"""The service as a client sees it, in memory: a handler for httpx.MockTransport that can be told to fail."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from tuner.client import Client
from tuner.job import JobSpec
from tuner.preview import JobPreview, Overlap
from tuner.results import Baseline, Drop, Interval, JobResult, Measurement, Outcome, TrialFailure, TrialState
from tuner.store import JobState
from tuner.wire import DatasetView, JobDetail, JobEvent, JobView, ModelView, Page, Problem, ProblemItem, TrialSummary

KEY = "acc_0123_very-secret"
NOW = datetime(2026, 11, 21, 10, 15, 30, tzinfo=UTC)
MODEL = {"opset": 17, "parameters": 1, "macs": 1, "inputs": (), "outputs": (), "layer_count": 1, "quantizable_count": 1}
URL = "http://fake:8000"

PREVIEW = JobPreview(
    goal="top1 may get worse by at most 0.02",
    metrics=("top1",),
    rows={"calibration": 128, "training": 0, "validation": 600, "holdout": 400},
    labels=None,
    overlap=Overlap(),
    layers=3,
    options=5,
    plans=125.0,
    seconds=8.0,
    seconds_most=120.0,
)

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Cut(httpx.SyncByteStream):
    """A body that breaks off after its chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        raise httpx.ReadError("connection reset by peer")


class FakeService:
    """One that holds uploads and jobs. `next`: what it answers to the coming requests instead, None being the right answer."""

    def __init__(self) -> None:
        self.next: list[Answer | None] = []
        self.seen: list[str] = []
        """Method and path of every request."""
        self.requests: list[httpx.Request] = []
        self.files: dict[str, dict[str, Any]] = {"models": {}, "datasets": {}}
        self.jobs: dict[str, JobDetail] = {}
        self.events: dict[str, list[JobEvent]] = {}
        self.trials: list[TrialSummary] = []
        self.artifacts: dict[str, bytes] = {}
        self.keys: dict[str, str] = {}
        """{idempotency key: job id}."""
        self.pauses: list[float] = []
        self.preview = PREVIEW

    def client(self, **options: Any) -> Client:
        return Client(URL, KEY, sleep=self.pauses.append, transport=httpx.MockTransport(self), **options)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1")
        self.seen.append(f"{request.method} {path}")
        self.requests.append(request)
        request.read()
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return problem(401, "no API key was given")
        instead = self.next.pop(0) if self.next else None
        if isinstance(instead, Exception):
            raise instead
        if instead is not None:
            return instead(request) if callable(instead) else instead
        return self._answer(request, path)

    def _answer(self, request: httpx.Request, path: str) -> httpx.Response:
        _, kind, *rest = path.split("/")
        if kind in self.files:
            return self._file(request, kind)
        if kind == "checks" and request.method == "POST":
            return answer(self.preview)
        if kind != "jobs":
            return problem(404, f"there is no {path}")
        if not rest:
            return self._submit(request) if request.method == "POST" else self._listed(request)
        if rest[0] not in self.jobs:
            return problem(404, f"there is no job '{rest[0]}'; GET /api/v1/jobs lists them")
        return self._job(request, rest[0], "/".join(rest[1:]))

    def _file(self, request: httpx.Request, kind: str) -> httpx.Response:
        known, view = self.files[kind], ModelView if kind == "models" else DatasetView
        if request.method == "GET":
            found = known.get(request.url.params.get("sha256", ""))
            return answer(Page[Any](items=(found,) if found else ()))
        sha256, facts = hashlib.sha256(request.content).hexdigest(), MODEL if kind == "models" else {"format": "npz", "arrays": ()}
        common = {"id": f"{kind[:3]}-{sha256[:8]}", "name": request.url.params["name"], "sha256": sha256, "created": NOW}
        known[sha256] = view.model_validate(common | {"size_bytes": len(request.content)} | facts)
        return answer(known[sha256], 201)

    def _submit(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["idempotency-key"]
        if key not in self.keys:
            spec = JobSpec.model_validate_json(request.content)
            self.keys[key] = self.add(f"job-{len(self.jobs)}", JobState.QUEUED, spec).id
        return answer(self.jobs[self.keys[key]], 201)

    def _listed(self, request: httpx.Request) -> httpx.Response:
        """Pages of two, to have several."""
        state, start = request.url.params.get("state"), int(request.url.params.get("cursor", "0"))
        found = [job for job in self.jobs.values() if state in (None, job.state)]
        rows = [JobView.model_validate(job.model_dump(exclude={"spec", "result"})) for job in found[start : start + 2]]
        return answer(Page[JobView](items=tuple(rows), next=str(start + 2) if start + 2 < len(found) else None))

    def _job(self, request: httpx.Request, job_id: str, what: str) -> httpx.Response:
        job = self.jobs[job_id]
        if what == "events":
            return self._stream(job, int(request.headers.get("last-event-id", "0")))
        if what == "trials":
            return answer(Page[TrialSummary](items=tuple(self.trials)))
        if what == "artifacts":
            rows = [
                {"name": n, "size_bytes": len(b), "sha256": sha(b), "media_type": "x/y", "created": NOW.isoformat()}
                for n, b in self.artifacts.items()
            ]
            return httpx.Response(200, json=rows)
        if what in ("cancel", "resume"):
            self.jobs[job_id] = job.model_copy(update={"state": JobState.CANCELLED if what == "cancel" else JobState.QUEUED})
            return answer(JobView.model_validate(self.jobs[job_id].model_dump(exclude={"spec", "result"})))
        if what.removeprefix("artifacts/") in self.artifacts:
            return sent(request, self.artifacts[what.removeprefix("artifacts/")])
        return problem(404, f"the job has no {what}") if what else answer(job)

    def _stream(self, job: JobDetail, after: int) -> httpx.Response:
        events = self.events[job.id][after:]
        over = job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
        return httpx.Response(204) if over and not events else httpx.Response(200, content=stream(events))

    def add(self, job_id: str, state: JobState, spec: JobSpec, **changes: Any) -> JobDetail:
        """A job as it stands in the store."""
        moments: dict[str, Any] = {"created": NOW, "updated": NOW, "seconds": 1.0}
        self.jobs[job_id] = JobDetail(id=job_id, name=spec.name, state=state, model=spec.model, spec=spec, **moments, **changes)
        self.events.setdefault(job_id, [])
        return self.jobs[job_id]

    def served(self, spec: JobSpec, *steps: JobState | str | TrialSummary, state: JobState = JobState.SUCCEEDED) -> list[JobEvent]:
        """A job 'job-0' in this state that has these events."""
        self.add("job-0", state, spec)
        self.events["job-0"] = events(*steps)
        return self.events["job-0"]


def answer(value: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, text=value.model_dump_json(), headers={"Content-Type": "application/json"})


def problem(status: int, detail: str, *errors: ProblemItem, **headers: str) -> httpx.Response:
    body = Problem(type="about:blank", title="Refused", status=status, detail=detail, errors=errors)
    return httpx.Response(status, text=body.model_dump_json(), headers={"Content-Type": "application/problem+json"} | headers)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sent(request: httpx.Request, data: bytes) -> httpx.Response:
    """A file with its ETag, or the part of it that is asked for."""
    etag, start = f'"{sha(data)}"', re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if start is None or request.headers.get("if-range") != etag:
        return httpx.Response(200, content=data, headers={"ETag": etag})
    first = int(start[1])
    headers = {"ETag": etag, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
    return httpx.Response(206, content=data[first:], headers=headers)


def events(*steps: JobState | str | TrialSummary) -> list[JobEvent]:
    """A job's events: a state, a message, or a trial of the search."""
    found = []
    for seq, step in enumerate(steps, start=1):
        common: dict[str, Any] = {"seq": seq, "at": NOW, "seconds": float(seq)}
        if isinstance(step, JobState):
            found.append(JobEvent(kind="state", state=step, **common))
        elif isinstance(step, str):
            found.append(JobEvent(kind="message", message=step, **common))
        else:
            found.append(
                JobEvent(
                    kind="trial", phase="search", trial=step, best=step if step.feasible else None, done=step.number + 1, total=5, **common
                )
            )
    return found


def stream(given: Sequence[JobEvent]) -> bytes:
    return b"retry: 2000\n\n: hello\n\n" + b"".join(one(event) for event in given)


def one(event: JobEvent) -> bytes:
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()


def trial(number: int, **changes: Any) -> TrialSummary:
    values: dict[str, Any] = {"feasible": True, "decision": "met", "drop": 0.001, "drop_upper": 0.004, "samples": 600, "speedup": 1.5}
    values |= {"values": {"size_bytes": 2048.0}, "state": TrialState.COMPLETE, "plan_digest": "d"}
    return TrialSummary(number=number, **values | changes)


def broken_trial(number: int) -> TrialSummary:
    error = TrialFailure(type="RuntimeError", message="no kernel", step="session")
    return TrialSummary(number=number, state=TrialState.FAILED, feasible=False, plan_digest="d", error=error)


def result(job_id: str, feasible: bool) -> JobResult:
    size = {"size_bytes": Measurement(metric="size_bytes", value=2048)}
    drop, speed = Drop(value=0.001, lower=0, upper=0.004), Interval(value=1.5, lower=1.4, upper=1.6)
    verdict = {"metric": "top1", "drop": 0.001, "lower": 0, "upper": 0.004, "confidence": 0.95, "decision": "met", "violation": -0.01}
    best = Outcome.model_validate(
        {"measurements": size, "trial": 1, "plan_digest": "d", "drop": drop, "speedup": speed, "size_ratio": 0.5, "verdict": "met"}
        | {"verdicts": [verdict]}
    )
    words = {"summary": f"Target {'met' if feasible else 'missed'}: 1.50× faster.", "stop_reason": "the budget is spent", "name": "job"}
    return JobResult.model_validate(
        {"job_id": job_id, "state": "succeeded", "feasible": feasible, "seconds": 1.0, "trials": {"total": 2}, "best": best}
        | {"baseline": Baseline(measurements=size)}
        | words
    )


STEPS = (JobState.QUEUED, JobState.RUNNING, "checked", trial(0), trial(1), JobState.SUCCEEDED)
"""What a small job may tell."""
