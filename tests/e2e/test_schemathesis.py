"""Generated requests, good and bad, to every operation of the OpenAPI document: no 5xx, and no answer that the document does not tell
of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pytest
import schemathesis
from schemathesis import Case, Config, GenerationMode, HookContext, Response, engine
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.engine import events
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER
from service import Caller, leave, opened, result, started, trial

from server.api.services import Services
from server.store.database import NotFound
from server.store.jobs import Claim
from tuner.plan import AppliedPlan, CompressionPlan
from tuner.store import JobState
from tuner.wire import SETTLED, EventKind, JobProgress, KeyRequest

EXAMPLES = 8
"""Generated requests per operation, beside those that try each parameter and field of a body one by one."""

CHAINS = 5
"""How many times a chain of calls is made that follow from each other."""

SUBMIT = "POST /api/v1/jobs"
WITH_A_JOB = (SUBMIT, "POST /api/v1/checks")
FIGURE = "/api/v1/jobs/{job_id}/figures/{name}"
COMPARE = "/api/v1/jobs/{job_id}/compare"
SIGN_IN = "POST /api/v1/session"
STREAM = "/api/v1/jobs/{job_id}/events"
"""Goes on as long as its job, so it is asked for finished ones alone."""

EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "event": {"enum": [*get_args(EventKind)]},
        "data": {"type": "string", "pattern": "^\\{.*\\}$"},
    },
}

CONFIG: dict[str, Any] = {
    "seed": 1,
    "cache": {"enabled": False},
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
    "phases": {"stateful": {"generation": {"max-examples": CHAINS}}},
    "request-timeout": 20,
    "continue-on-failure": True,
    # Whether a job is good depends on its files, which no schema tells of.
    "checks": {"positive_data_acceptance": {"enabled": False}},
}


PLAN = AppliedPlan(plan=CompressionPlan(), model_sha256="").model_dump_json().encode()
ROWS = b'{"metric": "top1", "scores": [1.0, 1.0], "direction": "higher", "total": 2, "rows": [1, 0], "classes": [0, 1]}'


class World:
    """A service, and what its paths can name: made anew as soon as a request has deleted some of it."""

    def __init__(self, services: Services, key: str) -> None:
        self.services, self.caller, self._key = services, Caller(services, key), key
        self._turn = count()
        self.known = self._furnished()

    def put_real_ids(self, case: Case[Any]) -> None:
        """In every other good request: generated ids are seldom those of anything."""
        self._renew()
        turn, path = next(self._turn), case.path_parameters or {}
        good = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
        for name in set(self.known) & set(path) if good and turn % 2 == 0 else ():
            path[name] = self.known[name][turn // 2 % len(self.known[name])]
        if case.operation.path == STREAM and self._goes_on(path.get("job_id")):
            path["job_id"] = self.known["job_id"][0]
        if case.operation.label in WITH_A_JOB and good and isinstance(case.body, dict):
            case.body["model"], case.body["data"] = self.known["model_id"][0], {"validation": {"file": self.known["dataset_id"][0]}}
        if case.operation.path == FIGURE and good and turn % 2 == 0:
            path["name"] = "timeline"
        if case.operation.path == COMPARE and good and turn % 2 == 0:
            case.query = {"trial": [0]}
        if case.operation.label == SIGN_IN and good and turn % 2 == 0 and isinstance(case.body, dict):
            case.body["key"] = self._key

    def _goes_on(self, job_id: object) -> bool:
        found = self.services.events.latest([str(job_id)])
        return any(state not in SETTLED for _, state in found.values())

    def _renew(self) -> None:
        services, known = self.services, self.known
        try:
            [services.jobs.row_state(job_id) for job_id in known["job_id"]]
            services.files.model(known["model_id"][0])
            services.files.dataset(known["dataset_id"][0])
        except NotFound:
            self.known = self._furnished()

    def _furnished(self) -> dict[str, list[Any]]:
        services, caller = self.services, self.caller
        finished, queued = self._finished(), caller.submit()
        spare = f"{queued} needs neither".encode()
        return {
            "job_id": [finished, queued],
            "model_id": [caller.upload("models", b"model: " + spare).json()["id"]],
            "dataset_id": [caller.upload("datasets", b"data: " + spare).json()["id"]],
            "key_id": [services.keys.make(KeyRequest(name="spare")).id],
            "number": [0, 1, 7],
            "name": ["best.onnx", "report.html", "pareto/1.onnx", "gone"],
        }

    def _finished(self) -> str:
        """A job with trials and files. Whatever waits before it runs for ever."""
        job_id = self.caller.submit()
        while (work := started(self.services))[0].job_id != job_id:
            pass
        claim, store = work
        for number in range(3):
            store.save_trial(job_id, trial(number))
        self._leave(claim)
        store.set_job_state(job_id, JobState.SUCCEEDED, seconds=3.0)
        return job_id

    def _leave(self, claim: Claim) -> None:
        table = b"layer,op,scheme,divergence,params,macs,float_ms,int8_ms,note\nfc1,Gemm,u8-asym-mse,0.25,80,80,0.5,,\n"
        files = {"best.plan.json": b"{}", "report.html": b"<p>", "sensitivity.csv": table, "trials/0.plan.json": PLAN}
        files |= {"layers.json": b"[]", "rows.json": ROWS, "trials/0.rows.json": b'{"metric": "top1", "scores": [1.0, 0.0]}'}
        kinds = {"json": "application/json", "html": "text/html", "csv": "text/csv"}
        models = {"best.onnx": b"best", "pareto/1.onnx": b"front", "trials/0.tensors.safetensors": b"weights"}
        views = [leave(self.services, claim.job_id, name, content) for name, content in models.items()]
        for name, content in files.items():
            views.append(leave(self.services, claim.job_id, name, content, kinds[name.rpartition(".")[2]]))
        self.services.jobs.note(claim.job_id, claim.lease, progress=JobProgress(phase="export", metrics=("top1",), trials=3))
        self.services.jobs.finish(claim.job_id, claim.lease, result(claim.job_id), views)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened(tmp_path, anonymous=False) as services:
        yield World(services, services.keys.make(KeyRequest(name="tests", role="admin")).key)


@pytest.fixture
def hooks(world: World) -> Iterator[None]:
    """For all of the library's runs while the test lasts: it takes no such hooks for a single document."""

    def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        world.put_real_ids(case)

    def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:  # noqa: ARG001
        """Numbers of a job may be written as texts and truth values, as YAML reads some, which the schema does not tell."""
        lenient = case.operation.label in WITH_A_JOB and isinstance(failure, AcceptedNegativeData)
        return not lenient or "Incorrect type" not in failure.message

    for hook in (before_call, filter_failure):
        schemathesis.hook(hook)
    yield
    for hook in (before_call, filter_failure):
        GLOBAL_HOOK_DISPATCHER.unregister(hook)


@pytest.fixture
def schema(world: World) -> Any:
    """The document without its answers for `any other error`, which would allow whatever is sent."""
    document = world.caller.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            del operation["responses"]["default"]
    # The library reads it as the schema of one event.
    document["paths"][STREAM]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"] = EVENT
    config = Config.from_dict(CONFIG | {"headers": {"Authorization": world.caller.http.headers["Authorization"]}})
    made = schemathesis.openapi.from_dict(document, config=config)
    made.app = world.caller.http.app
    return made


@pytest.mark.usefixtures("hooks")
def test_every_answer_is_one_that_the_document_tells_of(schema: Any) -> None:
    failures, statuses = run(schema)
    assert "\n\n".join(sorted(failures)) == ""
    operations = {f"{method.upper()} {path}" for path, methods in schema.raw_schema["paths"].items() for method in methods}
    assert operations - {label for label, found in statuses.items() if min(found) < 300} == set()


def run(schema: Any) -> tuple[set[str], dict[str, set[int]]]:
    """What every check found, and the statuses of answers by operation."""
    failures: set[str] = set()
    statuses: dict[str, set[int]] = defaultdict(set)
    for event in engine.from_schema(schema).execute():
        assert not isinstance(event, events.FatalError | events.NonFatalError), event
        if isinstance(event, events.ScenarioFinished):
            label, record = event.recorder.label, event.recorder
            statuses[label] |= {call.response.status_code for call in record.interactions.values() if call.response is not None}
            broken = (check.failure_info for checks in record.checks.values() for check in checks)
            failures |= {f"{label}: {info.failure.title}: {info.failure.message}\n{info.code_sample}" for info in broken if info}
    assert isinstance(event, events.EngineFinished)
    return failures | {failure.message for failure in event.failures}, statuses
