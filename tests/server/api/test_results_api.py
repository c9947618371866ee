from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service import OUTCOME, SENSITIVITY, Caller, leave, opened, result, started, succeed, trial

from tuner.export import write_results
from tuner.job import JobSpec
from tuner.plan import AppliedPlan, CompressionPlan
from tuner.results import LayerProfile

CONTENT = bytes(range(256)) * 5000
"""More than one chunk."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


@pytest.fixture
def job(api: Caller, tmp_path: Path) -> str:
    """A finished job with real files, but for the model."""
    name = api.submit()
    claim, store = started(api.services)
    store.save_trial(name, trial(0))
    spec = JobSpec.model_validate(api.get(f"/jobs/{name}").json()["spec"])
    folder = tmp_path / "out"
    applied = AppliedPlan(plan=CompressionPlan(), model_sha256="0" * 64)
    write_results(folder, spec, result(name), applied, [trial(0)], SENSITIVITY)
    kinds = {
        "best.plan.json": "application/json",
        "report.html": "text/html",
        "result.json": "application/json",
        "sensitivity.csv": "text/csv",
    }
    files = {file: ((folder / file).read_bytes(), kind) for file, kind in kinds.items()}
    succeed(
        api.services,
        claim,
        store,
        files | {"best.onnx": (CONTENT, "application/octet-stream"), "pareto/3.onnx": (b"3", "application/octet-stream")},
    )
    return name


def test_the_best_model_is_sent_whole(api: Caller, job: str) -> None:
    answer = api.get(f"/jobs/{job}/best")
    assert answer.content == CONTENT
    expected = {
        "content-type": "application/octet-stream",
        "content-length": str(len(CONTENT)),
        "content-disposition": f'attachment; filename="{job}-best.onnx"',
        "etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"',
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
    }
    assert {name: answer.headers[name] for name in expected} == expected


def test_who_has_a_file_gets_none(api: Caller, job: str) -> None:
    etag = api.get(f"/jobs/{job}/best").headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = api.get(f"/jobs/{job}/best", headers={"If-None-Match": header})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert api.get(f"/jobs/{job}/best", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1279990-", 1279990, 1280000),
        ("bytes=-5", 1279995, 1280000),
        ("bytes=1279999-99999999", 1279999, 1280000),
        ("bytes=-9999999", 0, 1280000),
        ("BYTES=5-1100000", 5, 1100001),
    ],
)
def test_a_range_is_sent_alone(api: Caller, job: str, asked: str, start: int, end: int) -> None:
    answer = api.get(f"/jobs/{job}/best", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1280000"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "items=0-1", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "nonsense", "bytes=٣-٤"])
def test_a_range_that_cannot_be_read_is_the_whole_file(api: Caller, job: str, asked: str) -> None:
    answer = api.get(f"/jobs/{job}/best", headers={"Range": asked.encode()})
    assert (answer.status_code, len(answer.content)) == (200, len(CONTENT))


@pytest.mark.parametrize("asked", ["bytes=1280000-", "bytes=9999999-99999999", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(api: Caller, job: str, asked: str) -> None:
    answer = api.get(f"/jobs/{job}/best", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */1280000"
    assert "bytes 0 to 1279999" in answer.json()["detail"]


def test_a_range_of_another_version_is_the_whole_file(api: Caller, job: str) -> None:
    etag = api.get(f"/jobs/{job}/best").headers["etag"]
    same = api.get(f"/jobs/{job}/best", headers={"Range": "bytes=0-4", "If-Range": etag})
    other = api.get(f"/jobs/{job}/best", headers={"Range": "bytes=0-4", "If-Range": '"old"'})
    assert (same.status_code, same.content, other.status_code, len(other.content)) == (206, CONTENT[:5], 200, len(CONTENT))


def test_head_tells_without_sending(api: Caller, job: str) -> None:
    for path in ("best", "best/plan", "report", "artifacts/best.onnx"):
        head, get = (api.call(method, f"/jobs/{job}/{path}") for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert {**head.headers, "x-request-id": ""} == {**get.headers, "x-request-id": ""}


def test_the_plan_and_the_report(api: Caller, job: str) -> None:
    plan, report = api.get(f"/jobs/{job}/best/plan"), api.get(f"/jobs/{job}/report")
    assert AppliedPlan.model_validate_json(plan.content).model_sha256 == "0" * 64
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    assert report.headers["content-disposition"].startswith("inline; ")
    policy = report.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "style-src 'unsafe-inline'", "sandbox"} <= set(policy)
    assert "script-src" not in report.headers["content-security-policy"]
    assert "<title>Target met: tiny</title>" in report.text
    raw = api.get(f"/jobs/{job}/artifacts/report.html")
    assert raw.headers["content-security-policy"] == report.headers["content-security-policy"]
    assert raw.headers["content-disposition"].startswith("attachment; ")


def test_the_front_and_the_sensitivity(api: Caller, job: str) -> None:
    assert api.get(f"/jobs/{job}/pareto").json() == [OUTCOME.model_dump(mode="json")]
    rows = api.get(f"/jobs/{job}/sensitivity")
    assert rows.json() == [row.model_dump(mode="json") for row in SENSITIVITY]
    assert rows.headers["vary"] == "Accept"
    table = api.get(f"/jobs/{job}/sensitivity", headers={"Accept": "text/csv"})
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert table.text.splitlines()[1].startswith("'=fc1,Gemm,")
    json_first = api.get(f"/jobs/{job}/sensitivity", headers={"Accept": "application/json, text/csv;q=0.5"})
    assert json_first.headers["content-type"] == "application/json"


def test_every_file_is_listed_and_sent(api: Caller, job: str) -> None:
    files = api.get(f"/jobs/{job}/artifacts").json()
    assert [file["name"] for file in files] == [
        "best.onnx",
        "best.plan.json",
        "pareto/3.onnx",
        "report.html",
        "result.json",
        "sensitivity.csv",
    ]
    for file in files:
        answer = api.get(f"/jobs/{job}/artifacts/{file['name']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["content-type"].partition(";")[0] == file["media_type"]
    assert api.get(f"/jobs/{job}/artifacts/pareto/3.onnx").headers["content-disposition"] == f'attachment; filename="{job}-pareto-3.onnx"'


@pytest.mark.parametrize(
    "name", ["nothing.onnx", "..%2f..%2fetc%2fpasswd", "%252e%252e%252fetc", "pareto/", "a%00b", "pareto/..%2fbest.onnx"]
)
def test_a_file_that_was_not_left_is_not_found(api: Caller, job: str, name: str) -> None:
    answer = api.get(f"/jobs/{job}/artifacts/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_layers_are_there_once_the_search_has_begun(api: Caller, job: str) -> None:
    profile = {"layer": "fc1", "op": "Gemm", "tensor": "x", "params": 80, "macs": 80, "divergence": {"float": 0.0}}
    profile |= {"latency_ms": {"float": 0.5}, "size_bytes": {"float": 320.0}, "weight": None}
    profile |= {"activation": {"low": -1.0, "high": 1.0, "counts": [3, 4]}}
    assert LayerProfile.model_validate(profile).model_dump(mode="json") == profile
    other = api.submit()
    answer = api.get(f"/jobs/{other}/layers")
    assert answer.status_code == 409
    assert "its layers.json is there once its search has begun. Follow it: " in answer.json()["detail"]
    leave(api.services, other, "layers.json", json.dumps([profile]).encode(), "application/json")
    assert api.get(f"/jobs/{other}/layers").json() == [profile]
    older = api.get(f"/jobs/{job}/layers")
    assert older.status_code == 404
    assert f"job '{job}' has left no layers.json" in older.json()["detail"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("best", "best.onnx"),
        ("best/plan", "best.plan.json"),
        ("report", "report.html"),
        ("sensitivity", "sensitivity.csv"),
        ("pareto", "front"),
    ],
)
def test_what_is_not_there_yet_says_when_it_will_be(api: Caller, path: str, what: str) -> None:
    job = api.submit()

    def refused() -> str:
        answer = api.get(f"/jobs/{job}/{path}")
        assert answer.status_code == 409
        return str(answer.json()["detail"])

    waiting = refused()
    assert waiting == (
        f"job '{job}' is queued and not finished; its {what} is there once it has succeeded. Follow it: GET /api/v1/jobs/{job}/events"
    )
    api.post(f"/jobs/{job}/cancel")
    assert refused().endswith(f"Go on with it: POST /api/v1/jobs/{job}/resume")
    assert api.get(f"/jobs/{job}/artifacts").json() == []


def test_bytes_that_are_gone_or_damaged_are_no_torn_file(api: Caller, job: str, tmp_path: Path) -> None:
    file = leave(api.services, job, "small.bin", b"right")
    blob = tmp_path / "artifacts" / file.sha256[:2] / file.sha256
    blob.write_bytes(b"wrong")
    assert api.get(f"/jobs/{job}/artifacts/small.bin").status_code == 503
    blob.unlink()
    answer = api.get(f"/jobs/{job}/artifacts/small.bin")
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text


def test_every_route_of_results_may_be_read_by_viewers_alone(api: Caller, job: str) -> None:
    viewer = api.with_key("viewer")
    stranger = Caller(api.services, "acc_nobody_secret")
    for path in ("best", "best/plan", "report", "pareto", "sensitivity", "artifacts", "artifacts/best.onnx", "trials", "trials.csv"):
        statuses: tuple[Any, ...] = tuple(who.get(f"/jobs/{job}/{path}").status_code for who in (viewer, stranger))
        assert statuses == (200, 401)
