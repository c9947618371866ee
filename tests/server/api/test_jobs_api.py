from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from service import PREVIEW, Caller, opened, started
from store_samples import result

from tuner.store import JobState


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


def refusal(answer: Any) -> tuple[int, str, str]:
    """Status, first field and text of an error."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, body["errors"][0]["field"] if body.get("errors") else "", body["detail"]


def test_a_job_is_checked_and_queued(api: Caller) -> None:
    job = api.job()
    answer = api.post("/jobs", json=job)
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/jobs/{made['id']}"
    assert (made["state"], made["name"], made["model"], made["spec"]["budget"]["trials"]) == ("queued", "tiny", job["model"], 60)
    assert api.get(f"/jobs/{made['id']}").json() == made
    (checked,) = api.services.gate.checked  # type: ignore[attr-defined]
    assert (checked.model, checked.data.validation.file) == (f"{job['model']}.onnx", f"{job['data']['validation']['file']}.npz")


def test_ids_sort_by_time_within_a_second(api: Caller) -> None:
    ids = [api.submit(name=f"job{i}") for i in range(3)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 3


def test_every_field_that_is_wrong_is_named(api: Caller) -> None:
    answer = api.post("/jobs", json={"version": 1, "modle": "x"})
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == ["model", "data", "constraints", "modle"]
    assert "Did you mean 'model'?" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"metrics": ["acuracy"]}, "metrics", "unknown metric 'acuracy'."),
        ({"strategy": "atuo"}, "strategy", "unknown strategy 'atuo'. Did you mean 'auto'?"),
        ({"space": "int9"}, "space", "unknown space 'int9'. Did you mean 'int8'?"),
        ({"target": {"runtime": "tensorrt"}}, "target.runtime", "unknown runtime 'tensorrt'"),
        ({"constraints": [{"metric": "size_bytes", "at_most": 1}]}, "constraints", "no constraint protects accuracy"),
        ({"budget": {"parallel": 5}}, "budget.parallel", "may be 4 at most on this server (ACCUTUNE_PARALLEL), got 5"),
        ({"budget": {"trials": 0}}, "budget.trials", "greater than or equal to 1"),
        ({"name": "bad"}, "data.validation", "labels outside 0..4"),
        ({"model": "mdl-0000000000000000"}, "model", "must be the id of an upload under /api/v1/models, got 'mdl-0000000000000000'"),
        ({"data": {"validation": {"file": "dat-1"}}}, "data.validation.file", "must be the id of an upload under /api/v1/datasets"),
        ({"model": "../../etc/passwd"}, "model", "no path and no URL is ever opened. Send the file with POST /api/v1/models?name=…"),
        ({"model": "http://169.254.169.254/latest"}, "model", "no path and no URL is ever opened"),
        ({"model": "a\x00b"}, "model", "no path and no URL is ever opened"),
        ({"data": {"validation": {"file": "module:function"}}}, "data.validation.file", "POST /api/v1/datasets?name=…"),
        ({"data": {"validation": {"file": "/etc/passwd"}}}, "data.validation.file", "no path and no URL is ever opened"),
    ],
)
def test_a_job_that_cannot_run_is_refused_with_the_field(api: Caller, changes: dict[str, Any], field: str, text: str) -> None:
    status, named, detail = refusal(api.post("/jobs", json=api.job(**changes)))
    assert (status, named) == (422, field)
    assert text in detail
    assert api.get("/jobs").json()["items"] == []


def test_a_model_is_no_data_and_data_no_model(api: Caller) -> None:
    job = api.job()
    swapped = job | {"model": job["data"]["validation"]["file"]}
    assert refusal(api.post("/jobs", json=swapped))[:2] == (422, "model")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "must be a job as JSON"),
        (b"{", "must be a job as JSON"),
        (b"[]", "must be a JSON object with at least model, data and constraints, got a list"),
        (b"null", "got a null"),
        (b"\xff\xfe", "must be a job as JSON"),
        (b'{"seed": NaN}', "must be a job as JSON"),
        (b'{"\\ud800": 1}', "must be a job as JSON"),
        (b"[" * 100_000, "must be a job as JSON"),
        (
            b'{"model": "\\u0000", "data": {"validation": {"file": "x"}}, "constraints": [{"metric": "top1", "max_drop": 0}]}',
            "model must be",
        ),
    ],
)
def test_bodies_that_are_no_jobs(api: Caller, body: bytes, text: str) -> None:
    status, _, detail = refusal(api.post("/jobs", content=body, headers={"Content-Type": "application/json"}))
    assert status == 422
    assert text in detail


def test_the_body_has_its_type_and_its_size(api: Caller) -> None:
    job = json.dumps(api.job()).encode()
    wrong = api.post("/jobs", content=job, headers={"Content-Type": "text/yaml"})
    none = api.post("/jobs", content=job)
    large = api.post("/jobs", content=job + b" " * (1 << 20), headers={"Content-Type": "application/json"})
    streamed = api.post("/jobs", content=(b" " * 600_000 for _ in range(2)), headers={"Content-Type": "application/json"})
    assert (wrong.status_code, none.status_code, large.status_code, streamed.status_code) == (415, 415, 413, 413)
    assert "Content-Type must be application/json, got text/yaml. Send the job with -H" in wrong.json()["detail"]
    assert "the body may have 1,048,576 bytes at most" in streamed.json()["detail"]
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert api.post("/jobs", content=job, headers=charset).status_code == 201


def test_the_same_request_with_the_same_key_is_one_job(api: Caller) -> None:
    job, key = api.job(), {"Idempotency-Key": "k-1"}
    first = api.post("/jobs", json=job, headers=key)
    shuffled = json.dumps(dict(reversed(job.items())), indent=3)
    again = api.post("/jobs", content=shuffled, headers=key | {"Content-Type": "application/json"})
    other = api.post("/jobs", json=job | {"seed": 1}, headers=key)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json() == first.json()
    assert (first.headers.get("idempotent-replay"), again.headers["idempotent-replay"]) == (None, "true")
    assert f"made job '{first.json()['id']}'" in other.json()["detail"]
    assert api.services.gate.calls.count("check_job") == 1  # type: ignore[attr-defined]
    assert len(api.get("/jobs").json()["items"]) == 1
    assert api.post("/jobs", json=job).status_code == 201


def test_keys_of_two_callers_are_two_keys(api: Caller) -> None:
    job, key = api.job(), {"Idempotency-Key": "same"}
    one, two = (api.with_key().post("/jobs", json=job, headers=key) for _ in range(2))
    assert (one.status_code, two.status_code) == (201, 201)


def test_requests_that_race_with_one_key_make_one_job(api: Caller) -> None:
    job = api.job()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: api.post("/jobs", json=job, headers={"Idempotency-Key": "race"}), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201])
def test_an_idempotency_key_is_one_word(api: Caller, key: str) -> None:
    answer = api.post("/jobs", json=api.job(), headers={"Idempotency-Key": key})
    assert refusal(answer)[:2] == (422, "Idempotency-Key")


def test_a_key_may_have_so_many_jobs_waiting(tmp_path: Path) -> None:
    with opened(tmp_path, max_active_jobs=1) as services:
        api, other = Caller(services).with_key(), Caller(services).with_key()
        job = api.submit()
        refused = api.post("/jobs", json=api.job())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "30"
        assert "one key may have 1 jobs waiting or running (ACCUTUNE_MAX_ACTIVE_JOBS)" in refused.json()["detail"]
        other.submit()
        assert api.post(f"/jobs/{job}/cancel").status_code == 200
        api.submit()


def test_lists_are_newest_first_in_pages_and_filtered(api: Caller) -> None:
    ids = [api.submit(name=name) for name in ("alpha 1", "alpha 2", "beta", "alpha 3", "gamma")]
    api.post(f"/jobs/{ids[1]}/cancel")
    page = api.get("/jobs?limit=2").json()
    found = [job["id"] for job in page["items"]]
    while page["next"]:
        page = api.get("/jobs", params={"limit": 2, "cursor": page["next"]}).json()
        found += [job["id"] for job in page["items"]]
    assert found == ids[::-1]
    assert "spec" not in page["items"][0]

    def names(**query: str) -> list[str]:
        return [job["name"] for job in api.get("/jobs", params=query).json()["items"]]

    assert names(name="alpha") == ["alpha 3", "alpha 2", "alpha 1"]
    assert names(state="cancelled") == ["alpha 2"]
    assert names(state="queued", name="alpha") == ["alpha 3", "alpha 1"]
    model = api.get(f"/jobs/{ids[0]}").json()["model"]
    assert (len(names(model=model)), names(model="mdl-none")) == (5, [])


def test_a_list_is_searched_and_sorted_by_name(api: Caller) -> None:
    ids = {name: api.submit(name=name) for name in ("beta 2", "alpha_1", "beta 1", "alphas1")}

    def names(**query: str) -> list[str]:
        return [job["name"] for job in api.get("/jobs", params=query).json()["items"]]

    assert names(sort="name", order="asc") == ["alpha_1", "alphas1", "beta 1", "beta 2"]
    assert names(sort="name") == ["beta 2", "beta 1", "alphas1", "alpha_1"]
    assert names(order="asc") == list(ids)
    assert names(search="BETA") == ["beta 1", "beta 2"]
    assert (names(search="a_1"), names(search="%"), names(search="")) == (["alpha_1"], [], list(ids)[::-1])
    model = api.get("/models").json()["items"][0]["name"]
    assert len(names(search=model.upper())) == 4
    cursor = api.get("/jobs", params={"limit": 1, "sort": "name"}).json()["next"]
    assert names(sort="name", cursor=cursor) == ["beta 1", "alphas1", "alpha_1"]
    status, field, detail = refusal(api.get("/jobs", params={"cursor": cursor}))
    assert (status, field) == (422, "cursor")
    assert "cursor must be what an earlier page of this very list gave" in detail


def test_a_job_tells_its_goal_and_what_came_of_it(api: Caller) -> None:
    job = api.submit()
    model = api.get("/models").json()["items"][0]["name"]
    goal = "top1 may get worse by at most 0.01"
    for view in (api.get(f"/jobs/{job}").json(), api.get("/jobs").json()["items"][0], api.post(f"/jobs/{job}/cancel").json()):
        assert (view["goal"], view["model_name"], view["outcome"]) == (goal, model, None)
    api.post(f"/jobs/{job}/resume")
    claim, _ = started(api.services)
    api.services.jobs.finish(job, claim.lease, result(job), ())
    for view in (api.get(f"/jobs/{job}").json(), api.get("/jobs").json()["items"][0]):
        assert view["outcome"] == {
            "trial": 3,
            "verdict": "met",
            "drop": 0.0,
            "drop_lower": 0.0,
            "drop_upper": 0.01,
            "speedup": 2.0,
            "speedup_lower": 1.9,
            "speedup_upper": 2.1,
            "size_ratio": 0.3,
        }


FAULTS = ["state=broken", "limit=1000", "name=%25", "model=a%2Fb", "cursor=a%20b", "cursor=j1", "search=a%0Ab", "sort=speed", "order=up"]


@pytest.mark.parametrize("query", FAULTS)
def test_filters_that_break_a_rule_are_named(api: Caller, query: str) -> None:
    assert refusal(api.get(f"/jobs?{query}"))[:2] == (422, query.partition("=")[0])


def test_cancel_and_resume(api: Caller) -> None:
    job = api.submit()
    cancelled = api.post(f"/jobs/{job}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert "spec" not in cancelled.json()
    assert api.post(f"/jobs/{job}/cancel").status_code == 409
    resumed = api.post(f"/jobs/{job}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (202, "queued")
    assert api.post(f"/jobs/{job}/resume").status_code == 409
    claim, store = started(api.services)
    asked = api.post(f"/jobs/{job}/cancel")
    assert (asked.status_code, asked.json()["state"], asked.json()["cancel_requested"]) == (202, "running", True)
    refused = api.delete(f"/jobs/{job}")
    assert refused.status_code == 409
    assert "is running and cannot be deleted. Cancel it first" in refused.json()["detail"]
    store.set_job_state(claim.job_id, JobState.CANCELLED)
    assert api.delete(f"/jobs/{job}").status_code == 204
    assert api.get(f"/jobs/{job}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/resume"), ("GET", "/trials"), ("GET", "/best")]
)
def test_an_unknown_job_is_not_found(api: Caller, method: str, path: str) -> None:
    answer = api.call(method, f"/jobs/nope{path}")
    assert answer.status_code == 404
    assert "job 'nope' is not known to this server; GET /api/v1/jobs lists" in answer.json()["detail"]


def test_only_the_owner_and_admins_change_a_job(api: Caller) -> None:
    owner, other, viewer, admin = api.with_key(), api.with_key(), api.with_key("viewer"), api.with_key("admin")
    job = owner.submit()
    for stranger in (other, viewer):
        changes = [stranger.post(f"/jobs/{job}/cancel"), stranger.post(f"/jobs/{job}/resume"), stranger.delete(f"/jobs/{job}")]
        assert [answer.status_code for answer in changes] == [403, 403, 403]
    assert viewer.get(f"/jobs/{job}").json()["state"] == "queued"
    assert viewer.post("/jobs", json=api.job()).status_code == 403
    assert owner.post(f"/jobs/{job}/cancel").status_code == 200
    assert admin.delete(f"/jobs/{job}").status_code == 204


@pytest.mark.parametrize("path", ["/api/v1/jobs/../../etc/passwd", "/api/v1/jobs/", "/nothing", "/api/v1", "/api/v1/jobs/a/b/c"])
def test_addresses_that_lead_nowhere(api: Caller, path: str) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    answer = send_as_is(api, scope)
    assert (answer["status"], answer["type"]) == (404, b"application/problem+json")


def send_as_is(api: Caller, scope: dict[str, Any]) -> dict[str, Any]:
    """Status and content type of the answer to a path that no client library has tidied up."""
    found: dict[str, Any] = {}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.update(status=message["status"], type=dict(message["headers"])[b"content-type"])

    more = {"headers": [(b"host", b"localhost")], "scheme": "http", "server": ("localhost", 80), "root_path": "", "http_version": "1.1"}
    asyncio.run(api.http.app(scope | more, receive, send))
    return found


def test_a_method_that_is_not_taken_says_which_are(api: Caller) -> None:
    answer = api.call("PUT", "/jobs")
    assert answer.status_code == 405
    assert answer.headers["allow"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_behind_a_prefix_locations_have_it(tmp_path: Path) -> None:
    with opened(tmp_path, root_path="/accutune") as services:
        api = Caller(services)
        answer = api.post("/jobs", json=api.job())
        assert answer.headers["location"] == f"/accutune/api/v1/jobs/{answer.json()['id']}"
        assert api.http.get("/accutune/api/v1/jobs").status_code == 200


def test_a_job_is_checked_without_being_queued(api: Caller) -> None:
    job = api.job()
    answer = api.post("/checks", json=job)
    assert (answer.status_code, answer.json()) == (200, PREVIEW.model_dump(mode="json"))
    (checked,) = api.services.gate.checked  # type: ignore[attr-defined]
    assert (checked.model, checked.budget.trials) == (f"{job['model']}.onnx", 60)
    assert api.get("/jobs").json()["items"] == []
    assert api.get("/checks").status_code == 405


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": ["acuracy"]},
        {"strategy": "atuo"},
        {"budget": {"parallel": 5}},
        {"name": "bad"},
        {"model": "../../etc/passwd"},
        {"data": {"validation": {"file": "dat-0"}}},
        {"modle": 1},
    ],
)
def test_checking_refuses_what_submitting_refuses(api: Caller, changes: dict[str, Any]) -> None:
    job = api.job(**changes)
    submitted, checked = (api.post(path, json=job) for path in ("/jobs", "/checks"))
    assert checked.status_code == 422
    assert refusal(checked) == refusal(submitted)
    assert checked.json()["errors"] == submitted.json()["errors"]


def test_a_check_has_the_type_and_size_of_a_job(api: Caller) -> None:
    job = json.dumps(api.job()).encode()
    wrong = api.post("/checks", content=job, headers={"Content-Type": "text/yaml"})
    large = api.post("/checks", content=job + b" " * (1 << 20), headers={"Content-Type": "application/json"})
    none = api.post("/checks", content=b"{", headers={"Content-Type": "application/json"})
    assert (wrong.status_code, large.status_code, none.status_code) == (415, 413, 422)


def test_checking_is_for_submitters_and_counts_towards_no_limit_of_jobs(tmp_path: Path) -> None:
    with opened(tmp_path, max_active_jobs=1) as services:
        api, viewer = Caller(services).with_key(), Caller(services).with_key("viewer")
        api.submit()
        job = api.job()
        assert [api.post("/checks", json=job).status_code for _ in range(3)] == [200, 200, 200]
        assert api.post("/jobs", json=job).status_code == 429
        refused = viewer.post("/checks", json=job)
        assert (refused.status_code, "this needs the role 'submitter'" in refused.json()["detail"]) == (403, True)
