"""An open, empty database: a SQLite file, and a schema of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_samples import Ticking

from server.store.database import Database, sqlite_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = sqlite_url(tmp_path / "s.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    yield from opened(url)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    yield from opened(sqlite_url(tmp_path / "s.db"))


def opened(url: str) -> Iterator[Database]:
    made = Database(url, Ticking())
    made.upgrade()
    yield made
    made.close()
