"""A process that stands still in the middle of a transaction, as one does on a machine that is suspended or lost."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import update
from store_samples import add_job

from server.store import engines
from server.store.database import Database, StorageBusy
from server.store.jobs import JobStore
from server.store.models import JobRow


def test_a_stalled_transaction_does_not_keep_a_job_from_the_others(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "IDLE_SECONDS", 1)
    stalled, other = Database(postgres_url), Database(postgres_url)
    stalled.upgrade()
    jobs = JobStore(other)
    add_job(jobs, "j1")
    with pytest.raises(StorageBusy, match=r"stalling failed: .* This process stood still in the middle of it: try again\."):
        with stalled.write("stalling") as connection:
            connection.execute(update(JobRow).values(name="stalled"))
            assert jobs.claim("other", 30) is None
            claim, deadline = None, time.monotonic() + 30
            while claim is None and time.monotonic() < deadline:
                claim = jobs.claim("other", 30)
                time.sleep(0.05)
            assert claim is not None
            connection.execute(update(JobRow).values(name="too late"))
    assert jobs.view("j1").name == "job"
    stalled.close()
    other.close()
