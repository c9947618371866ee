"""Connections and transactions on both databases, and what is said when one cannot be used."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, event, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError

from server.store import engines
from server.store.complaints import StorageBusy, StorageFull, complaint
from server.store.database import Database, sqlite_url
from server.store.models import KeyRow, UtcDateTime
from tuner.errors import StorageError

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
URL = engines.parse("postgresql://me:geheim@db.example/accutune")


def key(name: str) -> dict[str, object]:
    return {"id": name, "name": name, "role": "viewer", "secret_sha256": "", "created_at": NOON}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, path: Path) -> Iterator[Database]:
    url = sqlite_url(path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with closing(Database(url)) as opened:
        opened.upgrade()
        yield opened


def names(database: Database) -> list[str]:
    with database.read("listing keys") as connection:
        return list(connection.scalars(select(KeyRow.name).order_by(KeyRow.name)))


def test_a_block_is_written_wholly_or_not_at_all(database: Database) -> None:
    with database.write("adding") as connection:
        connection.execute(insert(KeyRow), [key("a"), key("b")])
    with suppress(RuntimeError), database.write("adding") as connection:
        connection.execute(insert(KeyRow).values(key("c")))
        raise RuntimeError
    assert names(database) == ["a", "b"]


def test_a_moment_comes_back_with_its_zone(database: Database) -> None:
    with database.write("adding") as connection:
        connection.execute(insert(KeyRow).values(key("a")))
    with database.read("reading") as connection:
        assert connection.scalar(select(KeyRow.created_at)) == NOON


def test_a_broken_constraint_reaches_the_caller(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write("adding") as connection:
        connection.execute(insert(KeyRow), [key("a"), key("a")])
    assert names(database) == []


def test_an_upsert_replaces(database: Database) -> None:
    for name in ("first", "second"):
        new = database.upsert(KeyRow).values(key("a") | {"name": name})
        with database.write("adding") as connection:
            connection.execute(new.on_conflict_do_update(index_elements=["id"], set_={"name": name}))
    assert names(database) == ["second"]


def test_many_threads_read_and_write_at_once(database: Database) -> None:
    def work(number: int) -> list[str]:
        with database.write("adding") as connection:
            connection.execute(insert(KeyRow).values(key(f"{number:02}")))
        return names(database)

    with ThreadPoolExecutor(40) as pool:
        seen = list(pool.map(work, range(80)))
    assert all(f"{number:02}" in found for number, found in enumerate(seen))
    assert len(names(database)) == 80


def test_whoever_reads_and_then_writes_in_one_block_is_never_told_locked(database: Database) -> None:
    with database.write("adding") as connection:
        connection.execute(insert(KeyRow).values(key("a") | {"name": "0"}))

    def count(_: int) -> None:
        with database.write("counting") as connection:
            name = connection.scalar(select(KeyRow.name).where(KeyRow.id == "a").with_for_update())
            assert name is not None
            connection.execute(update(KeyRow).values(name=str(int(name) + 1)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    assert names(database) == ["40"]


def test_when_every_connection_is_in_use_it_says_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database._engine.pool, "_timeout", 0.01)
    held = [database._engine.connect() for _ in range(engines.KEPT + engines.EXTRA)]
    try:
        with pytest.raises(StorageError, match=r"listing keys failed: all 20 connections .* are in use \(.*\)\. Try again in a moment\."):
            names(database)
    finally:
        for connection in held:
            connection.close()
    assert names(database) == []


def test_every_connection_is_durable_and_checks_keys(path: Path) -> None:
    found: dict[str, list[object]] = {}
    with closing(Database(sqlite_url(path))) as database:
        database.upgrade()
        with database.read("looking") as first, database.write("looking") as second:
            for connection in (first, second):
                for pragma in ("synchronous", "foreign_keys", "busy_timeout", "journal_mode"):
                    found.setdefault(pragma, []).append(connection.exec_driver_sql(f"PRAGMA {pragma}").scalar())
    assert found == {"synchronous": [2, 2], "foreign_keys": [1, 1], "busy_timeout": [10_000] * 2, "journal_mode": ["wal"] * 2}


def test_reading_goes_on_while_somebody_writes(path: Path) -> None:
    with closing(Database(sqlite_url(path))) as database:
        database.upgrade()
        with database.write("adding") as connection:
            connection.execute(insert(KeyRow).values(key("a")))
            assert names(database) == []
        assert names(database) == ["a"]


def test_a_dropped_connection_is_replaced_unnoticed(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        database.upgrade()
        with database.read("asking") as connection:
            process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
        assert names(database) == []


def test_a_connection_dropped_in_the_middle_says_so_and_undoes_the_block(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        database.upgrade()
        with pytest.raises(StorageError, match=r"^adding failed: .* Wait until the database server runs again, then try again\.$"):
            with database.write("adding") as connection:
                connection.execute(insert(KeyRow).values(key("a")))
                process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
                with psycopg.connect(postgres_url, autocommit=True) as other:
                    other.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
                connection.execute(insert(KeyRow).values(key("b")))
        assert names(database) == []


def test_a_standby_is_told_from_a_primary(postgres_url: str) -> None:
    with closing(Database(f"{postgres_url}%20-cdefault_transaction_read_only%3Don")) as database:
        with pytest.raises(StorageError, match=r"opening the database failed: .*read-only transaction .* give the URL of the primary\.$"):
            database.upgrade()


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with closing(Database("postgresql://me:geheim@127.0.0.1:1/accutune")) as database, pytest.raises(StorageError) as caught:
        database.upgrade()
    text = str(caught.value)
    assert text.startswith("opening the database failed: ")
    assert "(database 'accutune' at 127.0.0.1:1)" in text
    assert text.endswith(
        "Check that the server runs and lets this machine in, and that host, port, user, password and database in its URL are right."
    )
    assert "geheim" not in text


@pytest.mark.parametrize("part", ["?password=geheim", "?colour=red&password=geheim"])
def test_a_password_is_hidden_wherever_it_stands(part: str) -> None:
    with closing(Database(f"postgresql://me@127.0.0.1:1/accutune{part}")) as database:
        assert "geheim" not in database.shown
        assert "geheim" in database.url
        with pytest.raises(StorageError) as caught:
            database.revision()
        assert "geheim" not in str(caught.value)


def test_without_the_driver_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"PostgreSQL needs a driver that is not here .*: pip install 'accutune\[postgres\]'"):
        Database("postgresql://me@host/db")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_takes_the_same_driver(scheme: str) -> None:
    assert engines.parse(f"{scheme}://h/d").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (psycopg.errors.DiskFull("could not extend file: No space left\nHINT: x"), StorageFull, "Give the database server more room"),
        (psycopg.errors.TooManyConnections("too many clients"), StorageBusy, "raise max_connections there, or run fewer jobs at once"),
        (psycopg.errors.InsufficientPrivilege("permission denied"), StorageError, "Grant the user the right to create and change tables"),
        (psycopg.errors.DeadlockDetected("deadlock detected"), StorageBusy, "Another process was in its way: try again."),
        (
            psycopg.OperationalError("wrong password geheim"),
            StorageBusy,
            "password *** (database 'accutune' at db.example:5432). Check",
        ),
    ],
)
def test_what_postgresql_complains_of_gets_a_remedy(error: psycopg.Error, kind: type[StorageError], text: str) -> None:
    wrapped = DBAPIError.instance("SELECT 1", {}, error, psycopg.Error, dialect=None)
    assert isinstance(wrapped, DBAPIError)
    told = complaint(wrapped, "asking", URL, folder=False)
    assert type(told) is kind
    assert text in str(told)
    assert "\n" not in str(told)


def test_our_own_faults_stay_what_they_are() -> None:
    wrapped = DBAPIError.instance("SELEC", {}, psycopg.errors.SyntaxError("near SELEC"), psycopg.Error, dialect=None)
    assert isinstance(wrapped, DBAPIError)
    assert complaint(wrapped, "asking", URL, folder=False) is None


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs its zone, got 2026-03-01T12:00:00 without one\. Use datetime\.now\(UTC\)\."):
        UtcDateTime().process_bind_param(NOON.replace(tzinfo=None), sqlite.dialect())


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        Database(sqlite_url(tmp_path / "file" / "s.db"), folder=True).upgrade()
    assert str(caught.value) == (
        f"opening the database failed: unable to open database file ({tmp_path}/file/s.db). "
        "Choose a folder that exists and can be written with --out."
    )
    with pytest.raises(StorageError, match=r"\. Set ACCUTUNE_DATA_DIR to a folder that exists and can be written\."):
        Database(sqlite_url(tmp_path / "file" / "s.db")).upgrade()


def test_a_database_that_became_read_only_says_so(path: Path) -> None:
    with closing(Database(sqlite_url(path), folder=True)) as database:
        database.upgrade()
        with database.read("closing the door") as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(
            StorageError, match=r"attempt to write a readonly database .* Choose another folder with --out or change its permissions"
        ):
            with database.write("adding") as connection:
                connection.execute(insert(KeyRow).values(key("a")))


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"number,state\n" * 100)
    with pytest.raises(StorageError, match=r"file is not a database .*service\.db.* Choose another folder with --out, or move that file"):
        Database(sqlite_url(path), folder=True).upgrade()
    assert path.read_bytes() == b"number,state\n" * 100


def test_a_writer_that_never_lets_go_is_named(path: Path) -> None:
    with closing(Database(sqlite_url(path), folder=True)) as database, closing(sqlite3.connect(path, isolation_level=None)) as holder:
        database.upgrade()
        with database.read("losing patience") as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 1")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"database is locked .* Another process is writing to it: wait for that one or end it"):
            with database.write("adding") as connection:
                connection.execute(insert(KeyRow).values(key("a")))
        holder.execute("ROLLBACK")
        with database.write("adding") as connection:
            connection.execute(insert(KeyRow).values(key("a")))
        assert names(database) == ["a"]


def test_a_full_disk_says_so_and_spoils_nothing(path: Path) -> None:
    def small(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 80")

    event.listen(Engine, "connect", small)
    try:
        with closing(Database(sqlite_url(path))) as full:
            full.upgrade()
            saved = 0
            with pytest.raises(StorageFull) as caught:
                for number in range(1000):
                    with full.write("adding a key") as connection:
                        connection.execute(insert(KeyRow).values(key(f"{number:03}") | {"role": "x" * 1000}))
                    saved += 1
            still_there = names(full)
    finally:
        event.remove(Engine, "connect", small)
    assert str(caught.value) == f"adding a key failed: database or disk is full ({path}). Free some space, then try again."
    assert saved > 10
    assert still_there == [f"{number:03}" for number in range(saved)]
    with closing(Database(sqlite_url(path))) as roomy:
        with roomy.write("adding a key") as connection:
            connection.execute(insert(KeyRow).values(key("last")))
        assert len(names(roomy)) == saved + 1


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("runs/tuner.db", r"must be given as a URL, got 'runs/tuner\.db'\. Write sqlite:///path/to/file\.db or postgresql://"),
        ("me:secret@host/db", r"must be given as a URL, got one that cannot be read\. Write sqlite"),
        ("mysql://me:secret@host/db", r"must be a SQLite file or PostgreSQL, got 'mysql://me:\*\*\*@host/db'\. Write sqlite"),
        ("sqlite://", "must be the path of a file and nothing else, got 'sqlite://'"),
        ("sqlite:///:memory:", "must be the path of a file and nothing else, got 'sqlite:///:memory:'"),
        ("sqlite:////tmp/what?.db", r"must be the path of a file and nothing else, got 'sqlite:////tmp/what\?\.db'"),
    ],
)
def test_a_wrong_url_says_what_to_write(url: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint):
        Database(url)


@pytest.mark.parametrize("name", ["what?.db", "50%20.db", "a#b @:c.db", "größe.db"])
def test_the_url_of_a_path_opens_that_path(tmp_path: Path, name: str) -> None:
    database = Database(sqlite_url(tmp_path / name))
    database.upgrade()
    database.close()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_nothing_is_opened_before_it_is_used(path: Path) -> None:
    Database(sqlite_url(path)).close()
    assert not path.exists()
