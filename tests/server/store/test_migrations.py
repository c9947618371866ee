"""The tables: made at once or step by step, from old databases, by several at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect
from store_samples import page_of, result, spec

import tuner.wire
from server.store import SqlTrialStore, schema, sqlite_url
from server.store.database import Database
from server.store.jobs import JobStore
from server.store.migrations import configure
from server.store.models import Base
from tuner.errors import StorageError
from tuner.results import FINISHED, TrialState
from tuner.store import JobState
from tuner.wire import TrialSummary

OLD = Path(__file__).parents[2] / "data" / "store_0001.sql"
"""Made by the version before revisions were written down."""
JOB = "20260301-120000-3fa9"
Maker = Callable[[], Database]


@pytest.fixture(params=["sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    """Opens the test's database; every call gives another pool on the same one."""
    url = sqlite_url(tmp_path / "s.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made: list[Database] = []

    def another() -> Database:
        made.append(Database(url))
        return made[-1]

    yield another
    for database in made:
        database.close()


def step(database: Database, revision: str) -> None:
    """Migrate to a revision from nothing, one after another."""
    with database.write("migrating") as connection:
        command.upgrade(configure(connection), revision)


def make_old(database: Database) -> None:
    """What the frozen file holds, in a database of revision 0001 that does not say so."""
    if database.dialect == "sqlite":
        with closing(sqlite3.connect(str(database._url.database))) as connection:
            connection.executescript(OLD.read_text(encoding="utf-8"))
        return
    step(database, "0001")
    with closing(sqlite3.connect(":memory:")) as frozen, database.write("filling") as connection:
        frozen.executescript(OLD.read_text(encoding="utf-8"))
        frozen.row_factory = sqlite3.Row
        tables = MetaData()
        tables.reflect(connection, only=["jobs", "trials"])
        for table in tables.sorted_tables:
            rows = frozen.execute(f"SELECT * FROM {table.name}").fetchall()
            connection.execute(table.insert(), [_typed(dict(row)) for row in rows])
        connection.exec_driver_sql("DROP TABLE alembic_version")


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    moments = {name: datetime.fromisoformat(row[name]).replace(tzinfo=UTC) for name in row if name.endswith("_at") and row[name]}
    return row | moments | {name: bool(row[name]) for name in ("cancel_requested", "feasible") if name in row}


def anatomy(connection: Connection) -> dict[str, Any]:
    """Everything about the tables but the order of columns."""
    found = inspect(connection)

    def told(things: list[Any]) -> list[str]:
        return sorted(str(sorted((str(k), str(v)) for k, v in thing.items())) for thing in things)

    return {
        name: (
            told(found.get_columns(name)),
            found.get_pk_constraint(name),
            told(found.get_foreign_keys(name)),
            told(found.get_indexes(name)),
            told(found.get_unique_constraints(name)),
        )
        for name in sorted(found.get_table_names())
    }


def test_every_revision_is_listed_in_order() -> None:
    scripts = ScriptDirectory(str(schema.MIGRATIONS))
    assert [script.revision for script in scripts.walk_revisions()] == list(reversed(schema.REVISIONS))
    assert scripts.get_heads() == [schema.HEAD]


def test_the_steps_make_the_tables_of_the_models(make: Maker) -> None:
    database = make()
    with database._engine.connect() as connection, schema.unchecked_keys(connection), connection.begin():
        command.upgrade(configure(connection), "head")
    with database.read("comparing") as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert differences == []
    assert database.revision() == schema.HEAD
    database.check()


def test_an_old_database_gets_the_anatomy_of_a_new_one(make: Maker, tmp_path: Path) -> None:
    database = make()
    make_old(database)
    assert database.revision() == "0001"
    assert database.upgrade() == list(schema.REVISIONS[1:])
    with database.read("looking") as connection:
        upgraded = anatomy(connection)
        connection_schema = inspect(connection).default_schema_name
        if database.dialect == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    if database.dialect == "sqlite":
        with closing(Database(sqlite_url(tmp_path / "new.db"))) as new:
            new.upgrade()
            with new.read("looking") as connection:
                assert upgraded == anatomy(connection)
        return
    with database.write("making it anew") as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {connection_schema} CASCADE")
        connection.exec_driver_sql(f"CREATE SCHEMA {connection_schema}")
    database.upgrade()
    with database.read("looking") as connection:
        assert upgraded == anatomy(connection)


def test_an_old_database_is_read_as_it_was(make: Maker) -> None:
    database = make()
    make_old(database)
    database.upgrade()
    store = SqlTrialStore(database)
    record = store.job(JOB)
    assert (record.spec.name, record.spec.model, record.state, record.seconds) == (
        "resnet-int8",
        "/modèles/réseau.onnx",
        JobState.RUNNING,
        12.5,
    )
    assert record.created == datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    trials = list(store.trials(JOB))
    assert [trial.state for trial in trials] == [*FINISHED, TrialState.RUNNING]
    assert trials[0].notes == ("conv1 has it's “quotes”",)
    assert trials[1].measurements["top1"].samples == 320
    with database.read("looking") as connection:
        [[name, crashes, events, model_id, owner]] = connection.exec_driver_sql("SELECT name, crashes, events, model_id, owner FROM jobs")
        summaries = connection.exec_driver_sql("SELECT summary FROM trials ORDER BY number").scalars().all()
        measured = connection.exec_driver_sql(
            "SELECT number, metric, value, unit, direction, stderr, samples FROM measurements ORDER BY 1, 2"
        ).all()
        told = connection.exec_driver_sql("SELECT goal, model_name, searched, outcome FROM jobs").all()
    assert (name, crashes, events, model_id, owner) == ("resnet-int8", 0, 0, None, None)
    assert told == [("top1 may get worse by at most 0.01 of its value, with 95% confidence", None, "resnet-int8\n", None)]
    assert [TrialSummary.model_validate_json(text) for text in summaries] == [tuner.wire.summarize(trial) for trial in trials]
    assert measured == [
        (0, "size_bytes", 281234.0, "bytes", "lower", None, 1),
        (0, "top1", 0.921, "", "higher", 0.004, 5000),
        (1, "top1", 0.84, "", "higher", 0.004, 320),
    ]


def test_the_command_line_upgrades_a_folder_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD.read_text(encoding="utf-8"))
    with closing(SqlTrialStore(sqlite_url(path))) as store:
        assert store.job_ids() == [JOB]
        assert [trial.number for trial in store.trials(JOB)] == [0, 1, 2, 3]
        store.database.check()


def test_an_upgraded_database_works_like_a_new_one(make: Maker) -> None:
    database = make()
    make_old(database)
    database.upgrade()
    store = SqlTrialStore(database)
    store.set_job_state(JOB, JobState.INTERRUPTED)
    assert store.trial(JOB, 3).state == TrialState.QUEUED
    with database.write("deleting") as connection:
        connection.exec_driver_sql("DELETE FROM jobs")
    with database.read("counting") as connection:
        left = [connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar() for name in ("trials", "measurements", "events")]
    assert left == [0, 0, 0]


def test_an_old_trial_that_nobody_can_read_does_not_stop_the_others(make: Maker) -> None:
    database = make()
    make_old(database)
    with database.write("spoiling") as connection:
        connection.exec_driver_sql("UPDATE trials SET result = '{}' WHERE number = 1")
    database.upgrade()
    with database.read("looking") as connection:
        texts = connection.exec_driver_sql("SELECT summary FROM trials ORDER BY number").scalars().all()
    found = [TrialSummary.model_validate_json(text) for text in texts]
    assert [(summary.number, summary.state) for summary in found] == [(0, "complete"), (1, "stopped"), (2, "failed"), (3, "running")]
    assert (found[1].violation, found[1].plan_digest) == (0.07, "d1" * 16)
    assert found[1].notes == ("its details were written by another version and cannot be read",)


def test_every_job_of_the_second_revision_gets_what_lists_show(make: Maker) -> None:
    """More of them than are read at once, among them one that nobody can read."""
    database = make()
    step(database, "0002")
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    model = {"id": "mdl-1", "sha256": "a", "name": "Réseau.onnx", "size_bytes": 1, "created_at": moment, "facts": "{}"}
    job = {"name": "Net", "state": "succeeded", "seconds": 1.0, "cancel_requested": False, "created_at": moment, "updated_at": moment}
    job |= {"spec": spec("Net").model_dump_json(), "crashes": 0, "events": 0, "model_id": "mdl-1", "result": result("j").model_dump_json()}
    others = [{"spec": "[]", "result": "{}"}, {"spec": '{"constraints":[{}]}', "result": None, "model_id": "mdl-gone"}]
    tables = MetaData()
    with database.write("filling") as connection:
        tables.reflect(connection, only=["models", "jobs"])
        connection.execute(tables.tables["models"].insert(), [model])
        rows = [job | {"job_id": f"j{number:03}"} | (others[number % 100] if number in (100, 101) else {}) for number in range(205)]
        connection.execute(tables.tables["jobs"].insert(), rows)
    assert database.upgrade() == ["0003"]
    with database.read("looking") as connection:
        columns = "job_id, goal, model_name, searched, outcome"
        found = {row[0]: row[1:] for row in connection.exec_driver_sql(f"SELECT {columns} FROM jobs").all()}
    outcome = tuner.wire.summarize_outcome(result("j").best).model_dump_json()
    whole = ("top1 may get worse by at most 0.01", "Réseau.onnx", "net\nréseau.onnx", outcome)
    assert found.pop("j100") == (None, "Réseau.onnx", "net\nréseau.onnx", None)
    assert found.pop("j101") == (None, None, "net\n", None)
    assert found == {f"j{number:03}": whole for number in range(205) if number not in (100, 101)}
    assert [view.id for view in page_of(JobStore(database), limit=2, search="RÉSEAU").items] == ["j204", "j203"]


def test_an_upgrade_that_breaks_leaves_everything_as_it_was(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make()
    make_old(database)
    with database.read("looking") as connection:
        before = anatomy(connection)
    with monkeypatch.context() as broken:
        broken.setattr(tuner.wire, "summarize", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            database.upgrade()
    with database.read("looking") as connection:
        assert anatomy(connection) == before
        assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar() == 4
    assert database.upgrade() == list(schema.REVISIONS[1:])


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_of_several_that_upgrade_at_once_one_does_the_work(make: Maker, old: bool) -> None:
    if old:
        make_old(make())
    databases = [make() for _ in range(4)]
    barrier = threading.Barrier(len(databases))

    def upgrade(database: Database) -> list[str]:
        barrier.wait()
        return database.upgrade()

    with ThreadPoolExecutor(len(databases)) as pool:
        applied = sorted(pool.map(upgrade, databases))
    assert applied == [[], [], [], list(schema.REVISIONS[old:])]
    databases[0].check()


def test_a_database_without_tables_says_how_to_make_them(make: Maker) -> None:
    database = make()
    assert database.revision() is None
    with pytest.raises(StorageError) as caught:
        database.check()
    assert str(caught.value) == f"the database {database.shown} has no tables yet. Run `tuner db upgrade`."


def test_an_older_database_says_how_to_upgrade_it(make: Maker) -> None:
    database = make()
    make_old(database)
    with pytest.raises(
        StorageError, match=r"of an earlier version \(revision 0001, needed 0003\)\. Make a backup of it, then run `tuner db upgrade`\.$"
    ):
        database.check()


@pytest.mark.parametrize("use", [Database.upgrade, Database.check], ids=["upgrade", "check"])
def test_a_database_of_a_newer_version_is_left_alone(make: Maker, use: Callable[[Database], object]) -> None:
    database = make()
    database.upgrade()
    with database.write("ageing") as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(StorageError) as caught:
        use(database)
    assert str(caught.value) == (
        f"the database {database.shown} was made by a newer version of Accutune (revision 0999, this one knows up to {schema.HEAD}). "
        "Use that version, or choose another database."
    )


def test_tables_of_another_program_are_left_alone(make: Maker) -> None:
    database = make()
    with database.write("making") as connection:
        connection.exec_driver_sql("CREATE TABLE models (id INTEGER)")
    with pytest.raises(StorageError, match=r"has tables named models that this program did not make\. Give it a database or a schema of"):
        database.upgrade()
