"""Figures over HTTP: which there are, what they show of a job, and that they are drawn once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from service import Caller, failed, opened, started, trial

from server.api import drawings
from server.api.drawings import FEWEST, FIGURES
from server.api.drawn import Drawn
from server.api.quantities import cost_quantity, drop_quantity, history_of, metric_quantity, when
from server.store.trial_lists import Recorded
from server.store.trials import SqlTrialStore
from tests.store_samples import START, spec
from tuner.job import Constraint
from tuner.results import Measurement, TrialResult, TrialState
from tuner.search import figures as search_figures
from tuner.search import layer_figures
from tuner.search.figures import figure_names
from tuner.store import JobState

OPTIONS = ("float", "u8-asym-kl/s8-sym-channel", "u8-asym-mse/s8-sym-channel")
NAMES = [figure.name for figure in FIGURES]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Caller]:
    with opened(tmp_path) as services:
        yield Caller(services)


def chosen(number: int, source: random.Random) -> TrialResult:
    layers = {name: source.choice(OPTIONS) for name in ("conv1", "conv2", "fc")}
    return trial(number, assignment=layers, drop=0.015 * OPTIONS.index(layers["conv2"]), speedup=1 + number / 10)


@pytest.fixture
def job(api: Caller) -> str:
    """A running job with 20 finished trials, one that failed and one that runs."""
    name = api.submit()
    store, source = started(api.services)[1], random.Random(0)
    for row in [*(chosen(number, source) for number in range(20)), failed(20), trial(21, state=TrialState.RUNNING)]:
        store.save_trial(name, row)
    return name


def test_all_figures_are_listed(api: Caller, job: str) -> None:
    answer = api.get(f"/jobs/{job}/figures")
    assert answer.status_code == 200
    assert [figure["name"] for figure in answer.json()] == NAMES == list(figure_names())
    assert all(set(figure) == {"name", "title", "caption", "fewest"} and figure["caption"].endswith(".") for figure in answer.json())


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn(api: Caller, job: str, name: str) -> None:
    answer = api.get(f"/jobs/{job}/figures/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert set(answer.json()) == {"data", "layout"}
    assert answer.json()["data"]


def titles(figure: dict[str, Any]) -> tuple[str, str]:
    return figure["layout"]["xaxis"]["title"]["text"], figure["layout"]["yaxis"]["title"]["text"]


def test_the_axes_tell_what_the_job_is_about(api: Caller, job: str) -> None:
    lost, speed = "accuracy lost (top1), percentage points", "speed-up over the original, ×"
    assert titles(api.get(f"/jobs/{job}/figures/history").json()) == ("trial", speed)
    assert titles(api.get(f"/jobs/{job}/figures/front").json()) == (speed, lost)


def test_the_numbers_are_those_of_the_trials(api: Caller, job: str) -> None:
    traces = api.get(f"/jobs/{job}/figures/history").json()["data"]
    best = next(trace for trace in traces if trace["name"] == "best so far")
    assert best["x"] == [*range(20), 21]
    source = random.Random(0)
    feasible = [one.number for one in (chosen(number, source) for number in range(20)) if one.feasible]
    assert best["y"][-1] == pytest.approx(1 + feasible[-1] / 10)
    (bars,) = api.get(f"/jobs/{job}/figures/importances").json()["data"]
    assert bars["customdata"][-1] == "conv2"
    shown = {trace["name"]: trace["y"] for trace in api.get(f"/jobs/{job}/figures/timeline").json()["data"]}
    assert (shown["failed"], shown["running"]) == ([20], [21])
    assert sum(map(len, shown.values())) == 22


def test_what_cannot_be_drawn_says_why(api: Caller) -> None:
    job = api.submit()
    store = started(api.services)[1]
    for number in range(12):
        store.save_trial(job, trial(number))
    answer = api.get(f"/jobs/{job}/figures/contour")
    assert answer.status_code == 409
    assert answer.json()["detail"] == (
        f"figure 'contour' of job '{job}' cannot be drawn: it needs at least 2 layers for which trials chose differently, "
        f"and there are none. Ask again once more trials are finished, or look at another one: GET /api/v1/jobs/{job}/figures"
    )
    store.set_job_state(job, JobState.CANCELLED)
    assert "none. Look at another one: GET" in api.get(f"/jobs/{job}/figures/contour").json()["detail"]


def test_the_fewest_trials_are_those_of_the_drawings() -> None:
    assert {figure.fewest for figure in FIGURES} == {layer_figures.FEWEST, search_figures.FEWEST}
    assert layer_figures.FEWEST == FEWEST


@pytest.mark.parametrize("name", NAMES)
def test_a_job_without_trials_has_no_figures(api: Caller, name: str) -> None:
    answer = api.get(f"/jobs/{api.submit()}/figures/{name}")
    assert answer.status_code == 409
    assert "it needs at least" in answer.json()["detail"]


def test_unknown_jobs_and_figures_are_not_found(api: Caller, job: str) -> None:
    for path in ("/jobs/gone/figures", "/jobs/gone/figures/history"):
        assert api.get(path).status_code == 404
        assert "job 'gone' is not known" in api.get(path).json()["detail"]
    answer = api.get(f"/jobs/{job}/figures/slices")
    assert answer.status_code == 404
    assert "unknown figure 'slices'. Did you mean 'slice'?" in answer.json()["detail"]


def test_a_figure_is_drawn_once_until_there_is_more_to_show(api: Caller, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = drawings._drawn
    monkeypatch.setattr(drawings, "_drawn", lambda services, job_id, name: (drawn.append(name), draw(services, job_id, name))[1])
    first, again = (api.get(f"/jobs/{job}/figures/history").json() for _ in range(2))
    assert (first, drawn) == (again, ["history"])
    api.get(f"/jobs/{job}/figures/front")
    SqlTrialStore(api.services.database).save_trial(job, trial(22, speedup=9.0))
    assert api.get(f"/jobs/{job}/figures/history").json() != first
    SqlTrialStore(api.services.database).set_job_state(job, JobState.FAILED)
    api.get(f"/jobs/{job}/figures/history")
    assert drawn == ["history", "front", "history", "history"]


def test_only_the_last_figures_are_kept() -> None:
    kept = Drawn(most=2)
    for name in ("a", "b"):
        kept.put(("j", name, JobState.RUNNING, 1), name)
    assert kept.get(("j", "a", JobState.RUNNING, 1)) == "a"
    kept.put(("j", "c", JobState.RUNNING, 1), "c")
    assert [kept.get(("j", name, JobState.RUNNING, 1)) for name in "abc"] == ["a", None, "c"]
    assert kept.get(("j", "a", JobState.RUNNING, 2)) is None


@pytest.mark.parametrize(
    ("constraint", "title", "value"),
    [
        ({"metric": "top1", "max_drop": 0.01}, "accuracy lost (top1), percentage points", 3.0),
        ({"metric": "top1", "max_drop": 0.01, "relative": True}, "accuracy lost (top1), % of the original’s value", 3.0),
        ({"metric": "mse", "max_drop": 0.01}, "accuracy lost (mse)", 0.03),
    ],
)
def test_drops_are_in_the_unit_of_the_constraint(constraint: dict[str, Any], title: str, value: float) -> None:
    drop = drop_quantity(spec().model_copy(update={"constraints": (Constraint(**constraint),)}))
    assert (drop.title, drop.of(trial(0, drop=0.03)), drop.of(failed(0))) == (title, pytest.approx(value), None)


def measured(**values: float) -> TrialResult:
    found = {
        name: Measurement(metric=name, value=value, direction="lower" if name == "mse" else "higher") for name, value in values.items()
    }
    return trial(0, measurements=found)


def test_costs_and_metrics_have_units_and_a_direction() -> None:
    one = measured(size_bytes=4096.0, macs=2e6, top1=0.9, mse=0.5)
    known = [cost_quantity(name, [one]) for name in ("size", "macs", "latency")]
    known += [metric_quantity(name, [one]) for name in ("top1", "mse", "auroc")]
    assert [(quantity.title, quantity.of(one), quantity.higher) for quantity in known] == [
        ("file size, KiB", 4.0, False),
        ("multiply-accumulates (MACs), million", 2.0, False),
        ("speed-up over the original, ×", 1.5, True),
        ("top1, %", 90.0, True),
        ("mse", 0.5, False),
        ("auroc, %", None, True),
    ]


@pytest.mark.parametrize(
    ("objectives", "objective", "cost"),
    [
        (("latency",), "speed-up over the original, ×", "speed-up over the original, ×"),
        (("top1", "size"), "top1, %", "file size, bytes"),
        (("top1",), "top1, %", "file size, bytes"),
    ],
)
def test_the_first_objective_and_the_first_cost_are_drawn(objectives: tuple[str, ...], objective: str, cost: str) -> None:
    recorded = [Recorded(trial(0), START, START)]
    history = history_of(spec().model_copy(update={"objectives": objectives}), recorded, START)
    assert (history.objective.title, history.cost.title) == (objective, cost)


def test_a_trial_ran_when_it_was_last_finished_or_runs_until_now() -> None:
    later, now = START + timedelta(seconds=60), START + timedelta(seconds=90)
    spent = trial(0, timings={"build": 1.0, "evaluate": 4.0})
    assert when(Recorded(spent, START, later), now) == (later - timedelta(seconds=5), later)
    assert when(Recorded(trial(0, timings={}), START, later), now) == (START, later)
    assert when(Recorded(spent, START, None), now) == (START, now)
    assert when(Recorded(spent, now, None), START) == (START, START)
