"""A job of the service in this process: what it publishes, what it tells, and why it failed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from safetensors import numpy as safetensors
from store_samples import Ticking, artifact
from tiny_jobs import dense, dense_data, tiny_job

from search_spaces.recovery import RecoverySpec
from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec
from server.artifacts import Artifacts
from server.inputs import file_ids, resolve
from server.runner import LATER, Errand, Narrator, capped, failure, main, only_one, report, serve
from server.store.database import Database, LeaseLost, StorageBusy, sqlite_url
from server.store.events import EventReader
from server.store.files import FileStore
from server.store.jobs import JobStore
from server.store.trial_lists import TrialReader
from tuner.compress.pipeline import replay
from tuner.errors import JobError, StorageError
from tuner.gate import Gate
from tuner.job import Budget, Constraint, JobSpec
from tuner.layer_profiles import PROFILES
from tuner.model.graph import Model
from tuner.plan import AppliedPlan
from tuner.progress import Event
from tuner.results import BaselineRows, Preflight, RowScores
from tuner.store import JobState


class Place:
    """Store, artefacts and folders of one service, with the tiny job's files uploaded."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.database = Database(sqlite_url(folder / "s.db"), Ticking())
        self.database.upgrade()
        self.jobs, self.files = JobStore(self.database), FileStore(self.database)
        self.artifacts = Artifacts(str(folder / "artifacts"), folder / "scratch")
        local = tiny_job(folder / "sent", **changes)
        gate = Gate(folder / "gate", 1 << 30)
        model, data = Path(local.model), Path(local.data.validation.file)
        stored = self.artifacts.put(model)
        facts = gate.inspect_model(str(model), "m")
        sent, _ = self.files.add_model(name="m", sha256=stored.sha256, size_bytes=stored.size_bytes, owner=None, facts=facts)
        stored = self.artifacts.put(data)
        found = gate.inspect_data(str(data), "d")
        rows, _ = self.files.add_dataset(name="d", sha256=stored.sha256, size_bytes=stored.size_bytes, owner=None, facts=found)
        roles = {role: ref.model_copy(update={"file": rows.id}) for role, ref in local.data.roles().items()}
        self.spec = local.model_copy(update={"model": sent.id, "data": local.data.model_copy(update=roles)})

    def run(self) -> Errand:
        errand = self.errand()
        with only_one(self.folder / "jobs" / "j1") as folder:
            serve(errand, self.database, folder)
        return errand

    def errand(self) -> Errand:
        """The job is submitted and claimed."""
        self.jobs.submit("j1", self.spec, owner=None, files=file_ids(self.spec))
        claim = self.jobs.claim("here", 3600)
        assert claim is not None
        return Errand(
            database_url=SecretStr(self.database.url),
            artifacts_url=str(self.folder / "artifacts"),
            scratch=str(self.folder / "scratch"),
            jobs_folder=str(self.folder / "jobs"),
            job_id="j1",
            lease=claim.lease,
            parallel=4,
            memory_gb=8.0,
        )

    def bytes_of(self, name: str) -> bytes:
        return b"".join(self.artifacts.open(self.jobs.artifact("j1", name).sha256))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("served")
        patch.chdir(folder)
        place = Place(folder)
        place.run()
        yield place
        place.database.close()


def test_a_finished_job_has_its_result_and_files(finished: Place) -> None:
    view = finished.jobs.view("j1")
    assert (view.state, view.error, view.progress.trials) == (JobState.SUCCEEDED, None, 5)
    assert view.result is not None
    assert view.feasible == view.result.feasible
    names = {item.name for item in finished.jobs.artifacts("j1")}
    wanted = {"best.onnx", "best.plan.json", "report.html", "result.json", "job.json", "sensitivity.csv", "trials.csv"}
    wanted |= {"layers.json", "rows.json"} | {f"trials/{number}.{what}.json" for number in range(5) for what in ("plan", "rows")}
    assert names == wanted
    assert json.loads(finished.bytes_of("result.json")) == json.loads(view.result.model_dump_json())
    assert JobSpec.model_validate_json(finished.bytes_of("job.json")) == finished.spec
    assert len(list(csv.reader(StringIO(finished.bytes_of("trials.csv").decode())))) == 6


def test_no_file_and_no_event_tells_where_the_server_keeps_things(finished: Place) -> None:
    told = "".join(text for _, text in EventReader(finished.database).after("j1", 0))
    files = b"".join(finished.bytes_of(item.name) for item in finished.jobs.artifacts("j1"))
    assert str(finished.folder) not in told
    assert str(finished.folder).encode() not in files


def test_every_trial_can_be_made_again_from_its_plan(finished: Place) -> None:
    model = Model.load(finished.folder / "sent" / "model.onnx")
    for summary in TrialReader(finished.database).rows("j1"):
        plan = AppliedPlan.model_validate_json(finished.bytes_of(f"trials/{summary.number}.plan.json"))
        data = replay(model, plan)
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (plan.result_sha256, summary.values["size_bytes"])


def test_the_weights_of_a_trained_structure_are_published_and_make_every_model_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = SpaceSpec(quantize=False, channels=ChannelSpec(shares=(0.5,), criterion="l1"), recovery=RecoverySpec(rows=128))
    limit = Constraint(metric="top1", max_drop=0.9)
    place = Place(tmp_path, space=space, objectives=("macs",), constraints=(limit,), budget=Budget(trials=3, seconds=120, threads=1))
    place.run()
    names = {item.name for item in place.jobs.artifacts("j1")}
    original, structured = Model.load(tmp_path / "sent" / "model.onnx"), 0
    for summary in TrialReader(place.database).rows("j1"):
        plan = AppliedPlan.model_validate_json(place.bytes_of(f"trials/{summary.number}.plan.json"))
        file = f"trials/{summary.number}.tensors.safetensors"
        assert (file in names) == (plan.structure is not None)
        weights = safetensors.load(place.bytes_of(file)) if file in names else None
        assert hashlib.sha256(replay(original, plan, weights)).hexdigest() == plan.result_sha256
        structured += plan.structure is not None
    assert structured > 0
    best = AppliedPlan.model_validate_json(place.bytes_of("best.plan.json"))
    assert best.structure is not None
    assert replay(original, best, safetensors.load(place.bytes_of("best.tensors.safetensors"))) == place.bytes_of("best.onnx")
    place.database.close()


def test_the_scores_of_rows_are_those_of_the_trials(finished: Place) -> None:
    """Of every trial as many rows as it was scored on, also where it was scored on all of them afterwards."""
    baseline = BaselineRows.model_validate_json(finished.bytes_of("rows.json"))
    assert (baseline.metric, baseline.total, len(baseline.scores), min(baseline.rows)) == ("top1", 600, 600, 128)
    for summary in TrialReader(finished.database).rows("j1"):
        rows = RowScores.model_validate_json(finished.bytes_of(f"trials/{summary.number}.rows.json"))
        assert len(rows.scores) == summary.samples
        if summary.samples == baseline.total:
            assert np.mean(rows.scores) == pytest.approx(summary.values["top1"])


def test_the_layers_are_published_when_the_search_begins(finished: Place) -> None:
    assert [profile.layer for profile in PROFILES.validate_json(finished.bytes_of("layers.json"))] == ["fc1", "fc2", "fc3"]
    assert finished.jobs.view("j1").progress.profiled
    published = finished.jobs.artifact("j1", "layers.json").created
    assert published < finished.jobs.artifact("j1", "trials/0.plan.json").created


def test_the_events_tell_the_whole_story(finished: Place) -> None:
    events = [json.loads(text) for _, text in EventReader(finished.database).after("j1", 0)]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    states = [event["state"] for event in events if event["kind"] == "state"]
    assert states == ["queued", "running", "succeeded"]
    assert events[-1]["state"] == "succeeded"
    trials = [event["trial"]["number"] for event in events if event["kind"] == "trial"]
    assert trials == [0, 1, 2, 3, 4]
    phases = [event["phase"] for event in events if event["kind"] == "phase"]
    assert phases[:5] == ["prepare", "baseline", "calibrate", "sensitivity", "search"]
    (checked,) = (event for event in events if event["message"].startswith("every check has passed"))
    assert checked["phase"] == "baseline"


def test_a_job_that_cannot_run_fails_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = dense()
    place = Place(tmp_path, data=dense_data(model, 400) | {"labels": np.full(400, 99)})
    place.run()
    view = place.jobs.view("j1")
    assert view.state == JobState.FAILED
    assert view.error is not None
    assert "99" in view.error.message
    assert str(tmp_path) not in view.error.message
    assert [json.loads(text)["state"] for _, text in EventReader(place.database).after("j1", 0)][-1] == "failed"
    assert place.jobs.artifacts("j1") == []
    place.database.close()


def busy(*_: Any, **__: Any) -> None:
    raise StorageBusy("storing a trial failed: database is locked (s.db). Try again.")


def run_main(errand: Errand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.runner.end_with_parent", lambda _parent: None)
    monkeypatch.setattr("sys.stdin", StringIO(errand.as_line()))
    main()


def test_a_database_that_is_busy_is_no_failure_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    errand = place.errand()
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "note", busy)
        with pytest.raises(SystemExit) as ended:
            run_main(errand, patch)
    assert ended.value.code == LATER
    assert capsys.readouterr().err == "storing a trial failed: database is locked (s.db). Try again.\n"
    view = place.jobs.view("j1")
    assert (view.state, view.error) == (JobState.RUNNING, None)
    run_main(errand, monkeypatch)
    assert place.jobs.row_state("j1") == JobState.SUCCEEDED
    place.database.close()


def test_a_job_that_goes_on_publishes_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the files cannot be handed over")

    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("server.runner.deliver", broken)
        errand = place.run()
    assert place.jobs.row_state("j1") == JobState.FAILED
    before = {item.name: item for item in place.jobs.artifacts("j1")}
    assert {"layers.json", "rows.json", "trials/4.rows.json"} <= set(before)
    place.jobs.resume("j1")
    claim = place.jobs.claim("here", 3600)
    assert claim is not None
    with only_one(tmp_path / "jobs" / "j1") as folder:
        serve(errand.model_copy(update={"lease": claim.lease}), place.database, folder)
    view = place.jobs.view("j1")
    assert (view.state, view.progress.profiled) == (JobState.SUCCEEDED, True)
    after = {item.name: item for item in place.jobs.artifacts("j1")}
    assert after["layers.json"].created > before["layers.json"].created
    assert {name: after[name].sha256 for name in before} == {name: item.sha256 for name, item in before.items()}
    place.database.close()


def test_a_job_without_a_folder_to_work_in_fails_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    (tmp_path / "jobs").write_text("a file")
    run_main(place.errand(), monkeypatch)
    error = place.jobs.view("j1").error
    assert error is not None
    assert (error.type, error.step) == ("StorageError", "prepare")
    assert error.message.startswith("writing the folder jobs/j1 failed: ")
    assert str(tmp_path) not in error.message
    place.database.close()


def test_why_a_job_failed_is_told_for_a_caller() -> None:
    errand = Errand(
        database_url=SecretStr("sqlite://"), artifacts_url="a", scratch="s", jobs_folder="/srv/data/jobs", job_id="j", lease="l",
        parallel=1, memory_gb=1.0,
    )  # fmt: skip
    error = StorageError("writing x failed: No space left on device (/srv/data/jobs/j/x). Free some space, then go on with --resume.")
    told = failure(error, "search", errand).message
    assert told == "writing x failed: No space left on device (jobs/j/x). Free some space, then resume the job."


def test_a_server_that_is_gone_does_not_fail_the_trial_it_cannot_be_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with TextIOWrapper(open(writer, "wb", buffering=0), write_through=True) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        report({"seconds": 1.0, "state": "complete"})
        with pytest.raises(BrokenPipeError):
            stdout.write("the pipe is really broken")
        monkeypatch.undo()


def test_ids_become_names_without_folders(finished: Place, tmp_path: Path) -> None:
    job = resolve(finished.spec, finished.files, finished.artifacts, tmp_path / "inputs")
    assert job.model == f"{finished.spec.model}.onnx"
    assert {ref.file for ref in job.data.roles().values()} == {f"{finished.spec.data.validation.file}.npz"}
    assert (tmp_path / "inputs" / job.model).read_bytes() == (finished.folder / "sent" / "model.onnx").read_bytes()


@pytest.mark.parametrize("given", ["/etc/passwd", "../s.db", "dat-0000000000000000", "http://127.0.0.1/model.onnx"])
def test_what_is_no_id_of_an_upload_is_refused(finished: Place, tmp_path: Path, given: str) -> None:
    with pytest.raises(JobError, match="model must be the id of an upload under /api/v1/models") as refused:
        resolve(finished.spec.model_copy(update={"model": given}), finished.files, finished.artifacts, tmp_path)
    assert refused.value.field == "model"
    assert list(tmp_path.iterdir()) == []


def test_a_server_grants_a_job_only_so_much(finished: Place) -> None:
    errand = Errand(
        database_url=SecretStr("sqlite://"),
        artifacts_url="a",
        scratch="s",
        jobs_folder="j",
        job_id="j",
        lease="l",
        parallel=2,
        memory_gb=4.0,
    )

    def granted(**budget: Any) -> tuple[int, float | None]:
        job = capped(finished.spec.model_copy(update={"budget": Budget(**budget)}), errand)
        return job.budget.parallel, job.budget.memory_gb

    assert granted() == (1, 4.0)
    assert granted(parallel=8, memory_gb=100.0) == (2, 4.0)
    assert granted(parallel=2, memory_gb=0.5) == (2, 0.5)


def test_the_errand_keeps_the_password_out_of_what_is_shown() -> None:
    errand = Errand(
        database_url=SecretStr("postgresql+psycopg://u:s3cret@h/d"), artifacts_url="a", scratch="s", jobs_folder="j", job_id="j", lease="l",
        parallel=1, memory_gb=1.0,
    )  # fmt: skip
    assert "s3cret" not in repr(errand)
    assert Errand.model_validate_json(errand.as_line()).database_url.get_secret_value() == "postgresql+psycopg://u:s3cret@h/d"


class Notes:
    """Takes what a JobStore would note."""

    def __init__(self) -> None:
        self.noted: list[tuple[Any, Any]] = []

    def note(self, _job: str, _lease: str, *, progress: Any, event: Any) -> None:
        self.noted.append((progress, event))


def test_counting_is_told_now_and_then_and_its_end_always() -> None:
    notes, now = Notes(), [0.0]
    narrator = Narrator(notes, "j", "l", lambda: now[0])  # type: ignore[arg-type]
    for done in range(101):
        now[0] += 0.1
        narrator(Event(phase="calibrate", done=done, total=100))
    told = [event.done for _, event in notes.noted]
    assert told[-1] == 100
    assert 15 <= len(told) <= 25


def test_layers_are_published_once_per_run_and_that_is_told() -> None:
    notes, asked = Notes(), list[bool]()

    def profile() -> bool:
        asked.append(True)
        return True

    narrator = Narrator(notes, "j", "l", profile=profile)  # type: ignore[arg-type]
    narrator(Event(phase="sensitivity", done=1, total=1))
    assert asked == []
    for event in (Event(phase="search"), Event(phase="search", done=5, total=5), Event(phase="certify")):
        narrator(event)
    assert asked == [True]
    assert [progress.profiled for progress, _ in notes.noted] == [False, True, True, True]


def test_what_the_checks_found_is_remembered(finished: Place) -> None:
    preflight = finished.jobs.view("j1").progress
    assert preflight.metrics == ("top1",)
    assert Preflight.model_fields.keys() >= {"notes", "metrics"}


def test_a_runner_without_the_lease_writes_nothing(finished: Place) -> None:
    with pytest.raises(LeaseLost):
        finished.jobs.note("j1", "another", progress=finished.jobs.view("j1").progress)
    with pytest.raises(LeaseLost):
        finished.jobs.add_artifact("j1", artifact("trials/99.plan.json"), "another")
    assert "trials/99.plan.json" not in {item.name for item in finished.jobs.artifacts("j1")}


def test_a_folder_is_for_one_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.runner.LOCK_SECONDS", 0.1)
    with only_one(tmp_path / "j"), pytest.raises(StorageError, match="another process still works in"), only_one(tmp_path / "j"):
        pass
