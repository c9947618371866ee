"""What a server says of itself: figures that can be checked elsewhere, and nothing that a viewer should not know."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from service import Caller, leave, opened, started

import tuner
from search_spaces.capability import load_target
from server.api.services import Services
from server.api.system import RUNTIME, SystemView, kind_of_store, machine_of
from server.settings import load_settings
from tuner.store import JobState


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with opened(tmp_path, anonymous=False) as services:
        yield services


@pytest.fixture
def api(services: Services) -> Caller:
    return Caller(services).with_key("submitter")


def asked(caller: Caller) -> SystemView:
    answer = caller.get("/system")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return SystemView.model_validate_json(answer.content)


def test_the_versions_and_the_machine_are_those_that_run(api: Caller) -> None:
    view = asked(api)
    assert (view.version, view.versions["onnxruntime"]) == (tuner.__version__, version("onnxruntime"))
    assert view.versions["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert (view.machine.cores, view.machine.memory_bytes) == (os.cpu_count(), psutil.virtual_memory().total)
    assert 0 < view.machine.memory_free_bytes < view.machine.memory_bytes
    assert view.machine.kind in {processor.name for processor in load_target(view.runtime).processors}


def test_a_processor_is_told_by_the_features_that_the_runtime_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.system._processor", lambda: ("Mill 9000", frozenset({"fpu", "avx2", "sse"})))
    found = machine_of(load_target(RUNTIME))
    assert (found.processor, found.kind, found.features) == ("Mill 9000", "x86 without VNNI", ("avx2",))
    assert found.warning is not None
    assert found.accelerated == ("u8/u8", "u8/s8")


def test_the_queue_and_the_files_are_counted(services: Services, api: Caller) -> None:
    empty = asked(api)
    assert (set(empty.queue.jobs.values()), empty.queue.oldest_queued) == ({0}, None)
    job_id = api.submit()
    api.submit(name="another")
    leave(services, job_id, "best.onnx", b"12345")
    started(services)
    view = asked(api)
    assert view.queue.jobs == dict.fromkeys(JobState, 0) | {JobState.RUNNING: 1, JobState.QUEUED: 1}
    assert view.queue.oldest_queued is not None
    kept = view.storage
    assert (kept.models.files, kept.models.size_bytes) == (1, len(b"a model"))
    assert (kept.datasets.files, kept.datasets.size_bytes) == (1, len(b"some data"))
    assert (kept.artifacts.files, kept.artifacts.size_bytes) == (1, 5)
    assert 0 < kept.disk_free_bytes < kept.disk_bytes


def test_the_limits_are_the_settings(tmp_path: Path) -> None:
    with opened(tmp_path, jobs=3, parallel=2, max_stored_gb=1.5, requests_per_minute=90) as services:
        limits = asked(Caller(services)).limits
    assert (limits.jobs, limits.parallel, limits.max_stored_gb, limits.requests_per_minute) == (3, 2, 1.5, 90)
    assert limits.max_upload_gb == load_settings().max_upload_gb


@pytest.mark.parametrize(
    ("url", "kind"),
    [(None, "folder"), ("/srv/artefacts", "folder"), ("file:///srv/artefacts", "folder"), ("s3://user:secret@host/bucket", "s3")],
)
def test_of_where_artefacts_lie_only_the_kind_is_told(url: str | None, kind: str) -> None:
    assert kind_of_store(url) == kind


def test_a_viewer_reads_it_and_learns_no_path_and_no_address(tmp_path: Path) -> None:
    secrets: dict[str, Any] = {
        "database_url": "postgresql+psycopg://user:secret@inner.example/db",
        "artifacts_url": "s3://inner.example/bucket",
    }
    with opened(tmp_path, anonymous=False, **secrets) as services:
        text = Caller(services).with_key("viewer").get("/system").text
        assert Caller(services).get("/system").status_code == 401
    assert [word for word in (str(tmp_path), "secret", "inner.example", "bucket", "/tmp", str(Path.cwd())) if word in text] == []


def test_no_runtime_is_loaded_for_it() -> None:
    code = "import sys, server.api.system as s; s._versions(); s._processor(); print('onnxruntime' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"
