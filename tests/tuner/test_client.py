"""Uploads, jobs and lists of the client, against a service in memory that fails when told to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

import tuner
from tests.fake_service import PREVIEW, FakeService, broken_trial, problem, sha, trial
from tests.tiny_jobs import tiny_job
from tuner.client import Client, Conflict
from tuner.errors import DataError, InputError
from tuner.job import DataRef, DataSpec, JobSpec
from tuner.store import JobState

QUEUED, RUNNING, CANCELLED, SUCCEEDED = JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED, JobState.SUCCEEDED


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Client:
    return service.client()


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return tiny_job(tmp_path)


def test_the_client_needs_neither_torch_nor_a_runtime() -> None:
    heavy = ("torch", "onnxruntime", "onnx", "numpy", "optuna", "sqlalchemy")
    code = f"import sys, tuner; tuner.Client; sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert tuner.Client is Client
    with pytest.raises(AttributeError, match="has no attribute 'client_'"):
        _ = tuner.client_


# Uploads


def test_an_upload_is_sent_once_for_the_same_bytes(service: FakeService, client: Client, tmp_path: Path) -> None:
    data = bytes(range(256)) * 12_000
    (tmp_path / "a.onnx").write_bytes(data)
    (tmp_path / "b.onnx").write_bytes(data)
    told: list[tuple[int, int]] = []
    first = client.upload_model(tmp_path / "a.onnx", progress=lambda done, total: told.append((done, total)))
    assert (first.name, first.size_bytes, first.sha256) == ("a.onnx", len(data), sha(data))
    assert told == [(1 << 20, len(data)), (2 << 20, len(data)), (len(data), len(data))]
    assert client.upload_model(tmp_path / "b.onnx", progress=lambda done, total: told.append((done, total))) == first
    assert told[3:] == [(len(data), len(data))]
    assert service.seen == ["GET /models", "POST /models", "GET /models"]
    request = service.requests[1]
    assert request.headers["content-length"] == str(len(data))
    assert "transfer-encoding" not in request.headers


def test_an_upload_is_tried_again_from_its_beginning(service: FakeService, client: Client, tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"rows")
    service.next = [None, httpx.WriteError("broken pipe")]
    assert client.upload_dataset(str(tmp_path / "d.npz"), name="other").name == "other"
    assert [request.content for request in service.requests] == [b"", b"rows", b"rows"]


def test_a_file_that_changes_meanwhile_is_refused(service: FakeService, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def change(_: httpx.Request, to: bytes) -> httpx.Response:
        path.write_bytes(to)
        return httpx.Response(200, text='{"items": []}')

    for after in (b"shor", b"longer and other", b"other"):
        path.write_bytes(b"bytes")
        service.next = [lambda request, to=after: change(request, to)]  # type: ignore[misc]
        with pytest.raises(DataError) as caught:
            client.upload_model(path)
        assert str(caught.value) == f"{path} changed while it was being sent; send it again"


def test_a_folder_of_arrays_is_refused_with_the_way_out_that_works(service: FakeService, client: Client, spec: JobSpec) -> None:
    folder = Path(spec.model).parent / "arrays"
    folder.mkdir()
    np.save(folder / "x.npy", np.arange(3))
    job = spec.model_copy(update={"data": DataSpec(validation=DataRef(file=str(folder)))})
    with pytest.raises(DataError, match=f"{re.escape(str(folder))} is a folder, and a server takes single files") as caught:
        client.submit_files(job)
    assert service.seen == []
    code = str(caught.value).partition("into one: ")[2].replace("data.npz", str(folder.parent / "one.npz"))
    subprocess.run([sys.executable, "-c", f"import numpy, pathlib; {code}"], check=True)
    assert np.load(folder.parent / "one.npz")["x"].tolist() == [0, 1, 2]


def test_a_missing_file_is_named_before_anything_is_sent(service: FakeService, client: Client, spec: JobSpec) -> None:
    with pytest.raises(DataError) as caught:
        client.submit_files(spec.model_copy(update={"model": "gone.onnx"}))
    assert str(caught.value) == "gone.onnx cannot be read (No such file or directory); check the path and its permissions"
    assert service.seen == []


# Jobs


def test_a_job_is_submitted_with_its_files(service: FakeService, client: Client, spec: JobSpec) -> None:
    told: list[tuple[int, int]] = []
    job = client.submit_files(spec, progress=lambda done, total: told.append((done, total)))
    assert service.seen == ["GET /models", "POST /models", "GET /datasets", "POST /datasets", "POST /jobs"]
    (model,), (data,) = (list(known.values()) for known in service.files.values())
    assert job.spec.model == model.id
    assert {ref.file for ref in job.spec.data.roles().values()} == {data.id}
    assert job.spec == spec.model_copy(update={"model": model.id, "data": job.spec.data})
    assert [ref.rows for ref in job.spec.data.roles().values()] == [ref.rows for ref in spec.data.roles().values()]
    total = model.size_bytes + data.size_bytes
    assert told == [(model.size_bytes, total), (total, total)]


def test_a_job_file_is_submitted_by_its_path(service: FakeService, client: Client, spec: JobSpec, tmp_path: Path) -> None:
    raw = spec.model_dump(mode="json", exclude_none=True) | {"model": "model.onnx"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    job = client.submit(tmp_path / "job.yaml")
    assert job.spec.model == next(iter(service.files["models"].values())).id


def test_a_job_is_checked_with_its_files_and_not_submitted(service: FakeService, client: Client, spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    assert client.check(tmp_path / "job.yaml") == PREVIEW
    assert service.seen == ["GET /models", "POST /models", "GET /datasets", "POST /datasets", "POST /checks"]
    service.next = [httpx.ReadError("reset")]
    assert client.check(spec).seconds == 8.0
    assert JobSpec.model_validate_json(service.requests[-1].content) == spec
    assert service.jobs == {}


def test_submitting_is_repeated_with_the_same_key(service: FakeService, client: Client, spec: JobSpec) -> None:
    def answer_gets_lost(request: httpx.Request) -> httpx.Response:
        service._answer(request, "/jobs")
        raise httpx.ReadError("reset")

    service.next = [answer_gets_lost]
    first = client.submit(spec)
    assert list(service.jobs) == [first.id]
    assert client.submit(spec).id != first.id
    assert client.submit(spec, "mine").id == client.submit(spec, "mine").id
    assert len(service.jobs) == 3


def test_lists_are_read_page_by_page(service: FakeService, client: Client, spec: JobSpec) -> None:
    for number in range(5):
        service.add(f"job-{number}", RUNNING if number % 2 else QUEUED, spec)
    jobs = client.jobs()
    assert next(jobs).id == "job-0"
    assert len(service.seen) == 1
    assert [job.id for job in jobs] == ["job-1", "job-2", "job-3", "job-4"]
    assert [job.id for job in client.jobs(state=RUNNING)] == ["job-1", "job-3"]
    assert "model" not in service.requests[-1].url.params


def test_cancel_and_resume_tell_the_new_state(service: FakeService, client: Client, spec: JobSpec) -> None:
    service.add("job-0", RUNNING, spec)
    assert client.cancel("job-0").state == CANCELLED
    assert client.resume("job-0").state == QUEUED
    service.next = [problem(409, "job 'job-0' has succeeded; there is nothing to cancel")]
    with pytest.raises(Conflict, match="nothing to cancel"):
        client.cancel("job-0")


def test_trials_are_asked_for_in_their_order(service: FakeService, client: Client, spec: JobSpec) -> None:
    service.add("job-0", RUNNING, spec)
    service.trials = [trial(1), broken_trial(0)]
    assert [found.number for found in client.trials("job-0", sort="speedup", descending=True, feasible=True)] == [1, 0]
    asked = dict(service.requests[-1].url.params)
    assert asked == {"sort": "speedup", "order": "desc", "feasible": "true", "limit": "100"}


@pytest.mark.parametrize("job_id", ["..", "../keys", "a/b", "", "a?b", "a" * 65])
def test_an_id_leads_nowhere_else(service: FakeService, client: Client, job_id: str) -> None:
    for call in (client.job, client.cancel, client.delete, lambda name: list(client.events(name)), client.model, client.delete_dataset):
        with pytest.raises(InputError, match="an id is made of letters, digits and '-', got"):
            call(job_id)
    assert service.seen == []


def test_fields_of_a_newer_server_are_passed_over(service: FakeService, client: Client, spec: JobSpec) -> None:
    job = service.add("job-0", RUNNING, spec)
    text = job.model_dump_json().replace('"version":1', '"version":1,"novelty":[2]')
    service.next = [httpx.Response(200, text=text)]
    assert client.job("job-0") == job
