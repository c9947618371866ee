"""The commands of who operates a server: what they refuse and in which words, and a real server that is told to end."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import typer
from running_server import RunningServer
from slow_jobs import slow_job
from store_samples import model_facts

from server.cli import app, main
from server.commands.listen import bind
from server.service import open_artifacts, open_database, open_service
from server.settings import Settings, load_settings
from server.store.database import Database, sqlite_url
from server.store.files import FileStore
from server.store.jobs import JobStore
from tuner.errors import JobError
from tuner.store import JobState

OLD_STORE = Path(__file__).parent.parent / "data" / "store_0001.sql"
HOUR = 3600


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line that says why."""
        assert (self.status, self.out) == (2, "")
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


Call = Callable[..., Done]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the environment's server."""
    for name in [name for name in os.environ if name.startswith("ACCUTUNE_") and name != "ACCUTUNE_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACCUTUNE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ACCUTUNE_PORT", "0")
    return tmp_path / "data"


@pytest.fixture
def call(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`tuner` with these arguments, in this process."""
    assert not data.exists()

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tuner", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, said.out, said.err)

    return run


@pytest.fixture
def settings(data: Path) -> Settings:
    return load_settings(data_dir=data)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    made = open_database(settings)
    made.upgrade()
    yield made
    made.close()


def commands(group: Any, path: str = "tuner") -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        yield f"{path} {name}", command
        yield from commands(command, f"{path} {name}")


def test_every_command_and_every_option_is_explained() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert {"tuner serve", "tuner gc", "tuner db upgrade", "tuner keys create", "tuner keys list", "tuner keys revoke"} <= found.keys()
    assert [name for name, command in found.items() if not command.help] == []
    silent = [f"{name} {option.name}" for name, command in found.items() for option in command.params if not getattr(option, "help", "")]
    assert [entry for entry in silent if not entry.endswith(" help")] == []


def test_without_keys_it_listens_on_loopback_alone(call: Call, data: Path) -> None:
    assert call("serve", "--host", "0.0.0.0").refusal == (
        "host 0.0.0.0 can be reached from other machines, so callers must show API keys, and there is none yet. "
        f"Make one with: tuner keys create NAME --role admin --data-dir {data}   (or stay on --host 127.0.0.1)"
    )


def test_a_key_that_was_revoked_is_none(call: Call) -> None:
    key = call("keys", "create", "anna").out.split("_")[1]
    assert call("keys", "revoke", key).status == 0
    assert "callers must show API keys" in call("serve", "--host", "0.0.0.0").refusal


def test_a_data_folder_is_for_one_server(call: Call, settings: Settings) -> None:
    with open_service(settings):
        told = call("serve").refusal
    assert told == f"another server is running on the data folder {settings.data_dir}; end it, or give this one another --data-dir"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCUTUNE_JOBS", "none", "ACCUTUNE_JOBS is 'none': "),
        ("ACCUTUNE_PORT", "70000", "ACCUTUNE_PORT is '70000': "),
        ("ACCUTUNE_TRIAL_MEMORY_GB", "-1", "ACCUTUNE_TRIAL_MEMORY_GB is '-1': "),
        ("ACCUTUNE_LOG_FORMAT", "xml", "ACCUTUNE_LOG_FORMAT is 'xml': "),
        ("ACCUTUNE_LEASE_SECONDS", "0", "ACCUTUNE_LEASE_SECONDS is '0': "),
    ],
)
def test_a_bad_setting_is_refused_by_name(call: Call, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv(variable, value)
    told = call("serve").refusal
    assert said in told
    assert "Its meaning: " in told


def test_a_database_url_that_is_none_is_refused_without_its_password(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUTUNE_DATABASE_URL", "mysql://me:geheim@host/db")
    told = call("serve").refusal
    assert "the database must be a SQLite file or PostgreSQL" in told
    assert "geheim" not in told


def test_a_port_that_is_taken_is_named(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = call("serve", "--port", port).refusal
    assert told == f"port {port} on 127.0.0.1 is in use by another program. Choose another with --port; 0 takes a free one."


@pytest.mark.parametrize(
    ("host", "said"), [("192.0.2.77", "host '192.0.2.77' is no address of this machine."), ("no such host.invalid", "is not known (")]
)
def test_a_host_that_is_not_here_is_refused(host: str, said: str) -> None:
    with pytest.raises(JobError) as refused:
        bind(host, 0)
    assert said in str(refused.value)
    assert "Use 127.0.0.1 for this machine alone" in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_all_addresses_of_a_host_listen_on_one_port(host: str) -> None:
    sockets = bind(host, 0)
    assert len({opened.getsockname()[1] for opened in sockets}) == 1
    with socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1]), timeout=10):
        pass
    for opened in sockets:
        opened.close()


@pytest.mark.parametrize("command", [("serve",), ("db", "upgrade"), ("keys", "list"), ("gc",)])
def test_a_data_folder_that_cannot_be_written_is_named(call: Call, data: Path, command: tuple[str, ...]) -> None:
    data.write_text("a file")
    told = call(*command).refusal
    assert told.startswith(f"writing the data folder {data} failed: ")
    assert "Choose another folder, or change its permissions." in told


def test_a_key_is_shown_once_and_its_secret_never_again(call: Call, data: Path) -> None:
    made = call("keys", "create", "build machine", "--role", "submitter", "--days", 90)
    assert made.status == 0
    shown = re.fullmatch(r"acc_(key[0-9a-f]{16})_(\S{43})\n", made.out)
    assert shown is not None
    admin = call("keys", "create", "anna", "--role", "admin").out
    listed = call("keys", "list")
    assert (listed.status, listed.err) == (0, "")
    rows = {line.split()[0]: line for line in listed.out.splitlines()[1:]}
    assert rows.keys() == {shown[1], admin.split("_")[1]}
    assert re.search(r"build machine +submitter +\d{4}-\d\d-\d\d \d\d:\d\d UTC +\d{4}-\d\d-\d\d \d\d:\d\d UTC *$", rows[shown[1]])
    assert re.search(r"anna +admin +\d{4}-\d\d-\d\d \d\d:\d\d UTC *$", rows[admin.split("_")[1]])
    stored = b"".join(path.read_bytes() for path in data.iterdir() if path.is_file())
    for secret in (shown[2], admin.strip().partition("_")[2].partition("_")[2]):
        assert secret not in listed.out
        assert secret.encode() not in stored


def test_a_key_is_revoked_for_good(call: Call) -> None:
    key = call("keys", "create", "anna").out.split("_")[1]
    assert call("keys", "revoke", key) == Done(0, "revoked: anna\n", "")
    revoked = call("keys", "list").out
    assert len(re.findall(r"\d\d:\d\d UTC", revoked)) == 2
    assert call("keys", "revoke", key).status == 0
    assert call("keys", "list").out == revoked


def test_revoking_what_is_no_key_says_where_to_look(call: Call) -> None:
    done = call("keys", "revoke", "key0000")
    assert done.status != 0
    assert "there is no API key 'key0000'; GET /api/v1/keys or `tuner keys list` shows those there are" in done.err


@pytest.mark.parametrize("name", ["", " anna", "a\nb", "x" * 101, "<script>", "anna/b"])
def test_a_name_that_would_be_hard_to_read_is_refused(call: Call, name: str) -> None:
    told = call("keys", "create", name)
    assert (told.status, told.out) == (2, "")
    assert "the name must be letters, digits, '.', '_', '@', '-' or spaces, at most 100, got '" in told.err


def test_an_unknown_role_and_days_that_are_none_are_refused(call: Call) -> None:
    assert call("keys", "create", "anna", "--role", "root").refusal == "--role must be one of viewer, submitter, admin, got 'root'"
    for days in (0, 3651):
        done = call("keys", "create", "anna", "--days", days)
        assert (done.status, done.out) == (2, "")
        assert "--days" in done.err


def test_a_new_database_gets_its_tables_once(call: Call) -> None:
    first = call("db", "upgrade")
    assert (first.status, first.out.startswith("applied: 0001")) == (0, True)
    assert call("db", "upgrade") == Done(0, "the database is up to date\n", "")


def test_a_database_of_the_first_version_is_brought_up_to_date(call: Call, data: Path) -> None:
    data.mkdir()
    with sqlite3.connect(data / "accutune.db") as old:
        old.executescript(OLD_STORE.read_text())
    old.close()
    assert "is of an earlier version (revision 0001" in call("gc").refusal
    done = call("db", "upgrade")
    assert (done.status, done.out.startswith("applied: 0002, 0003")) == (0, True)
    assert call("gc").status == 0
    assert state_of(data, "20260301-120000-3fa9") == JobState.RUNNING


@pytest.mark.parametrize("command", [("serve",), ("db", "upgrade"), ("keys", "list"), ("gc",)])
def test_a_database_of_a_newer_version_is_left_alone(call: Call, data: Path, database: Database, command: tuple[str, ...]) -> None:
    database.close()
    with sqlite3.connect(data / "accutune.db") as later:
        later.execute("UPDATE alembic_version SET version_num = '9999'")
    later.close()
    assert "was made by a newer version of Accutune (revision 9999" in call(*command).refusal


def test_garbage_is_shown_first_and_removed_when_that_is_asked_for(call: Call, settings: Settings, database: Database) -> None:
    artifacts, files = open_artifacts(settings), FileStore(database)
    blobs = [artifacts.put_bytes(bytes([number]) * 1_000_000) for number in range(3)]
    views = [
        files.add_model(name=f"m{index}", sha256=blob.sha256, size_bytes=blob.size_bytes, owner=None, facts=model_facts())[0]
        for index, blob in enumerate(blobs)
    ]
    for view in views[1:]:
        files.delete(view.id)
    part = settings.data_dir / "artifacts" / "parts" / "part-cut-off"
    part.write_bytes(bytes(500_000))
    for path in (part, *(settings.data_dir / "artifacts").glob("??/*")):
        os.utime(path, (time.time() - 30 * HOUR, time.time() - 30 * HOUR))
    young = artifacts.put_bytes(b"just sent")

    def left() -> list[bool]:
        return [*(artifacts.exists(blob.sha256) for blob in blobs), part.exists()]

    assert call("gc") == Done(0, "would remove 2 artefacts, 2.5 MB; remove them with: tuner gc --delete\n", "")
    assert call("gc", "--hours", 48) == Done(0, "would remove 0 artefacts, 0.0 MB; remove them with: tuner gc --delete\n", "")
    assert left() == [True, True, True, True]
    assert call("gc", "--delete") == Done(0, "removed 2 artefacts, 2.5 MB\n", "")
    assert left() == [True, False, False, False]
    assert artifacts.exists(young.sha256)
    assert call("gc", "--delete", "--hours", 0) == Done(0, "removed 1 artefacts, 0.0 MB\n", "")
    assert not artifacts.exists(young.sha256)
    assert artifacts.exists(blobs[0].sha256)


def test_a_negative_age_is_refused(call: Call) -> None:
    done = call("gc", "--hours", -1)
    assert (done.status, "--hours" in done.err) == (2, True)


def test_garbage_is_not_looked_for_without_tables(call: Call) -> None:
    assert "has no tables yet. Run `tuner db upgrade`." in call("gc").refusal


@pytest.mark.slow
def test_with_a_key_it_listens_everywhere_and_greets_in_one_line(call: Call, data: Path, tmp_path: Path) -> None:
    key = call("keys", "create", "anna", "--role", "viewer").out.strip()
    with RunningServer(tmp_path, host="0.0.0.0") as server:
        assert httpx.get(f"{server.url}/api/v1/jobs", timeout=10).status_code == 401
        assert httpx.get(f"{server.url}/api/v1/jobs", headers={"Authorization": f"Bearer {key}"}, timeout=10).status_code == 200
        assert server.stop() == 0
        first = server.log().splitlines()[0]
    assert f"serving http://0.0.0.0:{server.port}; data in {data}; database sqlite:///{data}/accutune.db; callers need an API key" in first


def state_of(data: Path, job_id: str) -> JobState:
    database = Database(sqlite_url(data / "accutune.db"))
    try:
        return JobStore(database).row_state(job_id)
    finally:
        database.close()


@pytest.mark.slow
def test_told_to_end_it_leaves_the_job_for_the_next_start(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        job = slow_job(tmp_path, trials=3, hidden=256, rows=10_000).model_dump(mode="json", exclude_none=True)
        job_id = server.submit(job)
        server.wait(job_id, "running")
        with httpx.stream("GET", f"{server.url}/api/v1/jobs/{job_id}/events", timeout=60) as following:
            lines = following.iter_lines()
            while "trial" not in next(lines):
                continue
            assert server.stop() == 0
        assert server.gone() == []
        assert state_of(tmp_path / "data", job_id) == JobState.INTERRUPTED
        server.start()
        server.wait(job_id, "succeeded")
        assert [trial["number"] for trial in server.get(f"/jobs/{job_id}/trials")["items"]] == [0, 1, 2]


@pytest.mark.slow
def test_told_to_end_it_does_not_wait_for_what_the_gate_looks_at(tmp_path: Path) -> None:
    job = slow_job(tmp_path, trials=3, hidden=32, rows=100)
    with RunningServer(tmp_path) as server:
        server.upload("models", Path(job.model))
        (gate,) = [process for process in server.family() if "tuner.gate" in " ".join(process.cmdline())]
        gate.send_signal(signal.SIGSTOP)
        headers = {"Content-Type": "application/octet-stream"}
        content = Path(job.data.validation.file).read_bytes()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.post, f"{server.url}/api/v1/datasets?name=d", content=content, headers=headers, timeout=60)
            wait([answer], timeout=1)
            assert not answer.done()
            assert server.stop() == 0
            assert answer.result().status_code == 503
        assert server.gone() == []
        assert not psutil.pid_exists(gate.pid) or gate.status() == psutil.STATUS_ZOMBIE
