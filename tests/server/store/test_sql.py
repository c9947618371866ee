"""What the SQL store promises beyond the contract: other processes, kill -9, full disks and broken files."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, inspect
from sqlalchemy.dialects import sqlite

from server.store import SqlTrialStore, sqlite_url
from server.store.models import Base, JobRow, TrialRow, UtcDateTime
from tuner.errors import StorageError
from tuner.job import Constraint, DataRef, DataSpec, JobSpec
from tuner.results import Interval, Measurement, TrialResult, TrialState, Verdict
from tuner.store import JobState

SPEC = JobSpec(model="m.onnx", data=DataSpec(validation=DataRef(file="v.npz")), constraints=(Constraint(metric="top1", max_drop=0.01),))
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def trial(number: int, state: TrialState = TrialState.COMPLETE, **fields: object) -> TrialResult:
    return TrialResult.model_validate({"number": number, "state": state, "assignment": {}, "plan_digest": "d", **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuner.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlTrialStore]:
    with closing(SqlTrialStore(sqlite_url(path), now=lambda: NOON)) as made:
        made.create_job("j", SPEC)
        yield made


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_second_store_on_the_same_file_sees_everything(store: SqlTrialStore, path: Path) -> None:
    with closing(SqlTrialStore(sqlite_url(path))) as other:
        store.save_trial("j", trial(0))
        store.request_cancel("j")
        assert list(other.trials("j")) == [trial(0)]
        assert other.cancel_requested("j") is True
        other.set_job_state("j", JobState.RUNNING, seconds=2.0)
    assert (store.job("j").state, store.job("j").seconds) == (JobState.RUNNING, 2.0)


def test_closing_leaves_one_file_that_opens_again(store: SqlTrialStore, path: Path) -> None:
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


def test_every_connection_is_durable_and_checks_keys(store: SqlTrialStore) -> None:
    found: dict[str, list[object]] = {}
    with store._engine.connect() as first, store._engine.connect() as second:
        for connection in (first, second):
            for pragma in ("synchronous", "foreign_keys", "busy_timeout", "journal_mode"):
                found.setdefault(pragma, []).append(connection.exec_driver_sql(f"PRAGMA {pragma}").scalar())
    assert found == {"synchronous": [2, 2], "foreign_keys": [1, 1], "busy_timeout": [10_000] * 2, "journal_mode": ["wal"] * 2}


def test_columns_hold_what_is_listed_and_sorted(store: SqlTrialStore, path: Path) -> None:
    size = Measurement(metric="size_bytes", value=1200.0, unit="bytes", direction="lower")
    verdict = Verdict(metric="top1", drop=0.02, lower=0.0, upper=0.04, confidence=0.95, decision="missed", violation=0.25)
    store.save_trial("j", trial(0, TrialState.RUNNING))
    store.save_trial(
        "j",
        trial(
            1, verdicts=(verdict,), speedup=Interval(value=1.5, lower=1.4, upper=1.6), measurements={"size_bytes": size}, plan_digest="e"
        ),
    )
    names = "number, state, plan_digest, feasible, violation, speedup, size_bytes, created_at, finished_at"
    noon = "2026-03-01 12:00:00.000000"
    assert rows(path, f"SELECT {names} FROM trials ORDER BY number") == [
        (0, "running", "d", 0, None, None, None, noon, None),
        (1, "complete", "e", 0, 0.25, 1.5, 1200.0, noon, noon),
    ]
    assert rows(path, "SELECT job_id, state, created_at FROM jobs") == [("j", "queued", noon)]


def test_a_finished_trial_keeps_when_it_began(path: Path) -> None:
    moments = iter(NOON.replace(minute=minute) for minute in range(60))
    with closing(SqlTrialStore(sqlite_url(path), now=lambda: next(moments))) as ticking:
        ticking.create_job("j", SPEC)
        ticking.save_trial("j", trial(0, TrialState.RUNNING))
        ticking.save_trial("j", trial(0))
    [(begun, ended)] = rows(path, "SELECT created_at, finished_at FROM trials")
    assert (begun, ended) == ("2026-03-01 12:01:00.000000", "2026-03-01 12:02:00.000000")


def test_the_schema_has_its_keys_and_indexes(store: SqlTrialStore) -> None:
    found = inspect(store._engine)
    assert found.get_pk_constraint("trials") == {"constrained_columns": ["job_id", "number"], "name": "pk_trials"}
    assert {index["name"]: index["column_names"] for index in found.get_indexes("trials")} == {
        "ix_trials_job_id_plan_digest": ["job_id", "plan_digest"],
        "ix_trials_job_id_state": ["job_id", "state"],
    }
    [key] = found.get_foreign_keys("trials")
    assert (key["name"], key["referred_table"]) == ("fk_trials_job_id", "jobs")
    assert set(Base.metadata.tables) == {JobRow.__tablename__, TrialRow.__tablename__}


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs its zone, got 2026-03-01T12:00:00 without one\. Use datetime\.now\(UTC\)\."):
        UtcDateTime().process_bind_param(NOON.replace(tzinfo=None), sqlite.dialect())


def test_a_full_disk_says_so_and_spoils_nothing(path: Path) -> None:
    def small(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 40")

    event.listen(Engine, "connect", small)
    try:
        with closing(SqlTrialStore(sqlite_url(path))) as full:
            full.create_job("j", SPEC)
            saved = 0
            with pytest.raises(StorageError) as caught:
                for number in range(1000):
                    full.save_trial("j", trial(number, notes=("x" * 1000,)))
                    saved += 1
            still_there = [t.number for t in full.trials("j")]
    finally:
        event.remove(Engine, "connect", small)
    message = f"storing trial {saved} of job 'j' failed: database or disk is full ({path}). Free some space, then go on with --resume."
    assert str(caught.value) == message
    assert saved > 10
    assert still_there == list(range(saved))
    with closing(SqlTrialStore(sqlite_url(path))) as roomy:
        roomy.save_trial("j", trial(saved))
        assert len(list(roomy.trials("j"))) == saved + 1


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        SqlTrialStore(sqlite_url(tmp_path / "file" / "s.db"))
    assert str(caught.value) == (
        f"opening the job store failed: unable to open database file ({tmp_path}/file/s.db). "
        "Choose a folder that exists and can be written with --out."
    )


def test_a_database_that_became_read_only_says_so(store: SqlTrialStore) -> None:
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(
        StorageError, match=r"attempt to write a readonly database .* Choose another folder with --out or change its permissions"
    ):
        store.save_trial("j", trial(0))


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"number,state\n" * 100)
    with pytest.raises(
        StorageError, match=r"file is not a database .*tuner\.db.* Choose another folder with --out, or move that file away\."
    ):
        SqlTrialStore(sqlite_url(path))
    assert path.read_bytes() == b"number,state\n" * 100


def test_a_writer_that_never_lets_go_is_named(store: SqlTrialStore, path: Path) -> None:
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"database is locked .* Another process is writing to it: wait for that one or end it"):
            store.save_trial("j", trial(0))
    store.save_trial("j", trial(0))
    assert store.trial("j", 0) == trial(0)


def test_a_row_of_another_version_says_so(store: SqlTrialStore, path: Path) -> None:
    store.save_trial("j", trial(0))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("""UPDATE trials SET result = json_set(result, '$.colour', 'red')""")
    with pytest.raises(StorageError) as caught:
        list(store.trials("j"))
    assert str(caught.value) == (
        "trial 0 of job 'j' cannot be read back: colour: Extra inputs are not permitted, got 'red'. "
        "It was written by another version of Accutune: go on with that one, or start a new job."
    )


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("runs/tuner.db", "the job store 'runs/tuner.db' is not a URL; write sqlite:///path/to/file.db"),
        ("postgresql://me:secret@host/db", r"must be a SQLite file, got 'postgresql://me:\*\*\*@host/db'; write sqlite:///path/to/file.db"),
        ("sqlite://", "must be the path of a file and nothing else, got 'sqlite://'"),
        ("sqlite:///:memory:", "must be the path of a file and nothing else, got 'sqlite:///:memory:'"),
        ("sqlite:////tmp/what?.db", r"must be the path of a file and nothing else, got 'sqlite:////tmp/what\?\.db'"),
    ],
)
def test_a_wrong_url_says_what_to_write(url: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint):
        SqlTrialStore(url)


@pytest.mark.parametrize("name", ["what?.db", "50%20.db", "a#b @:c.db", "größe.db"])
def test_the_url_of_a_path_opens_that_path(tmp_path: Path, name: str) -> None:
    SqlTrialStore(sqlite_url(tmp_path / name)).close()
    assert [p.name for p in tmp_path.iterdir()] == [name]
