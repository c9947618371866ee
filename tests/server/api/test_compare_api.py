from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service import Caller, failed, leave, opened, started, trial

from tuner.plan import AppliedPlan, CompressionPlan, LayerQuant
from tuner.results import BaselineRows, RowScores, TrialState

GOOD = "u8-asym-mse/s8-sym-channel"
JSON = "application/json"
BASELINE = BaselineRows(metric="top1", scores=(1, 1, 0, 1), direction="higher", total=4, rows=(103, 100, 102, 101), classes=(0, 1, 1, 0))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


@pytest.fixture
def job(api: Caller) -> str:
    """Trials 0 and 1 have all that is kept of a trial; 2 failed, 3 runs, 4 is older than row scores, 5 was cancelled."""
    name = api.submit()
    _, store = started(api.services)
    unjudged: dict[str, Any] = {"speedup": None, "verdicts": (), "measurements": {}}
    for row in (trial(0), trial(1), failed(2), trial(3, state=TrialState.RUNNING, **unjudged), trial(4)):
        store.save_trial(name, row)
    store.save_trial(name, trial(5, state=TrialState.CANCELLED, **unjudged))
    leave(api.services, name, "rows.json", BASELINE.model_dump_json().encode(), JSON)
    keep(api, name, 0, (0, 1, 1, 1), fc1=GOOD)
    keep(api, name, 1, (1, 0, 0))
    plan = AppliedPlan(plan=CompressionPlan(), model_sha256="0" * 64)
    leave(api.services, name, "trials/4.plan.json", plan.model_dump_json().encode(), JSON)
    return name


def keep(api: Caller, job: str, number: int, scores: tuple[float, ...], **layers: str) -> None:
    plan = AppliedPlan(
        plan=CompressionPlan(), model_sha256="0" * 64, layers={layer: LayerQuant(scheme=scheme) for layer, scheme in layers.items()}
    )
    leave(api.services, job, f"trials/{number}.plan.json", plan.model_dump_json().encode(), JSON)
    leave(api.services, job, f"trials/{number}.rows.json", RowScores(metric="top1", scores=scores).model_dump_json().encode(), JSON)


def test_one_trial_stands_beside_the_original(api: Caller, job: str) -> None:
    assert api.get(f"/jobs/{job}/compare?trial=0").json() == {
        "metric": "top1",
        "rows": 4,
        "whole": True,
        "trials": [0],
        "classes": [
            {"label": 0, "rows": 2, "original": 1.0, "trials": [0.5]},
            {"label": 1, "rows": 2, "original": 0.5, "trials": [1.0]},
        ],
        "flips": [{"trial": 0, "lost": 1, "gained": 1, "lost_rows": [103], "gained_rows": [102]}],
        "plans": [{"layer": "fc1", "choices": [GOOD]}],
    }


def test_several_trials_come_in_the_order_asked_on_the_rows_of_all(api: Caller, job: str) -> None:
    found = api.get(f"/jobs/{job}/compare?trial=1&trial=0").json()
    assert (found["rows"], found["whole"], found["trials"]) == (3, False, [1, 0])
    assert found["flips"] == [
        {"trial": 1, "lost": 1, "gained": 0, "lost_rows": [100], "gained_rows": []},
        {"trial": 0, "lost": 1, "gained": 1, "lost_rows": [103], "gained_rows": [102]},
    ]
    assert found["classes"][1] == {"label": 1, "rows": 2, "original": 0.5, "trials": [0.0, 1.0]}
    assert found["plans"] == [{"layer": "fc1", "choices": ["float", GOOD]}]


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [
        (
            2,
            409,
            "trial 2 of job '{job}' is failed and has left no scores of its rows: it broke. Take a trial that is complete or stopped.",
        ),
        (3, 409, "trial 3 of job '{job}' is running and has left no scores of its rows. Ask again once it is finished."),
        (4, 409, "trial 4 of job '{job}' is complete and has left no scores of its rows. It ran before they were kept; take a later one"),
        (5, 409, "trial 5 of job '{job}' is cancelled and has left no scores of its rows. Take a trial that is complete or stopped."),
        (77, 404, "job '{job}' has no trial 77"),
    ],
)
def test_a_trial_without_scores_says_why(api: Caller, job: str, number: int, status: int, text: str) -> None:
    answer = api.get(f"/jobs/{job}/compare?trial=0&trial={number}")
    assert answer.status_code == status
    assert text.format(job=job) in answer.json()["detail"]


def test_a_trial_without_a_plan_says_why(api: Caller, job: str) -> None:
    leave(api.services, job, "trials/3.rows.json", RowScores(metric="top1", scores=(1,)).model_dump_json().encode(), JSON)
    answer = api.get(f"/jobs/{job}/compare?trial=3")
    assert answer.status_code == 409
    assert f"trial 3 of job '{job}' is running and has left no plan." in answer.json()["detail"]


def test_a_metric_of_whole_splits_has_no_scores_of_rows(api: Caller) -> None:
    limits = [{"metric": "size_bytes", "at_most": 10**6}, {"metric": "macro_f1", "max_drop": 0.01}, {"metric": "top1", "max_drop": 0.01}]
    job = api.submit(metrics=["macro_f1", "top1"], constraints=limits)
    _, store = started(api.services)
    store.save_trial(job, trial(0))
    answer = api.get(f"/jobs/{job}/compare?trial=0")
    assert answer.status_code == 409
    assert f"job '{job}' is judged by macro_f1, a metric of whole splits: its rows have no scores of their own." in answer.json()["detail"]


@pytest.mark.parametrize("query", ["", "trial=0&trial=1&trial=0", "trial=0&trial=1&trial=2&trial=3&trial=4", "trial=-1", "trial=x"])
def test_trials_that_cannot_be_compared_are_refused(api: Caller, job: str, query: str) -> None:
    answer = api.get(f"/jobs/{job}/compare?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("trial")


def test_a_trial_that_is_named_twice_is_named(api: Caller, job: str) -> None:
    detail = api.get(f"/jobs/{job}/compare?trial=1&trial=1").json()["detail"]
    assert detail == "the trials to compare must be different ones, got 1, 1. Name each only once."


def test_the_job_must_be_there_and_the_caller_a_viewer(api: Caller, job: str) -> None:
    assert api.get("/jobs/nothing/compare?trial=0").status_code == 404
    assert api.with_key("viewer").get(f"/jobs/{job}/compare?trial=0").status_code == 200
    assert Caller(api.services, "acc_nobody_secret").get(f"/jobs/{job}/compare?trial=0").status_code == 401
