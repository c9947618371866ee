"""Jobs of the service: taken in once, listed, cancelled, resumed, deleted, claimed by one runner at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from store_samples import (
    START,
    add_files,
    add_job,
    artifact,
    claimed,
    page_of,
    put,
    result,
    row_counts,
    save_trials,
    spec,
    told,
    trial,
)

from server.store.database import Conflict, Database, LeaseLost, NotFound
from server.store.events import EventReader
from server.store.files import FileStore
from server.store.jobs import JobStore
from server.store.trials import SqlTrialStore
from tuner.errors import AccutuneError
from tuner.results import TrialFailure
from tuner.store import JobState
from tuner.wire import JobDetail, JobEvent, JobProgress, JobView, summarize_outcome

DIED = TrialFailure(type="StudyDied", message="the process ended", step="study")


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


def test_a_submitted_job_is_queued_and_shown_whole(jobs: JobStore, database: Database) -> None:
    model, data = add_files(FileStore(database))
    asked = spec("resnet", model, data)
    assert jobs.submit("j", asked, owner="key1", files=(model, data, data)) == ("j", True)
    view = jobs.view("j")
    assert (view.goal, view.model_name, view.outcome) == ("top1 may get worse by at most 0.01", "m.onnx", None)
    assert (view.id, view.name, view.model, view.owner, view.state) == ("j", "resnet", model, "key1", JobState.QUEUED)
    assert (view.spec, view.result, view.error, view.feasible, view.progress) == (asked, None, None, None, JobProgress())
    assert view.created == view.updated > START
    assert told(database, "j") == ["1 queued"]
    assert row_counts(database)["job_files"] == 2
    assert (jobs.row_state("j"), jobs.owner("j"), jobs.cancel_requested("j")) == (JobState.QUEUED, "key1", False)


def test_a_job_without_an_owner_has_none(jobs: JobStore) -> None:
    add_job(jobs, "j")
    assert (jobs.owner("j"), jobs.view("j").owner) == (None, None)


def test_the_same_request_with_the_same_key_gives_the_same_job(jobs: JobStore, database: Database) -> None:
    first = jobs.submit("a", spec(), owner=None, files=(), idempotency_key="k", request_sha256="h")
    again = jobs.submit("b", spec(), owner=None, files=(), idempotency_key="k", request_sha256="h")
    other = jobs.submit("c", spec(), owner="somebody else", files=(), idempotency_key="k", request_sha256="other")
    assert (first, again, other) == (("a", True), ("a", False), ("c", True))
    assert row_counts(database)["jobs"] == 2
    assert [jobs.submitted(owner, "k", "h") for owner in (None, "nobody")] == ["a", None]
    with pytest.raises(Conflict, match="the Idempotency-Key 'k' came with another request before, which made job 'a'"):
        jobs.submitted(None, "k", "other")


def test_another_request_with_the_same_key_is_refused(jobs: JobStore) -> None:
    jobs.submit("a", spec(), owner="o", files=(), idempotency_key="k", request_sha256="h")
    with pytest.raises(Conflict) as caught:
        jobs.submit("b", spec(), owner="o", files=(), idempotency_key="k", request_sha256="g")
    assert str(caught.value) == (
        "the Idempotency-Key 'k' came with another request before, which made job 'a'. "
        "Send that request again unchanged to be given that job, or choose a new key for a new one."
    )


def test_of_eight_equal_requests_at_once_one_makes_a_job(jobs: JobStore, database: Database) -> None:
    files = add_files(FileStore(database))
    together = Barrier(8)

    def submit(number: int) -> tuple[str, bool]:
        together.wait()
        return jobs.submit(f"j{number}", spec(), owner=None, files=files, idempotency_key="k", request_sha256="h")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(new for _, new in answers) == [False] * 7 + [True]
    counts = row_counts(database)
    assert (counts["jobs"], counts["events"], counts["job_files"]) == (1, 1, 2)


def test_a_job_whose_upload_is_gone_is_not_stored(jobs: JobStore, database: Database) -> None:
    model, _ = add_files(FileStore(database))
    with pytest.raises(NotFound) as caught:
        jobs.submit("j", spec(), owner=None, files=(model, "dat-gone"))
    assert str(caught.value) == (
        "there is no upload 'dat-gone' (any more). Send the file with POST /api/v1/models or /api/v1/datasets "
        "and submit the job with the id that is answered."
    )
    assert "jobs" not in row_counts(database)


def test_an_id_that_is_taken_is_refused(jobs: JobStore) -> None:
    add_job(jobs, "j", name="first")
    with pytest.raises(Conflict, match=r"a job with the id 'j' is there already\. Submit it once more"):
        add_job(jobs, "j", name="second")
    assert jobs.view("j").name == "first"


def test_what_is_sent_is_what_was_stored(jobs: JobStore) -> None:
    add_job(jobs, "j1", name="a b", owner="key1")
    claim = jobs.claim("n", 60)
    assert claim is not None
    jobs.note("j1", claim.lease, progress=JobProgress(phase="search", done=3, total=9, metrics=("top1",)))
    assert JobDetail.model_validate_json(jobs.text("j1")) == jobs.view("j1")
    assert page_of(jobs).items[0].outcome is None
    jobs.finish("j1", claim.lease, result("j1"), ())
    jobs.settle("j1", claim.lease, JobState.FAILED, TrialFailure(type="T", message='said "no"', step="s"))
    view = jobs.view("j1")
    assert (view.owner, view.error and view.error.message, view.result) == ("key1", 'said "no"', result("j1"))
    assert view.outcome == summarize_outcome(result("j1").best)
    assert JobDetail.model_validate_json(jobs.text("j1")) == view
    assert page_of(jobs, limit=5).items == (JobView.model_validate(view.model_dump(include=set(JobView.model_fields))),)


def moved(jobs: JobStore, state: JobState) -> str:
    """A job that has come into a state, and the lease that it has or had."""
    claim = claimed(jobs)
    if state == JobState.QUEUED:
        put(jobs._database, "j", state=state, lease=None)
    elif state != JobState.RUNNING:
        SqlTrialStore(jobs._database, lease=claim.lease).set_job_state("j", state)
    return claim.lease


@pytest.mark.parametrize("state", list(JobState))
def test_cancelling_ends_what_waits_and_asks_what_runs(jobs: JobStore, state: JobState) -> None:
    moved(jobs, state)
    if state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        with pytest.raises(Conflict) as caught:
            jobs.cancel("j")
        assert str(caught.value) == f"job 'j' is {state} already. Only a job that is queued, running or interrupted can be cancelled."
        return
    before = told(jobs._database, "j")
    after = JobState.RUNNING if state == JobState.RUNNING else JobState.CANCELLED
    assert jobs.cancel("j") == jobs.row_state("j") == after
    assert jobs.cancel_requested("j") is True
    assert told(jobs._database, "j") == before + ([] if after == JobState.RUNNING else [f"{len(before) + 1} cancelled"])


@pytest.mark.parametrize("state", list(JobState))
def test_only_a_stopped_job_is_resumed_and_starts_clean(jobs: JobStore, state: JobState) -> None:
    lease = moved(jobs, state)
    outcome = summarize_outcome(result("j").best)
    found = {"feasible": True, "outcome": outcome.model_dump_json()}
    put(jobs._database, "j", cancel_requested=True, crashes=4, error=DIED.model_dump_json(), **found)
    assert jobs.view("j").outcome == outcome
    if state not in (JobState.CANCELLED, JobState.FAILED, JobState.INTERRUPTED):
        way_out = "Submit a new job instead." if state == JobState.SUCCEEDED else "Cancel it first if it is to start anew."
        with pytest.raises(Conflict) as caught:
            jobs.resume("j")
        assert str(caught.value) == f"job 'j' is {state}. Only a job that was cancelled, failed or interrupted can be resumed. {way_out}"
        return
    assert jobs.resume("j") == JobState.QUEUED
    view = jobs.view("j")
    assert (view.state, view.cancel_requested, view.error, view.feasible, view.outcome) == (JobState.QUEUED, False, None, None, None)
    assert told(jobs._database, "j")[-1].endswith(" queued")
    # The former run's process may still be on its way out: it has no say any more.
    assert jobs.settle("j", lease, JobState.FAILED) == JobState.QUEUED
    again = jobs.claim("node", 10)
    assert again is not None
    assert jobs.settle("j", again.lease, JobState.INTERRUPTED, DIED, crashed=True) == JobState.INTERRUPTED


@pytest.mark.parametrize("state", list(JobState))
def test_a_job_is_deleted_with_all_it_has_unless_it_runs(jobs: JobStore, database: Database, state: JobState) -> None:
    files = add_files(FileStore(database))
    jobs.submit("other", spec(), owner=None, files=files)
    jobs.cancel("other")
    kept = row_counts(database)
    lease = moved(jobs, state)
    save_trials(database, "j", trial(0, size=5.0))
    jobs.add_artifact("j", artifact("report.html"))
    if state == JobState.RUNNING:
        with pytest.raises(Conflict) as caught:
            jobs.delete("j")
        assert str(caught.value) == "job 'j' is running and cannot be deleted. Cancel it first: POST /api/v1/jobs/j/cancel."
        jobs.settle("j", lease, JobState.CANCELLED)
    assert set(row_counts(database)) >= {"trials", "measurements", "artifacts", "events"}
    jobs.delete("j")
    assert row_counts(database) == kept
    assert jobs.cancel_requested("j") is False
    assert jobs.settle("j", lease, JobState.CANCELLED) == JobState.CANCELLED


def test_notes_are_kept_only_while_the_job_is_held(jobs: JobStore, database: Database) -> None:
    claim = claimed(jobs)
    updated = jobs.view("j").updated
    progress = JobProgress(phase="search", done=3, total=9, trials=3)
    said = JobEvent(seq=0, at=START, kind="progress", phase="search", done=3, total=9)
    jobs.note("j", claim.lease, progress=progress, event=said)
    jobs.note("j", claim.lease, progress=progress.model_copy(update={"done": 4}))
    jobs.note("j", claim.lease, event=said)
    assert jobs.view("j").progress.done == 4
    assert page_of(jobs, limit=1).items[0].progress.trials == 3
    assert jobs.view("j").updated == updated
    events = [JobEvent.model_validate_json(text) for _, text in EventReader(database).after("j", 2)]
    assert [(event.seq, event.done, event.at > START) for event in events] == [(3, 3, True), (4, 3, True)]
    for changes in ({}, {"progress": JobProgress()}, {"event": said}):
        with pytest.raises(LeaseLost, match="job 'j' is no longer held under this lease: it has ended, or another process"):
            jobs.note("j", "another", **changes)
    assert (jobs.view("j").progress.done, len(told(database, "j"))) == (4, 4)


def test_a_result_and_its_artefacts_appear_together_or_not_at_all(jobs: JobStore) -> None:
    claim = claimed(jobs)
    found = result("j", feasible=False)
    jobs.add_artifact("j", artifact("trials/3.plan.json"))
    with pytest.raises(LeaseLost):
        jobs.finish("j", "another", found, [artifact("best.onnx")])
    assert [one.name for one in jobs.artifacts("j")] == ["trials/3.plan.json"]
    jobs.finish("j", claim.lease, found, [artifact("report.html"), artifact("best.onnx", "e", 2**33)])
    view = jobs.view("j")
    assert (view.result, view.feasible, view.state) == (found, False, JobState.RUNNING)
    assert [one.name for one in jobs.artifacts("j")] == ["best.onnx", "report.html", "trials/3.plan.json"]
    assert jobs.artifact("j", "best.onnx") == artifact("best.onnx", "e", 2**33)


def test_an_artefact_takes_the_place_of_one_of_the_same_name(jobs: JobStore) -> None:
    add_job(jobs, "j")
    jobs.add_artifact("j", artifact("a.json", "1"))
    jobs.add_artifact("j", artifact("a.json", "2", 9))
    assert jobs.artifacts("j") == [artifact("a.json", "2", 9)]


def test_an_unknown_artefact_is_named(jobs: JobStore) -> None:
    add_job(jobs, "j")
    assert jobs.artifacts("j") == []
    with pytest.raises(NotFound) as caught:
        jobs.artifact("j", "best.onnx")
    assert str(caught.value) == "job 'j', which is queued, has no artefact 'best.onnx'; GET /api/v1/jobs/j/artifacts lists those there are"


def test_the_queue_is_counted(jobs: JobStore) -> None:
    assert jobs.oldest_queued() is None
    for number in range(4):
        add_job(jobs, f"j{number}", owner="o" if number < 3 else None)
    jobs.cancel("j0")
    assert jobs.oldest_queued() == jobs.view("j1").created
    jobs.claim("node", 9)
    assert jobs.counts() == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 2, JobState.RUNNING: 1, JobState.CANCELLED: 1}
    assert [jobs.queued_of(owner) for owner in ("o", None, "nobody")] == [2, 1, 0]
    # A job that was resumed waits since then, not since it was made.
    jobs.resume("j0")
    assert jobs.oldest_queued() == jobs.view("j2").created


@pytest.mark.parametrize(
    "use",
    [
        lambda jobs, id: jobs.view(id),
        lambda jobs, id: jobs.row_state(id),
        lambda jobs, id: jobs.owner(id),
        lambda jobs, id: jobs.cancel(id),
        lambda jobs, id: jobs.resume(id),
        lambda jobs, id: jobs.delete(id),
        lambda jobs, id: jobs.artifacts(id),
        lambda jobs, id: jobs.artifact(id, "a\0b"),
        lambda jobs, id: jobs.add_artifact(id, artifact("a")),
    ],
)
def test_an_unknown_job_is_named(jobs: JobStore, use: Callable[[JobStore, str], object]) -> None:
    with pytest.raises(AccutuneError) as caught:
        use(jobs, "nope")
    assert isinstance(caught.value, NotFound)
    assert str(caught.value) == "job 'nope' is not known to this server; GET /api/v1/jobs lists those that are"
    for odd in ("nul\0", "\udcff", "x" * 10_000):
        with pytest.raises(NotFound):
            use(jobs, odd)
