"""What the SQL store promises beyond the contract: other processes, kill -9, leases, rows for lists."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from server.store import SqlTrialStore, sqlite_url
from server.store.database import Database, LeaseLost
from server.store.models import EventRow, JobRow, TrialRow
from tuner.errors import StorageError
from tuner.job import Constraint, DataRef, DataSpec, JobSpec
from tuner.results import Interval, Measurement, TrialResult, TrialState, Verdict
from tuner.store import JobState
from tuner.wire import JobEvent, TrialSummary, summarize

SPEC = JobSpec(model="m.onnx", data=DataSpec(validation=DataRef(file="v.npz")), constraints=(Constraint(metric="top1", max_drop=0.01),))
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TOP1 = Measurement(metric="top1", value=0.9, stderr=0.01, samples=500)
SIZE = Measurement(metric="size_bytes", value=1200.0, unit="bytes", direction="lower")
MISSED = Verdict(metric="top1", drop=0.02, lower=0.0, upper=0.04, confidence=0.95, decision="missed", violation=0.25)


def trial(number: int, state: TrialState = TrialState.COMPLETE, **fields: object) -> TrialResult:
    return TrialResult.model_validate({"number": number, "state": state, "assignment": {}, "plan_digest": "d", **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuner.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, path: Path) -> Iterator[Database]:
    url = sqlite_url(path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with closing(Database(url, now=lambda: NOON)) as opened:
        opened.upgrade()
        yield opened


@pytest.fixture
def store(database: Database) -> SqlTrialStore:
    made = SqlTrialStore(database)
    made.create_job("j", SPEC)
    return made


def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.read("looking") as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def set_job(database: Database, **values: Any) -> None:
    with database.write("preparing") as connection:
        connection.execute(update(JobRow).values(**values))


def events(database: Database) -> list[JobEvent]:
    with database.read("looking") as connection:
        texts = connection.scalars(select(EventRow.event).order_by(EventRow.seq))
        return [JobEvent.model_validate_json(found) for found in texts]


def test_a_second_store_on_the_same_database_sees_everything(store: SqlTrialStore, database: Database) -> None:
    with closing(SqlTrialStore(database.url)) as other:
        store.save_trial("j", trial(0))
        store.request_cancel("j")
        assert list(other.trials("j")) == [trial(0)]
        assert other.cancel_requested("j") is True
        other.set_job_state("j", JobState.RUNNING, seconds=2.0)
    assert (store.job("j").state, store.job("j").seconds) == (JobState.RUNNING, 2.0)


def test_closing_leaves_one_file_that_opens_again(path: Path) -> None:
    store = SqlTrialStore(sqlite_url(path))
    store.create_job("j", SPEC)
    store.save_trial("j", trial(0))
    store.close()
    store.close()
    assert [p.name for p in path.parent.iterdir()] == ["tuner.db"]
    with closing(SqlTrialStore(sqlite_url(path))) as again:
        assert again.trial("j", 0) == trial(0)


def test_a_writer_killed_after_saving_loses_nothing(path: Path) -> None:
    script = """if True:
        import os, signal, sys
        from server.store import SqlTrialStore
        from tuner.job import JobSpec
        from tuner.results import TrialResult
        from tuner.store import JobState
        store = SqlTrialStore(sys.argv[1])
        store.create_job("j", JobSpec.model_validate_json(sys.argv[2]))
        store.set_job_state("j", JobState.RUNNING, seconds=4.5)
        for number in range(20):
            store.save_trial("j", TrialResult(number=number, state="complete", assignment={}, plan_digest="d"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).resolve().parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", script, sqlite_url(path), SPEC.model_dump_json()], cwd=root, capture_output=True, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with closing(SqlTrialStore(sqlite_url(path))) as after:
        assert list(after.trials("j")) == [trial(number) for number in range(20)]
        assert (after.job("j").state, after.job("j").seconds) == (JobState.RUNNING, 4.5)


def test_opening_a_database_that_is_up_to_date_does_not_load_alembic(path: Path) -> None:
    script = """if True:
        import sys
        from server.store import SqlTrialStore
        for _ in range(2):
            SqlTrialStore(sys.argv[1]).close()
        print("alembic" in sys.modules, "psycopg" in sys.modules)
    """
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script, sqlite_url(path)], cwd=root, capture_output=True, timeout=60, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_stores_that_open_a_new_file_at_once_all_work(tmp_path: Path) -> None:
    for turn in range(10):
        barrier = threading.Barrier(4)

        def open_and_write(number: int, url: str = sqlite_url(tmp_path / f"{turn}.db"), barrier: threading.Barrier = barrier) -> list[int]:
            barrier.wait()
            with closing(SqlTrialStore(url)) as opened:
                opened.create_job("j", SPEC)
                opened.save_trial("j", trial(number))
                return [t.number for t in opened.trials("j")]

        with ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(open_and_write, range(4)))
        assert max(map(len, seen)) == 4


def test_columns_hold_what_is_listed_and_sorted(store: SqlTrialStore, database: Database) -> None:
    store.save_trial("j", trial(0, TrialState.RUNNING))
    speedup = Interval(value=1.5, lower=1.4, upper=1.6)
    store.save_trial("j", trial(1, verdicts=(MISSED,), speedup=speedup, measurements={"size_bytes": SIZE}, plan_digest="e"))
    names = ("number", "state", "plan_digest", "feasible", "violation", "speedup", "size_bytes", "created_at", "finished_at")
    with database.read("looking") as connection:
        found = connection.execute(select(*(TrialRow.__table__.c[name] for name in names)).order_by(TrialRow.number)).all()
        [job] = connection.execute(select(JobRow.job_id, JobRow.name, JobRow.state, JobRow.created_at, JobRow.events)).all()
    assert found == [
        (0, "running", "d", False, None, None, None, NOON, None),
        (1, "complete", "e", False, 0.25, 1.5, 1200.0, NOON, NOON),
    ]
    assert job == ("j", "job", "queued", NOON, 0)


@pytest.mark.usefixtures("store")
def test_a_finished_trial_keeps_when_it_began(database: Database) -> None:
    moments = iter(NOON.replace(minute=minute) for minute in range(60))
    ticking = SqlTrialStore(database, now=lambda: next(moments))
    ticking.save_trial("j", trial(0, TrialState.RUNNING))
    ticking.save_trial("j", trial(0))
    with database.read("looking") as connection:
        [found] = connection.execute(select(TrialRow.created_at, TrialRow.finished_at)).all()
    assert found == (NOON, NOON.replace(minute=1))


def test_the_summary_follows_the_trial(store: SqlTrialStore, database: Database) -> None:
    def summary() -> TrialSummary:
        [[found]] = rows(database, "SELECT summary FROM trials")
        return TrialSummary.model_validate_json(found)

    store.set_job_state("j", JobState.RUNNING)
    running = trial(0, TrialState.RUNNING)
    store.save_trial("j", running)
    assert summary() == summarize(running)
    store.set_job_state("j", JobState.INTERRUPTED)
    assert summary() == summarize(trial(0, TrialState.QUEUED))
    done = trial(0, verdicts=(MISSED,), measurements={"top1": TOP1}, timings={"build": 1.5}, notes=("größer",))
    store.save_trial("j", done)
    assert summary() == summarize(done)


def test_measurements_of_finished_trials_have_rows(store: SqlTrialStore, database: Database) -> None:
    everything = "SELECT number, metric, value, unit, direction, stderr, samples FROM measurements ORDER BY number, metric"
    store.save_trial("j", trial(0, TrialState.RUNNING, measurements={"top1": TOP1}))
    assert rows(database, everything) == []
    store.save_trial("j", trial(0, measurements={"top1": TOP1, "size_bytes": SIZE}))
    store.save_trial("j", trial(1, TrialState.STOPPED, measurements={"top1": TOP1}))
    assert rows(database, everything) == [
        (0, "size_bytes", 1200.0, "bytes", "lower", None, 1),
        (0, "top1", 0.9, "", "higher", 0.01, 500),
        (1, "top1", 0.9, "", "higher", 0.01, 500),
    ]
    store.save_trial("j", trial(0, measurements={"top1": TOP1.model_copy(update={"value": 0.8})}))
    assert rows(database, everything)[0] == (0, "top1", 0.8, "", "higher", 0.01, 500)
    assert len(rows(database, everything)) == 2


def test_a_finished_trial_forgives_crashes(store: SqlTrialStore, database: Database) -> None:
    set_job(database, crashes=3)
    store.save_trial("j", trial(0, TrialState.RUNNING))
    assert rows(database, "SELECT crashes FROM jobs") == [(3,)]
    store.save_trial("j", trial(0))
    assert rows(database, "SELECT crashes FROM jobs") == [(0,)]


def test_every_real_change_of_state_is_an_event(store: SqlTrialStore, database: Database) -> None:
    for state in (JobState.RUNNING, JobState.RUNNING, JobState.INTERRUPTED, JobState.RUNNING, JobState.SUCCEEDED):
        store.set_job_state("j", state)
    told = [(event.seq, event.kind, event.state, event.at) for event in events(database)]
    states = ("running", "interrupted", "running", "succeeded")
    assert told == [(number, "state", state, NOON) for number, state in enumerate(states, 1)]
    assert rows(database, "SELECT events FROM jobs") == [(4,)]


WRITES: list[Callable[[SqlTrialStore], object]] = [
    lambda store: store.save_trial("j", trial(0)),
    lambda store: store.set_job_state("j", JobState.RUNNING, seconds=9.0),
    lambda store: store.set_job_state("j", JobState.SUCCEEDED),
    lambda store: store.request_cancel("j"),
]


@pytest.mark.parametrize("write", WRITES, ids=["save_trial", "seconds", "succeeded", "request_cancel"])
def test_who_lost_the_lease_changes_nothing(store: SqlTrialStore, database: Database, write: Callable[[SqlTrialStore], object]) -> None:
    store.set_job_state("j", JobState.RUNNING)
    set_job(database, lease="new", crashes=2)
    before = store.job("j"), events(database), rows(database, "SELECT crashes FROM jobs")
    for lease in ("old", ""):
        with pytest.raises(LeaseLost, match=r"^job 'j' is no longer held under this lease"):
            write(SqlTrialStore(database, lease=lease))
    assert (store.job("j"), events(database), rows(database, "SELECT crashes FROM jobs")) == before
    assert list(store.trials("j")) == []
    write(SqlTrialStore(database, lease="new"))
    assert (store.job("j"), list(store.trials("j"))) != (before[0], [])


def test_who_lost_the_lease_may_still_read(store: SqlTrialStore, database: Database) -> None:
    store.save_trial("j", trial(0))
    set_job(database, lease="new")
    late = SqlTrialStore(database, lease="old")
    assert list(late.trials("j")) == [trial(0)]
    assert late.job("j") == store.job("j")


def test_a_database_that_was_given_stays_open(store: SqlTrialStore, database: Database) -> None:
    SqlTrialStore(database).close()
    assert store.job_ids() == ["j"]


def test_signs_that_no_database_holds_are_replaced_in_columns_alone(store: SqlTrialStore, database: Database) -> None:
    odd = trial(0, plan_digest="a\0b", measurements={"x\0": TOP1})
    store.save_trial("j", odd)
    assert store.trial("j", 0) == odd
    assert rows(database, "SELECT plan_digest, metric FROM trials JOIN measurements USING (job_id, number)") == [("a\ufffdb", "x\ufffd")]


def test_a_row_of_another_version_says_so(store: SqlTrialStore, database: Database) -> None:
    store.save_trial("j", trial(0))
    spoilt = trial(0).model_dump_json()[:-1] + ',"colour":"red"}'
    with database.write("spoiling") as connection:
        connection.execute(update(TrialRow).values(result=spoilt))
    with pytest.raises(StorageError) as caught:
        list(store.trials("j"))
    assert str(caught.value) == (
        "trial 0 of job 'j' cannot be read back: colour: Extra inputs are not permitted, got 'red'. "
        "It was written by another version of Accutune: go on with that one, or start a new job."
    )


def test_a_row_of_another_version_does_not_keep_its_job_running(store: SqlTrialStore, database: Database) -> None:
    store.set_job_state("j", JobState.RUNNING)
    store.save_trial("j", trial(0, TrialState.RUNNING))
    with database.write("spoiling") as connection:
        connection.execute(update(TrialRow).values(result='{"state":"running","colour":"größer"}'))
    store.set_job_state("j", JobState.INTERRUPTED)
    assert rows(database, "SELECT state, result FROM trials") == [("queued", '{"state": "queued", "colour": "größer"}')]


def test_errors_of_the_command_line_name_its_options(path: Path) -> None:
    with closing(SqlTrialStore(sqlite_url(path))) as store, closing(sqlite3.connect(path, isolation_level=None)) as holder:
        store.create_job("j", SPEC)
        with store.database.read("losing patience") as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 1")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError) as caught:
            store.save_trial("j", trial(0))
        holder.execute("ROLLBACK")
    assert str(caught.value) == (
        f"storing trial 0 of job 'j' failed: database is locked ({path}). "
        "Another process is writing to it: wait for that one or end it, then go on with --resume."
    )
