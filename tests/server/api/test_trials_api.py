from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service import Caller, failed, leave, opened, started, trial

from server.store.trials import SqlTrialStore
from tuner.results import TrialState
from tuner.wire import JobProgress


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


@pytest.fixture
def job(api: Caller) -> str:
    """A running job: five finished trials of which one failed and one is not feasible, and one that runs."""
    name = api.submit(metrics=["auto"])
    claim, store = started(api.services)
    api.services.jobs.note(name, claim.lease, progress=JobProgress(metrics=("top1",)))
    rows = [trial(0, speedup=1.5), trial(1, speedup=2.5), failed(2, "=cmd|' /C calc'!A0"), trial(3, speedup=0.5, drop=0.5)]
    for row in [*rows, trial(4, speedup=None), trial(5, state=TrialState.RUNNING, speedup=None, verdicts=(), measurements={})]:
        store.save_trial(name, row)
    return name


def numbers(api: Caller, job: str, **query: Any) -> list[int]:
    """Of all pages."""
    found: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get(f"/jobs/{job}/trials", params=query | cursor).json()
        found += [row["number"] for row in page["items"]]
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


def test_trials_come_in_pages_sorted_and_filtered(api: Caller, job: str) -> None:
    assert numbers(api, job) == [0, 1, 2, 3, 4, 5]
    assert numbers(api, job, limit=2, order="desc") == [5, 4, 3, 2, 1, 0]
    assert numbers(api, job, limit=2, sort="speedup", order="desc")[:3] == [1, 0, 3]
    assert numbers(api, job, limit=1, sort="speedup")[:3] == [3, 0, 1]
    assert numbers(api, job, state="failed") == [2]
    assert numbers(api, job, feasible="true") == [0, 1, 4]
    assert api.get(f"/jobs/{job}/trials?limit=1").json()["items"][0]["values"]["top1"] == pytest.approx(0.89)


@pytest.mark.parametrize(
    "query", ["sort=assignment", "order=up", "state=broken", "feasible=maybe", "limit=0", "cursor=AAAA", "cursor=bnVsbA"]
)
def test_queries_that_break_a_rule_are_named(api: Caller, job: str, query: str) -> None:
    answer = api.get(f"/jobs/{job}/trials?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, query.partition("=")[0])


def test_a_cursor_of_another_list_is_refused(api: Caller, job: str) -> None:
    cursor = api.get(f"/jobs/{job}/trials?limit=1&sort=speedup").json()["next"]
    answer = api.get(f"/jobs/{job}/trials", params={"cursor": cursor})
    assert answer.status_code == 422
    assert "cursor must be what an earlier page of this very list gave" in answer.json()["detail"]


def test_one_trial_is_what_was_recorded(api: Caller, job: str) -> None:
    assert api.get(f"/jobs/{job}/trials/1").json() == trial(1, speedup=2.5).model_dump(mode="json")
    missing = api.get(f"/jobs/{job}/trials/77")
    assert missing.status_code == 404
    assert f"job '{job}' has no trial 77" in missing.json()["detail"]
    assert [api.get(f"/jobs/{job}/trials/{n}").status_code for n in ("-1", "x", "9" * 9, "9" * 10, "1e3")] == [404] * 5


def test_the_table_has_the_folders_columns_while_the_job_runs(api: Caller, job: str) -> None:
    answer = api.get(f"/jobs/{job}/trials.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{job}-trials.csv"'
    rows = list(csv.DictReader(answer.text.splitlines(keepends=True)))
    assert list(rows[0]) == [
        *("number", "state", "feasible", "drop", "drop_lower", "drop_upper", "verdict", "samples"),
        *("speedup", "speedup_lower", "speedup_upper", "seconds", "plan_digest", "notes", "error"),
        *("top1", "latency_ms", "size_bytes", "macs", "params"),
    ]
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert (rows[1]["speedup"], rows[1]["size_bytes"], rows[1]["latency_ms"], rows[2]["drop"]) == ("2.5", "1000.0", "", "")
    assert rows[2]["error"] == "evaluate: Timeout: =cmd|' /C calc'!A0"


def test_a_table_of_many_trials_is_whole(api: Caller, job: str) -> None:
    assert len(api.get(f"/jobs/{job}/trials.csv").text.splitlines()) == 6
    store = SqlTrialStore(api.services.database)
    for number in range(6, 700):
        store.save_trial(job, trial(number))
    lines = api.get(f"/jobs/{job}/trials.csv").text.splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == [str(n) for n in range(700) if n != 5]


def test_a_job_without_trials_has_a_table_with_a_header(api: Caller) -> None:
    assert len(api.get(f"/jobs/{api.submit()}/trials.csv").text.splitlines()) == 1


def test_a_trials_model_is_made_once_from_its_plan(api: Caller, job: str) -> None:
    leave(api.services, job, "trials/1.plan.json", b'{"plan": 1}', "application/json")
    plan = api.get(f"/jobs/{job}/trials/1/plan")
    assert (plan.json(), plan.headers["content-type"]) == ({"plan": 1}, "application/json")
    assert plan.headers["content-disposition"] == f'attachment; filename="{job}-trial-1.plan.json"'
    first, again = (api.get(f"/jobs/{job}/trials/1/model") for _ in range(2))
    assert (first.content, again.content) == (b'a model{"plan": 1}',) * 2
    assert api.services.gate.calls.count("rebuild") == 1  # type: ignore[attr-defined]
    assert "trials/1.onnx" in [file["name"] for file in api.get(f"/jobs/{job}/artifacts").json()]
    assert api.get(f"/jobs/{job}/trials/1/model", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [
        (2, 409, "trial 2 of job '{job}' is failed and has left no plan: =cmd|' /C calc'!A0. Take a trial that is complete or stopped."),
        (5, 409, "trial 5 of job '{job}' is running and has left no plan. Ask again once it is finished."),
        (77, 404, "job '{job}' has no trial 77"),
    ],
)
def test_a_trial_without_a_plan_says_why(api: Caller, job: str, number: int, status: int, text: str) -> None:
    for what in ("plan", "tensors", "model"):
        answer = api.get(f"/jobs/{job}/trials/{number}/{what}")
        assert answer.status_code == status
        assert text.format(job=job) in answer.json()["detail"]


def test_the_weights_that_a_plan_changed_go_with_it_and_into_the_model(api: Caller, job: str) -> None:
    leave(api.services, job, "trials/1.plan.json", b'{"plan": 1}', "application/json")
    leave(api.services, job, "trials/1.tensors.safetensors", b"weights")
    tensors = api.get(f"/jobs/{job}/trials/1/tensors")
    assert (tensors.content, tensors.headers["content-type"]) == (b"weights", "application/octet-stream")
    assert tensors.headers["content-disposition"] == f'attachment; filename="{job}-trial-1.tensors.safetensors"'
    assert api.get(f"/jobs/{job}/trials/1/tensors", headers={"If-None-Match": tensors.headers["etag"]}).status_code == 304
    assert api.get(f"/jobs/{job}/trials/1/model").content == b'a model{"plan": 1}weights'


def test_a_plan_that_changed_no_weights_says_so(api: Caller, job: str) -> None:
    leave(api.services, job, "trials/1.plan.json", b'{"plan": 1}', "application/json")
    answer = api.get(f"/jobs/{job}/trials/1/tensors")
    assert answer.status_code == 404
    assert f"the plan of trial 1 of job '{job}' changes no weights" in answer.json()["detail"]
