from __future__ import annotations

import csv
import errno
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_executor import ALLOWED, GOOD, LAYERS, TWIN, FakeExecutor, drop_of, make_job

from search_spaces.schemes import FLOAT
from tuner import study as study_module
from tuner.errors import JobCancelled, StorageError, TrialError, UnknownName
from tuner.job import Budget, Constraint, JobSpec
from tuner.progress import PHASES, Event
from tuner.results import Assignment, TrialResult, TrialState
from tuner.search.base import Problem
from tuner.store import InMemoryTrialStore, JobState
from tuner.study import Searched, Study

PLANS = 3 ** len(LAYERS) - 1
"""Every plan but the one that leaves everything alone."""


def start(folder: Path, job: JobSpec, executor: FakeExecutor, **parts: Any) -> Study:
    parts.setdefault("store", InMemoryTrialStore())
    made = Study(job, "job", folder, executor=executor, **parts)
    made.open()
    return made


def search(folder: Path, job: JobSpec, executor: FakeExecutor, **parts: Any) -> tuple[Study, Searched]:
    made = start(folder, job, executor, **parts)
    return made, made.search()


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of trials.csv without the column that time decides."""
    lines = (folder / "trials.csv").read_text().splitlines()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(lines)]


def digests(trials: Sequence[TrialResult]) -> list[str]:
    return [trial.plan_digest for trial in trials]


@pytest.mark.parametrize("strategy", ["auto", "random", "grid", "tpe"])
def test_the_budget_of_trials_ends_the_search_and_no_plan_comes_twice(tmp_path: Path, strategy: str) -> None:
    job = make_job(strategy=strategy, budget=Budget(trials=15, seconds=1000))
    executor = FakeExecutor(job)
    made, found = search(tmp_path, job, executor)
    assert [trial.number for trial in found.history] == list(range(15))
    assert len(set(digests(found.history))) == 15
    assert len(executor.evaluated()) == 15
    assert made.stop_reason == "the budget of 15 trials is spent"
    assert not any(all(choice == FLOAT for choice in assignment.values()) for assignment in executor.evaluated())


def test_the_budget_of_seconds_ends_the_search_in_time_for_certifying(tmp_path: Path) -> None:
    job = make_job(budget=Budget(trials=50, seconds=100))
    now = [0.0]

    def advance(name: str, _: dict[str, Any]) -> None:
        now[0] += 10.0 if name == "evaluate" else 0.0

    made, found = search(tmp_path, job, FakeExecutor(job, before=advance), clock=lambda: now[0])
    assert len(found.history) == 9  # 85 s of 100 are for searching.
    assert made.stop_reason == "the budget of 100 s is spent (a part of it is kept for certifying)"
    assert made.store.job("job").seconds == 90.0


def test_a_strategy_that_has_asked_everything_ends_the_search(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=Budget(trials=1000))
    made, found = search(tmp_path, job, FakeExecutor(job))
    assert len(found.history) == PLANS
    assert made.stop_reason == "every plan that the strategy asks for was tried"


def test_a_strategy_that_only_repeats_itself_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(budget=Budget(trials=1000))
    asked = []

    def stubborn(_problem: Problem, _history: Sequence[TrialResult], attempt: int) -> Assignment:
        asked.append(attempt)
        return dict.fromkeys(LAYERS, GOOD)

    made = start(tmp_path, job, FakeExecutor(job))
    monkeypatch.setattr(made, "strategy", stubborn)
    assert len(made.search().history) == 1
    assert asked == list(range(1 + study_module.MAX_REPEATS))


def test_stop_first_ends_with_the_first_feasible_trial(tmp_path: Path) -> None:
    job = make_job(stop="first", strategy="grid", budget=Budget(trials=50))
    made, found = search(tmp_path, job, FakeExecutor(job))
    assert [trial.feasible for trial in found.history] == [False] * (len(found.history) - 1) + [True]
    assert made.stop_reason == "the first feasible trial was asked for"


def test_a_feasible_trial_is_one_whose_drop_is_allowed(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=Budget(trials=80))
    _, found = search(tmp_path, job, FakeExecutor(job))
    for trial in found.history:
        assert trial.feasible == (drop_of(trial.assignment) <= ALLOWED)


def test_failed_trials_are_rows_and_the_search_goes_on(tmp_path: Path) -> None:
    job = make_job()

    def break_some(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] in (1, 4):
            raise TrialError("out of memory", step="session", kind="WorkerDied")

    made, found = search(tmp_path, job, FakeExecutor(job, before=break_some))
    assert len(found.history) == 12
    failed = [trial for trial in found.history if trial.state == TrialState.FAILED]
    assert [trial.number for trial in failed] == [1, 4]
    assert failed[0].error is not None
    assert (failed[0].error.type, failed[0].error.message, failed[0].error.step) == ("WorkerDied", "out of memory", "session")
    assert not failed[0].feasible
    stored = list(made.store.trials("job"))
    assert stored == sorted(found.history, key=lambda trial: trial.number)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["number"] for row in rows] == [str(number) for number in range(12)]
    assert rows[1]["error"] == "session: WorkerDied: out of memory"


@pytest.mark.parametrize(
    "strategy", ["amc", "annealing", "auto", "autocompress", "grid", "netadapt", "nsga2", "random", "sensitivity", "tpe"]
)
@pytest.mark.parametrize("killed_at", [1, 7])
def test_a_resumed_search_asks_what_an_uninterrupted_one_would(tmp_path: Path, strategy: str, killed_at: int) -> None:
    job = make_job(strategy=strategy, budget=Budget(trials=16, seconds=1000), seed=3)
    _, whole = search(tmp_path / "whole", job, FakeExecutor(job))
    store = InMemoryTrialStore()

    def kill(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", job, FakeExecutor(job, before=kill), store=store)
    assert [trial.state for trial in store.trials("job")] == [TrialState.COMPLETE] * killed_at + [TrialState.RUNNING]
    again = FakeExecutor(job)
    _, resumed = search(tmp_path / "cut", job, again, store=store)
    assert len(again.evaluated()) == len(whole.history) - killed_at > 0
    assert [(trial.number, trial.plan_digest) for trial in resumed.history] == [(t.number, t.plan_digest) for t in whole.history]
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


def test_a_resumed_search_goes_on_with_the_seconds_that_were_spent(tmp_path: Path) -> None:
    job = make_job(budget=Budget(trials=50, seconds=100))
    store, now = InMemoryTrialStore(), [0.0]

    def advance(stop_at: int) -> Callable[[str, dict[str, Any]], None]:
        def tick(name: str, arguments: dict[str, Any]) -> None:
            now[0] += 10.0 if name == "evaluate" else 0.0
            if arguments.get("number") == stop_at:
                raise JobCancelled("stop")

        return tick

    with pytest.raises(JobCancelled):
        search(tmp_path, job, FakeExecutor(job, before=advance(4)), clock=lambda: now[0], store=store)
    made, found = search(tmp_path, job, FakeExecutor(job, before=advance(99)), clock=lambda: now[0], store=store)
    assert len(found.history) == 9
    assert made.seconds == 90.0


@pytest.mark.parametrize("ended", [JobState.CANCELLED, JobState.INTERRUPTED, JobState.FAILED])
def test_a_trial_that_was_queued_when_the_job_stopped_is_run_again(tmp_path: Path, ended: JobState) -> None:
    job = make_job(budget=Budget(trials=6, seconds=1000))
    store, states = InMemoryTrialStore(), []

    def kill(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] == 3:
            raise JobCancelled("stop")

    with pytest.raises(JobCancelled):
        search(tmp_path, job, FakeExecutor(job, before=kill), store=store)
    store.set_job_state("job", ended)
    left = store.trial("job", 3)

    def look(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] == 3:
            states.append(store.trial("job", 3).state)

    again = FakeExecutor(job, before=look)
    _, found = search(tmp_path, job, again, store=store)
    assert (left.state, states, store.trial("job", 3).state) == (TrialState.QUEUED, [TrialState.RUNNING], TrialState.COMPLETE)
    assert again.evaluated()[0] == left.assignment
    assert [trial.number for trial in found.history] == list(range(6))


def test_trials_that_will_not_run_again_do_not_stay_running(tmp_path: Path) -> None:
    job = make_job()
    store = InMemoryTrialStore()

    def kill(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] == 3:
            raise JobCancelled("stop")

    with pytest.raises(JobCancelled):
        search(tmp_path, job, FakeExecutor(job, before=kill), store=store)
    made, found = search(tmp_path, job, FakeExecutor(job), store=store, finish_now=True)
    assert made.stop_reason == "it was asked to finish with what there is"
    assert len(found.history) == 3
    assert store.trial("job", 3).state == TrialState.CANCELLED


def test_the_same_seed_asks_for_the_same_plans_and_another_for_others(tmp_path: Path) -> None:
    found = []
    for index, seed in enumerate((1, 1, 2)):
        job = make_job(seed=seed)
        executor = FakeExecutor(job)
        search(tmp_path / str(index), job, executor)
        found.append(executor.evaluated())
    assert found[0] == found[1] != found[2]


def test_two_trials_run_at_once(tmp_path: Path) -> None:
    job = make_job(strategy="auto", budget=Budget(trials=11, parallel=2, seconds=1000))
    together = threading.Barrier(2, timeout=20)

    def meet(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] < 10:
            together.wait()

    executor = FakeExecutor(job, before=meet)
    _, found = search(tmp_path, job, executor)
    assert sorted(trial.number for trial in found.history) == list(range(11))
    assert len(set(digests(found.history))) == 11


def test_an_error_that_is_not_a_trials_own_ends_the_search(tmp_path: Path) -> None:
    job = make_job()

    def full(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] == 2:
            raise StorageError("the disk is full")

    store = InMemoryTrialStore()
    with pytest.raises(StorageError):
        search(tmp_path, job, FakeExecutor(job, before=full), store=store)
    assert [trial.number for trial in store.trials("job") if trial.finished] == [0, 1]


def test_a_full_disk_stops_the_job_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, store = make_job(), InMemoryTrialStore()
    whole = search(tmp_path / "whole", job, FakeExecutor(job))[1].history
    written = []

    def full(_: int) -> None:
        written.append(1)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", "trials.csv")

    monkeypatch.setattr("tuner.export.os.fsync", full)
    with pytest.raises(StorageError, match=r"writing trials\.csv failed: No space left on device .*Free some space, then go on"):
        search(tmp_path / "full", job, FakeExecutor(job), store=store)
    monkeypatch.undo()
    found = search(tmp_path / "full", job, FakeExecutor(job), store=store)[1].history
    assert digests(found) == digests(whole)


def test_the_observer_sees_every_phase_and_trial(tmp_path: Path) -> None:
    job, events = make_job(), list[Event]()
    search(tmp_path, job, FakeExecutor(job), observer=events.append)
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == list(PHASES[: len(phases)]) == ["prepare", "baseline", "calibrate", "sensitivity", "search"]
    checked = [(event.phase, event.preflight) for event in events if event.preflight is not None]
    assert [(phase, preflight.rows["holdout"], preflight.notes) for phase, preflight in checked] == [("baseline", 100, ("a note",))]
    trials = [event for event in events if event.trial is not None]
    assert [(event.done, event.total) for event in trials] == [(done, 12) for done in range(1, 13)]
    assert trials[-1].seconds_left == 0.0
    best = [event.best.measurements["size_bytes"].value for event in trials if event.best is not None and event.best.feasible]
    assert best
    assert all(later <= earlier for earlier, later in pairwise(best))


def timed(executor: FakeExecutor) -> list[tuple[Assignment, bool]]:
    return [(arguments["assignment"], arguments["measure_latency"]) for name, arguments in executor.calls if name == "evaluate"]


def test_latency_is_measured_only_where_it_may_win(tmp_path: Path) -> None:
    job = make_job(objectives=("latency",), budget=Budget(trials=40))
    executor = FakeExecutor(job)
    _, found = search(tmp_path, job, executor)
    best: float | None = None
    for (assignment, measured), trial in zip(timed(executor), found.history, strict=True):
        predicted = found.problem.predict(assignment)[0]
        assert measured == (best is None or predicted <= study_module.NEAR * best)
        if trial.speedup is not None:
            best = predicted if best is None else min(best, predicted)
    assert 0 < sum(measured for _, measured in timed(executor)) < 30


@pytest.mark.parametrize(
    ("objectives", "limit", "all_timed"), [(("size",), None, False), (("size",), 3.0, True), (("latency",), 3.0, True)]
)
def test_a_limit_on_latency_has_every_trial_timed(
    tmp_path: Path, objectives: tuple[str, ...], limit: float | None, all_timed: bool
) -> None:
    constraints = make_job().constraints + ((Constraint(metric="latency_ms", at_most=limit),) if limit else ())
    job = make_job(objectives=objectives, constraints=constraints)
    executor = FakeExecutor(job)
    search(tmp_path, job, executor)
    assert {measured for _, measured in timed(executor)} == {all_timed}


def test_of_trials_that_run_the_same_kernels_one_is_timed_for_all(tmp_path: Path) -> None:
    job = make_job(objectives=("latency",), strategy="grid", budget=Budget(trials=40))
    executor = FakeExecutor(job, options=(FLOAT, GOOD, TWIN))
    _, found = search(tmp_path, job, executor)
    kinds: dict[tuple[bool, ...], TrialResult] = {}
    for (assignment, measured), trial in zip(timed(executor), found.history, strict=True):
        kind = tuple(choice == FLOAT for choice in assignment.values())
        assert not (measured and kind in kinds)
        if kind in kinds:
            assert trial.speedup == kinds[kind].speedup
            assert trial.notes == (f"latency as measured for trial {kinds[kind].number}, which runs the same kernels",)
        elif trial.speedup is not None:
            kinds[kind] = trial
    assert kinds


def test_the_best_so_far_is_the_best_feasible_else_the_nearest_miss(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=Budget(trials=80))
    _, found = search(tmp_path, job, FakeExecutor(job))
    best = study_module.best_so_far(found.history, found.problem)
    assert best is not None
    smallest = min(trial.measurements["size_bytes"].value for trial in found.history if trial.feasible)
    assert best.measurements["size_bytes"].value == smallest
    missed = [trial for trial in found.history if not trial.feasible]
    nearest = study_module.best_so_far(missed, found.problem)
    assert nearest is not None
    assert nearest.violation == min(trial.violation for trial in missed if trial.violation is not None)
    assert study_module.best_so_far([], found.problem) is None


def test_an_unknown_strategy_is_refused_before_anything_starts(tmp_path: Path) -> None:
    job = make_job(strategy="tpee")
    with pytest.raises(UnknownName, match=r"unknown strategy 'tpee'\. Did you mean 'tpe'"):
        Study(job, "job", tmp_path, InMemoryTrialStore(), FakeExecutor(job))


def test_opening_a_job_again_takes_it_up(tmp_path: Path) -> None:
    job, store = make_job(), InMemoryTrialStore()
    made = start(tmp_path, job, FakeExecutor(job), store=store)
    assert store.job("job").state == JobState.RUNNING
    made.save_clock(JobState.FAILED)
    start(tmp_path, job, FakeExecutor(job), store=store)
    assert store.job("job").state == JobState.RUNNING
