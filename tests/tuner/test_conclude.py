from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_executor import ALLOWED, BASELINE, FLOAT_BYTES, HARM, FakeExecutor, bytes_of, drop_of, make_job

from tuner.conclude import AS_GOOD, run_job
from tuner.errors import JobCancelled, StorageError, TrialError
from tuner.job import Budget, Constraint, JobSpec
from tuner.progress import Event
from tuner.results import JobResult, TrialState
from tuner.store import InMemoryTrialStore, JobState
from tuner.study import Study

EVERYTHING = Budget(trials=80, seconds=1000)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has tests of its own."""
    monkeypatch.setattr("tuner.export.render_report", lambda *_: "<html></html>")


def conclude(folder: Path, job: JobSpec, executor: FakeExecutor, **parts: Any) -> JobResult:
    parts.setdefault("store", InMemoryTrialStore())
    return run_job(Study(job, "job", folder, executor=executor, **parts))


def certified(executor: FakeExecutor) -> list[tuple[int, int]]:
    return [(arguments["number"], arguments["attempt"]) for name, arguments in executor.calls if name == "certify"]


def trial_numbers(folder: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in (folder / "trials.csv").read_text().splitlines()[1:]]


def test_the_smallest_feasible_model_is_returned_with_every_file(tmp_path: Path) -> None:
    job, store = make_job(strategy="grid", budget=EVERYTHING), InMemoryTrialStore()
    executor = FakeExecutor(job)
    result = conclude(tmp_path, job, executor, store=store)
    feasible = [choices for choices in executor.evaluated() if drop_of(choices) <= ALLOWED]
    assert result.feasible
    assert result.best.measurements["size_bytes"].value <= (1 + AS_GOOD) * min(map(bytes_of, feasible))
    assert result.best.drop.value == pytest.approx(drop_of(result.best.layers))
    assert (result.best.verdict, result.best.file, result.finalists_tried) == ("met", "best.onnx", 1)
    assert result.best.size_ratio == result.best.measurements["size_bytes"].value / FLOAT_BYTES
    assert result.trials == {"total": 80, "complete": 80}
    assert result.baseline.measurements["top1"].value == BASELINE
    assert list(result.phases) == ["prepare", "baseline", "calibrate", "sensitivity", "search", "certify"]
    assert result.notes == ("a note",)
    assert (result.blame, result.advice, [outcome.trial for outcome in result.pareto]) == ((), (), [result.best.trial])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("best.onnx", "best.plan.json", "job.json", "report.html", "result.json", "sensitivity.csv", "trials.csv")
    ]
    assert (tmp_path / "best.onnx").read_text() == f"model {result.best.trial}"
    assert JobResult.model_validate_json((tmp_path / "result.json").read_text()) == result
    assert JobSpec.model_validate_json((tmp_path / "job.json").read_text()) == job
    assert store.job("job").state == JobState.SUCCEEDED
    assert executor.closed


def test_of_equally_good_finalists_the_least_harmful_goes_first(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=EVERYTHING)
    executor = FakeExecutor(job, allowed=1.0)
    result = conclude(tmp_path, job, executor)
    smallest = min(map(bytes_of, executor.evaluated()))
    near = [choices for choices in executor.evaluated() if bytes_of(choices) <= (1 + AS_GOOD) * smallest]
    assert len(near) > 1
    assert drop_of(result.best.layers) == min(map(drop_of, near))


def test_a_finalist_that_the_holdout_refutes_is_followed_by_the_next_at_a_corrected_confidence(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=EVERYTHING)
    unshifted = FakeExecutor(job)
    first = conclude(tmp_path / "first", job, unshifted).best
    executor = FakeExecutor(job, shift={first.trial: 0.05})
    result = conclude(tmp_path / "second", job, executor)
    assert result.feasible
    assert result.best.trial != first.trial
    assert drop_of(result.best.layers) < drop_of(first.layers)
    assert certified(executor) == [(first.trial, 1), (result.best.trial, 2)]
    assert result.finalists_tried == 2
    assert result.best.drop.confidence == pytest.approx(1 - 0.05 / 4)
    assert (tmp_path / "second" / "best.onnx").read_text() == f"model {result.best.trial}"
    assert not (tmp_path / "second" / "pareto").exists()


def test_a_finalist_whose_certification_breaks_is_passed_over(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=EVERYTHING)
    first = conclude(tmp_path / "first", job, FakeExecutor(job)).best

    def breaks(name: str, arguments: dict[str, Any]) -> None:
        if name == "certify" and arguments["number"] == first.trial:
            raise TrialError("the worker ended by signal 9", step="certify", kind="WorkerDied")

    events = list[Event]()
    executor = FakeExecutor(job, before=breaks)
    result = conclude(tmp_path / "second", job, executor, observer=events.append)
    assert result.feasible
    assert result.best.trial != first.trial
    assert result.finalists_tried == 1
    assert f"trial {first.trial} could not be certified (certify: the worker ended by signal 9)" in [event.message for event in events]


def test_trials_that_ended_early_are_scored_on_all_rows_before_they_are_shown(tmp_path: Path) -> None:
    job, store = make_job(), InMemoryTrialStore()
    executor = FakeExecutor(job, early=True)
    result = conclude(tmp_path, job, executor, store=store)
    whole = [arguments["number"] for name, arguments in executor.calls if name == "evaluate" and arguments["full"]]
    assert whole == [result.best.trial]
    stored = store.trial("job", result.best.trial)
    assert (stored.verdicts[0].rule, stored.verdicts[0].samples) == ("bound", 100)
    row = (tmp_path / "trials.csv").read_text().splitlines()[1 + result.best.trial].split(",")
    assert row[7] == "100"
    assert trial_numbers(tmp_path) == list(range(12))


def test_at_most_so_many_finalists_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.conclude.MAX_FINALISTS", 2)
    job = make_job(strategy="grid", budget=EVERYTHING)
    executor = FakeExecutor(job, allowed=1.0, shift=dict.fromkeys(range(80), 2.0))
    result = conclude(tmp_path, job, executor)
    assert [attempt for _, attempt in certified(executor)] == [1, 2, 3]  # The third is the original.
    assert result.best.layers == {}


def test_where_nothing_is_feasible_the_original_is_returned_and_the_result_says_so(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=EVERYTHING)
    result = conclude(tmp_path, job, FakeExecutor(job, allowed=min(HARM.values()) / 2))
    assert result.feasible
    assert result.best.layers == {}
    assert (result.best.size_ratio, result.best.drop.value) == (1.0, 0.0)
    assert result.summary.startswith("Nothing was gained: no compressed model was both better and within the target")
    assert result.trials["total"] == 81
    assert trial_numbers(tmp_path) == list(range(81))


def test_where_the_original_misses_too_the_nearest_model_is_returned_with_advice(tmp_path: Path) -> None:
    """The limit lies above what the original reaches: every drop is too large."""
    job = make_job(strategy="grid", budget=EVERYTHING, constraints=(Constraint(metric="top1", at_least=BASELINE + 0.01),))
    executor = FakeExecutor(job, allowed=-0.01)
    result = conclude(tmp_path, job, executor)
    assert not result.feasible
    assert result.best.verdict == "missed"
    assert drop_of(result.best.layers) == min(filter(None, map(drop_of, executor.evaluated())))
    assert result.summary.startswith("Target missed (top1 by 0.012): the nearest model is ")
    assert result.blame == ("a: 100% of the predicted harm (u8-asym-mse/s8-sym-channel)",)
    assert any("the original itself reaches 0.9" in tip for tip in result.advice)


def test_a_cost_that_nothing_meets_is_a_missed_target(tmp_path: Path) -> None:
    limit = Constraint(metric="size_bytes", at_most=1100)
    job = make_job(strategy="grid", budget=EVERYTHING, constraints=(Constraint(metric="top1", max_drop=ALLOWED), limit))
    result = conclude(tmp_path, job, FakeExecutor(job))
    assert not result.feasible
    assert result.best.layers != {}
    assert result.best.verdict == "missed"


def test_an_undecided_finalist_goes_before_the_original(tmp_path: Path) -> None:
    job = make_job(strategy="grid", budget=EVERYTHING)

    class Undecided(FakeExecutor):
        def call(self, name: str, arguments: dict[str, Any], **options: Any) -> Any:
            self.doubt = 0.05 if name == "certify" else 0.0
            return super().call(name, arguments, **options)

    result = conclude(tmp_path, job, Undecided(job))
    assert not result.feasible
    assert result.best.verdict == "undecided"
    assert result.best.layers != {}
    assert result.summary.startswith("Undecided: ")


def test_a_plan_that_is_not_faster_is_never_returned_where_speed_was_asked_for(tmp_path: Path) -> None:
    job = make_job(objectives=("latency",), budget=Budget(trials=30))
    result = conclude(tmp_path, job, FakeExecutor(job, slower=10.0))
    assert result.feasible
    assert result.best.layers == {}
    assert result.summary.startswith("Nothing was gained")
    assert result.best.speedup.value == 1.0


@pytest.mark.parametrize("doubt", [0.0, 0.05])
def test_nor_where_it_is_the_nearest_to_a_missed_target(tmp_path: Path, doubt: float) -> None:
    job = make_job(objectives=("latency",), constraints=(Constraint(metric="top1", at_least=BASELINE + 0.01),))
    result = conclude(tmp_path, job, FakeExecutor(job, allowed=-0.01, slower=10.0, doubt=doubt))
    assert not result.feasible
    assert result.best.layers == {}


def test_the_fastest_is_returned_where_speed_was_asked_for(tmp_path: Path) -> None:
    job = make_job(objectives=("latency",), strategy="grid", budget=EVERYTHING)
    executor = FakeExecutor(job)
    result = conclude(tmp_path, job, executor)
    fastest = min(bytes_of(choices) for choices in executor.evaluated() if drop_of(choices) <= ALLOWED)
    assert bytes_of(result.best.layers) <= (1 + AS_GOOD) * fastest
    assert result.best.speedup.lower > 1


def test_several_objectives_give_a_front_of_which_none_beats_another(tmp_path: Path) -> None:
    job = make_job(objectives=("size", "top1"), strategy="grid", budget=EVERYTHING)
    executor = FakeExecutor(job)
    result = conclude(tmp_path, job, executor)
    points = [(bytes_of(outcome.layers), drop_of(outcome.layers)) for outcome in result.pareto]
    assert len(points) > 2
    assert result.best.trial in {outcome.trial for outcome in result.pareto}
    for one in points:
        assert not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points)
    feasible = [(bytes_of(c), drop_of(c)) for c in executor.evaluated() if drop_of(c) <= ALLOWED]
    assert not any(other[0] <= one[0] and other[1] < one[1] - 1e-9 for one in points for other in feasible)
    assert {path.name for path in (tmp_path / "pareto").iterdir()} == {outcome.file for outcome in result.pareto}
    assert (tmp_path / "best.onnx").read_text() == f"model {result.best.trial}"


def test_a_request_to_cancel_stops_the_job_which_can_be_resumed(tmp_path: Path) -> None:
    job, store = make_job(), InMemoryTrialStore()
    executor = FakeExecutor(job)

    def wait(name: str, arguments: dict[str, Any]) -> None:
        if name == "evaluate" and arguments["number"] == 3:
            threading.Thread(target=store.request_cancel, args=("job",)).start()
            assert executor.cancelled.wait(20)

    executor.before = wait
    with pytest.raises(JobCancelled, match="the job was stopped; every finished trial is kept"):
        conclude(tmp_path, job, executor, store=store)
    assert store.job("job").state == JobState.CANCELLED
    assert [trial.state for trial in store.trials("job")] == [TrialState.COMPLETE] * 3 + [TrialState.QUEUED]
    result = conclude(tmp_path, job, FakeExecutor(job), store=store)
    assert result.trials == {"total": 12, "complete": 12}
    assert store.job("job").state == JobState.SUCCEEDED


def test_ctrl_c_is_a_cancelled_job(tmp_path: Path) -> None:
    job, store = make_job(), InMemoryTrialStore()

    def interrupt(name: str, _: dict[str, Any]) -> None:
        if name == "survey":
            raise KeyboardInterrupt

    executor = FakeExecutor(job, before=interrupt)
    with pytest.raises(JobCancelled):
        conclude(tmp_path, job, executor, store=store)
    assert store.job("job").state == JobState.CANCELLED
    assert executor.cancelled.is_set()


def test_any_other_error_leaves_a_failed_job_that_can_be_resumed(tmp_path: Path) -> None:
    job, store = make_job(), InMemoryTrialStore()

    def breaks(name: str, _: dict[str, Any]) -> None:
        if name == "survey":
            raise StorageError("the disk is full")

    executor = FakeExecutor(job, before=breaks)
    with pytest.raises(StorageError, match="the disk is full"):
        conclude(tmp_path, job, executor, store=store)
    assert store.job("job").state == JobState.FAILED
    assert executor.closed
    assert conclude(tmp_path, job, FakeExecutor(job), store=store).feasible


def test_a_store_that_breaks_as_well_does_not_hide_the_first_error(tmp_path: Path) -> None:
    job = make_job()

    class Broken(InMemoryTrialStore):
        def set_job_state(self, job_id: str, state: JobState, *, seconds: float | None = None) -> None:
            if state == JobState.FAILED:
                raise StorageError("the store is full too")
            super().set_job_state(job_id, state, seconds=seconds)

    def breaks(name: str, _: dict[str, Any]) -> None:
        if name == "survey":
            raise StorageError("the disk is full")

    with pytest.raises(StorageError, match=r"^the disk is full"):
        conclude(tmp_path, job, FakeExecutor(job, before=breaks), store=Broken())


def test_a_disk_that_is_full_at_the_end_is_a_storage_error_and_the_job_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = make_job(objectives=("size", "top1")), InMemoryTrialStore()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "best.onnx")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageError, match=r"writing best\.onnx failed: No space left on device .*Free some space"):
        conclude(tmp_path, job, FakeExecutor(job), store=store)
    assert not (tmp_path / "result.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr("tuner.export.render_report", lambda *_: "")
    resumed = FakeExecutor(job)
    result = conclude(tmp_path, job, resumed, store=store)
    assert resumed.evaluated() == []
    assert json.loads((tmp_path / "result.json").read_text())["best"]["trial"] == result.best.trial


def test_the_metric_auto_is_named_in_the_results(tmp_path: Path) -> None:
    job = make_job(metrics=("auto",), constraints=(Constraint(metric="auto", max_drop=ALLOWED, confidence=0.95),))
    result = conclude(tmp_path, job, FakeExecutor(job))
    assert "its drop in top1 on 100 unseen rows" in result.summary
    assert JobSpec.model_validate_json((tmp_path / "job.json").read_text()).metrics == ("top1",)
