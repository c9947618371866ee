from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service import Caller, TestClient, opened

from server.api.guards import is_public
from server.app import create_app
from tuner.job import JobSpec


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with opened(tmp_path_factory.mktemp("openapi")) as services:
        answer = Caller(services, None).get("/openapi.json")
        assert answer.status_code == 200
        yield answer.json()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]


def test_every_call_of_the_contract_is_there(document: dict[str, Any]) -> None:
    found = {(method.upper(), path.removeprefix("/api/v1")) for path, method, _ in operations(document)}
    calls = """POST /models, GET /models, GET /models/{model_id}, GET /models/{model_id}/layers, DELETE /models/{model_id},
        POST /datasets, GET /datasets, GET /datasets/{dataset_id}, DELETE /datasets/{dataset_id},
        POST /jobs, POST /checks, GET /jobs, GET /jobs/{job_id}, DELETE /jobs/{job_id}, POST /jobs/{job_id}/cancel,
        POST /jobs/{job_id}/resume,
        GET /jobs/{job_id}/trials, GET /jobs/{job_id}/trials/{number}, GET /jobs/{job_id}/trials/{number}/model,
        GET /jobs/{job_id}/trials/{number}/tensors, GET /jobs/{job_id}/trials/{number}/plan,
        GET /jobs/{job_id}/trials.csv, GET /jobs/{job_id}/best, GET /jobs/{job_id}/best/plan,
        GET /jobs/{job_id}/report, GET /jobs/{job_id}/pareto, GET /jobs/{job_id}/sensitivity, GET /jobs/{job_id}/artifacts,
        GET /jobs/{job_id}/layers, GET /jobs/{job_id}/compare, GET /jobs/{job_id}/trials/sample,
        GET /jobs/{job_id}/figures, GET /jobs/{job_id}/figures/{name},
        GET /jobs/{job_id}/artifacts/{name}, GET /jobs/{job_id}/events, GET /spaces, GET /strategies, GET /metrics, GET /passes,
        GET /capabilities, GET /system, GET /healthz, GET /readyz, POST /keys, GET /keys, DELETE /keys/{key_id},
        POST /session, GET /session, DELETE /session"""
    assert {tuple(call.split()) for call in calls.split(",")} <= found


def test_every_operation_has_a_name_a_tag_and_words_of_its_own(document: dict[str, Any]) -> None:
    names = Counter(operation["operationId"] for _, _, operation in operations(document))
    assert [name for name, count in names.items() if count > 1 or not re.fullmatch("[a-z_]+", name)] == []
    assert [path for path, _, operation in operations(document) if not (operation.get("tags") and operation.get("description"))] == []
    known = {tag["name"] for tag in document["tags"]}
    assert {tag for _, _, operation in operations(document) for tag in operation["tags"]} <= known


def test_every_guarded_operation_says_that_it_needs_a_key_or_a_session_and_the_others_do_not(document: dict[str, Any]) -> None:
    key, session = (document["components"]["securitySchemes"][name] for name in ("key", "session"))
    assert (key["type"], key["scheme"]) == ("http", "bearer")
    assert (session["type"], session["in"], session["name"]) == ("apiKey", "cookie", "accutune_session")
    asked = {(method.upper(), path): operation.get("security") for path, method, operation in operations(document)}
    assert asked == {call: None if is_public(*call) else [{"key": []}, {"session": []}] for call in asked}
    session_calls = {("POST", "/api/v1/session"), ("DELETE", "/api/v1/session")}
    assert {call for call, security in asked.items() if not security} == {("GET", "/healthz"), ("GET", "/readyz"), *session_calls}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert "JobSpec" in wanted
    assert wanted - set(document["components"]["schemas"]) == set()


def test_errors_are_problems_and_every_guarded_call_names_those_of_the_guard(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        responses = operation["responses"]
        errors = {status: answer for status, answer in responses.items() if status == "default" or status >= "400"}
        public = is_public(method.upper(), path)
        guard = set() if public else {"401", "403", "429"}
        assert guard | {"422", "503", "default"} <= set(errors), (method, path)
        assert {media for answer in errors.values() for media in answer["content"]} == {"application/problem+json"}
        assert bool(operation.get("security")) == (not public), (method, path)


def test_the_examples_of_a_job_are_jobs(document: dict[str, Any]) -> None:
    body = document["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    jobs = [JobSpec.model_validate(example["value"]) for example in body["examples"].values()]
    assert {job.name for job in jobs} == {"resnet20-int8", "job"}
    schema = document["components"]["schemas"]["JobSpec"]
    assert schema["required"] == ["model", "data", "constraints"]


class FakeScheduler:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.alive = False

    def start(self) -> None:
        self.said.append("start")
        self.alive = True

    def stop(self) -> None:
        self.said.append("stop")
        self.alive = False


def test_the_application_starts_and_stops_the_scheduler(tmp_path: Path) -> None:
    scheduler: Any = FakeScheduler()
    with opened(tmp_path) as services:
        with TestClient(create_app(services, scheduler=scheduler), base_url="http://localhost") as client:
            assert scheduler.said == ["start"]
            assert client.get("/readyz").status_code == 200
        assert scheduler.said == ["start", "stop"]


def test_a_fault_is_a_problem_with_the_requests_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as services:
        monkeypatch.setattr(services.jobs, "page", lambda **_: 1 / 0)
        answer = Caller(services).get("/jobs", headers={"X-Request-Id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"], answer.json()["request_id"]) == (500, "mine", "mine")
        assert "ZeroDivision" not in answer.text
