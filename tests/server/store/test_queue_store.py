"""The queue: one runner to a job, and a word on how each ended."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import select, update
from store_samples import (
    START,
    Ticking,
    add_job,
    claimed,
    put,
    save_trials,
    spec,
    told,
    trial,
)

from server.store.database import Database, LeaseLost
from server.store.events import EventReader
from server.store.jobs import MAX_CRASHES, Claim, JobStore
from server.store.models import JobRow, TrialRow
from server.store.trials import SqlTrialStore
from tuner.results import TrialFailure, TrialState
from tuner.store import JobState
from tuner.wire import JobEvent, JobProgress, JobView, Page

DIED = TrialFailure(type="StudyDied", message="the process ended", step="study")


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


def test_claims_take_the_oldest_job_that_may_run(jobs: JobStore, database: Database) -> None:
    for job_id in ("a", "b", "c", "d"):
        add_job(jobs, job_id)
    jobs.cancel("a")
    put(database, "d", state=JobState.INTERRUPTED)
    first, second, third = (jobs.claim("node", 1e6) for _ in range(3))
    assert [claim and claim.job_id for claim in (first, second, third, jobs.claim("node", 9))] == ["b", "c", "d", None]
    assert first is not None
    assert first.spec == spec()
    assert jobs.row_state("b") == JobState.RUNNING
    assert told(database, "b") == ["1 queued", "2 running"]


def test_a_job_is_claimed_again_when_its_lease_has_run_out_and_not_before(jobs: JobStore, database: Database) -> None:
    first = claimed(jobs, seconds=30)
    save_trials(database, "j", trial(0), trial(1, state=TrialState.RUNNING))
    put(database, "j", result="{}", feasible=False)
    assert jobs.claim("other", 30) is None
    assert isinstance(database.now, Ticking)
    database.now.moment += timedelta(seconds=30)
    second = jobs.claim("other", 30)
    assert second is not None
    assert (second.job_id, second.lease == first.lease) == ("j", False)
    assert jobs.view("j").feasible is None
    assert [t.state for t in SqlTrialStore(database).trials("j")] == [TrialState.COMPLETE, TrialState.QUEUED]
    assert jobs.heartbeat("j", first.lease, 30).held is False
    assert jobs.settle("j", first.lease, JobState.FAILED) == JobState.RUNNING
    assert jobs.heartbeat("j", second.lease, 30).held is True


def test_eight_threads_claim_thirty_jobs_and_none_twice(jobs: JobStore, database: Database) -> None:
    wanted = [f"j{number:02}" for number in range(30)]
    for job_id in wanted:
        add_job(jobs, job_id)
    together = Barrier(8)

    def work(thread: int) -> list[Claim]:
        together.wait()
        # On PostgreSQL a claim may find nothing for a moment in which others hold all that waits.
        return list(iter(lambda: jobs.claim(f"node{thread}", 1e6), None))

    with ThreadPoolExecutor(8) as pool:
        claims = list(itertools.chain(*pool.map(work, range(8))))
    assert sorted(claim.job_id for claim in claims) == wanted
    assert len({claim.lease for claim in claims}) == 30
    with database.read("testing") as connection:
        held = {row.job_id: row.lease for row in connection.execute(select(JobRow.job_id, JobRow.lease))}
    assert held == {claim.job_id: claim.lease for claim in claims}


def test_claiming_looks_only_at_jobs_that_are_not_settled(sqlite_database: Database) -> None:
    with sqlite_database.read("testing") as connection:
        from server.store.queue import _next_in_line

        statement = _next_in_line(START).compile(connection, compile_kwargs={"literal_binds": True})
        steps = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")]
    assert any("ix_jobs_state_job_id" in step for step in steps), steps


def test_a_spec_that_cannot_be_read_does_not_block_the_queue(jobs: JobStore, database: Database) -> None:
    add_job(jobs, "a")
    add_job(jobs, "b")
    put(database, "a", spec='{"version": 99}')
    claim = jobs.claim("node", 9)
    assert claim is not None
    assert claim.job_id == "b"
    assert jobs.row_state("a") == JobState.FAILED
    text = jobs.page(cursor=None, limit=9, state=JobState.FAILED, model=None, name=None)
    error = Page[JobView].model_validate_json(text).items[0].error
    assert error is not None
    assert (error.type, error.step) == ("StorageError", "claim")
    assert error.message.startswith("job 'a' cannot be read back: version: ")


def test_a_trial_that_cannot_be_read_does_not_keep_its_job_from_being_settled(jobs: JobStore, database: Database) -> None:
    claim = claimed(jobs)
    save_trials(database, "j", trial(0, state=TrialState.RUNNING))
    with database.write("testing") as connection:
        connection.execute(update(TrialRow).values(result='{"new": 1, "state": "running"}'))
    jobs.settle("j", claim.lease, JobState.INTERRUPTED)
    with database.read("testing") as connection:
        row = connection.execute(select(TrialRow.state, TrialRow.result, TrialRow.summary)).one()
    assert row.state == TrialState.QUEUED
    assert json.loads(row.result) == {"new": 1, "state": "queued"}
    assert json.loads(row.summary)["state"] == "queued"


def test_heartbeats_hold_the_lease_and_bring_the_request_to_cancel(jobs: JobStore, database: Database) -> None:
    claim = claimed(jobs, seconds=30)
    beat = jobs.heartbeat("j", claim.lease, 3600)
    assert (beat.held, beat.cancel_requested) == (True, False)
    assert isinstance(database.now, Ticking)
    database.now.moment += timedelta(seconds=1800)
    assert jobs.claim("other", 30) is None
    jobs.cancel("j")
    beat = jobs.heartbeat("j", claim.lease, 30)
    assert (beat.held, beat.cancel_requested) == (True, True)
    assert jobs.heartbeat("j", "another", 30).held is False
    assert jobs.heartbeat("gone", claim.lease, 30).held is False
    jobs.settle("j", claim.lease, JobState.CANCELLED)
    assert jobs.heartbeat("j", claim.lease, 30).held is False


def test_a_server_that_starts_lets_go_of_what_its_former_self_ran(jobs: JobStore, database: Database) -> None:
    for job_id in ("a", "b", "c"):
        add_job(jobs, job_id)
    leases = [claim.lease for node in ("mine", "mine", "other") if (claim := jobs.claim(node, 1e6))]
    save_trials(database, "a", trial(0, state=TrialState.RUNNING))
    jobs.cancel("b")
    assert jobs.release_node("mine") == ["a", "b"]
    assert [jobs.row_state(job_id) for job_id in "abc"] == [JobState.INTERRUPTED, JobState.CANCELLED, JobState.RUNNING]
    assert next(SqlTrialStore(database).trials("a")).state == TrialState.QUEUED
    assert told(database, "a") == ["1 queued", "2 running", "3 interrupted"]
    assert jobs.release_node("mine") == []
    assert jobs.settle("a", leases[0], JobState.FAILED) == JobState.INTERRUPTED
    again = jobs.claim("mine", 9)
    assert again is not None
    assert again.job_id == "a"


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED, JobState.INTERRUPTED])
def test_settling_records_how_a_job_ended(jobs: JobStore, database: Database, state: JobState) -> None:
    claim = claimed(jobs)
    save_trials(database, "j", trial(0, state=TrialState.RUNNING), trial(1))
    assert jobs.settle("j", claim.lease, state, DIED) == state
    assert jobs.view("j").error == (DIED if state == JobState.FAILED else None)
    assert [t.state for t in SqlTrialStore(database).trials("j")] == [TrialState.QUEUED, TrialState.COMPLETE]
    (_, text), *_ = EventReader(database).after("j", 2)
    event = JobEvent.model_validate_json(text)
    assert (event.seq, event.state, event.message) == (3, state, DIED.message)
    with pytest.raises(LeaseLost):
        jobs.note("j", claim.lease, progress=JobProgress())


def test_settling_a_job_that_has_settled_itself_changes_nothing(jobs: JobStore, database: Database) -> None:
    claim = claimed(jobs)
    SqlTrialStore(database, lease=claim.lease).set_job_state("j", JobState.SUCCEEDED)
    before = told(database, "j")
    assert jobs.settle("j", claim.lease, JobState.INTERRUPTED, DIED, crashed=True) == JobState.SUCCEEDED
    assert (told(database, "j"), jobs.view("j").error) == (before, None)


def test_after_so_many_crashes_without_a_finished_trial_a_job_has_failed(jobs: JobStore, database: Database) -> None:
    add_job(jobs, "j")

    def crash() -> JobState:
        claim = jobs.claim("node", 9)
        assert claim is not None
        return jobs.settle("j", claim.lease, JobState.INTERRUPTED, DIED, crashed=True)

    assert [crash() for _ in range(MAX_CRASHES - 1)] == [JobState.INTERRUPTED] * (MAX_CRASHES - 1)
    save_trials(database, "j", trial(0))
    assert [crash() for _ in range(MAX_CRASHES)] == [JobState.INTERRUPTED] * (MAX_CRASHES - 1) + [JobState.FAILED]
    error = jobs.view("j").error
    assert error is not None
    assert error.message == "the process ended (for the 5th time without a trial finished in between)"
    assert jobs.claim("node", 9) is None


def test_a_job_that_was_asked_to_stop_is_cancelled_however_it_ended(jobs: JobStore) -> None:
    claim = claimed(jobs)
    jobs.cancel("j")
    assert jobs.settle("j", claim.lease, JobState.INTERRUPTED, DIED, crashed=True) == JobState.CANCELLED
    assert jobs.view("j").error is None
    assert jobs.claim("node", 9) is None


def test_text_that_no_database_can_hold_does_not_keep_a_job_from_failing(jobs: JobStore) -> None:
    claim = claimed(jobs)
    jobs.settle("j", claim.lease, JobState.FAILED, TrialFailure(type="E", message="no file \udcff\0", step="load"))
    error = jobs.view("j").error
    assert error is not None
    assert error.message == "no file ?\ufffd"
