"""Events and downloads of the client over connections that break, and everything over real sockets."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.fake_service import KEY, STEPS, URL, Cut, FakeService, one, problem, result, sha, stream
from tests.tiny_jobs import tiny_job
from tuner.client import Client, NotFound, ServiceError, Unavailable
from tuner.errors import InputError
from tuner.job import JobSpec
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


# Events


def test_events_come_in_order_until_the_job_has_ended(service: FakeService, client: Client, spec: JobSpec) -> None:
    told = service.served(spec, *STEPS)
    assert list(client.events("job-0")) == told
    assert list(client.events("job-0", after=4)) == told[4:]
    assert list(client.events("job-0", after=6)) == []
    assert service.pauses == []


def test_a_stream_that_breaks_goes_on_without_loss_or_repetition(service: FakeService, client: Client, spec: JobSpec) -> None:
    told = service.served(spec, *STEPS)
    whole = [one(event) for event in told]
    service.next = [
        httpx.Response(200, stream=Cut(whole[0], whole[1], whole[2][:-9])),
        httpx.Response(200, content=whole[2]),
        httpx.ConnectError("refused"),
        problem(503, "starting"),
        # Longer ago than was asked for, and then less than everything.
        httpx.Response(200, content=whole[1] + whole[2] + whole[3]),
    ]
    assert list(client.events("job-0")) == told
    asked = [request.headers["last-event-id"] for request in service.requests]
    assert asked == ["0", "2", "3", "3", "3", "4", "6"]
    assert service.pauses == [0.25, 0.25, 0.5, 1.0, 0.25]


def test_a_gap_in_the_stream_is_asked_for_again(service: FakeService, client: Client, spec: JobSpec) -> None:
    told = service.served(spec, *STEPS)
    service.next = [httpx.Response(200, content=stream([told[0], told[2]]))]
    assert list(client.events("job-0")) == told
    service.next = [httpx.Response(200, content=stream(told[2:]))] * 4
    with service.client(retries=1) as hasty, pytest.raises(Unavailable) as caught:
        list(hasty.events("job-0"))
    assert str(caught.value) == f"{URL} left out the events of job 'job-0' between 0 and 3"


def test_a_job_that_was_resumed_does_not_end_at_its_first_end(service: FakeService, client: Client, spec: JobSpec) -> None:
    told = service.served(spec, QUEUED, CANCELLED, QUEUED, RUNNING, SUCCEEDED)
    service.next = [httpx.Response(200, content=stream(told[:2]))]
    assert list(client.events("job-0")) == told


def test_a_server_that_keeps_the_stream_open_does_not_hold_the_client(service: FakeService, client: Client, spec: JobSpec) -> None:
    told = service.served(spec, *STEPS)
    service.next = [httpx.Response(200, stream=Cut(stream(told), b": keep-alive\n\n", b": keep-alive\n\n"))]
    assert list(client.events("job-0")) == told
    assert len(service.seen) == 1


def test_watching_gives_up_where_the_server_stays_away(service: FakeService, client: Client, spec: JobSpec) -> None:
    told = service.served(spec, *STEPS, state=RUNNING)
    service.next = [httpx.Response(200, content=stream(told[:2])), *[httpx.ConnectError("refused")] * 20]
    found = client.events("job-0")
    assert [next(found), next(found)] == told[:2]
    with pytest.raises(Unavailable, match="nothing answers at"):
        next(found)
    assert service.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]


def test_watching_a_job_that_is_not_there(client: Client) -> None:
    with pytest.raises(NotFound, match="there is no job 'job-9'; GET /api/v1/jobs lists them"):
        list(client.events("job-9"))


def test_wait_gives_the_finished_job(service: FakeService, client: Client, spec: JobSpec) -> None:
    service.served(spec, *STEPS)
    service.jobs["job-0"] = service.jobs["job-0"].model_copy(update={"feasible": True, "result": result("job-0", True)})
    seen: list[int] = []
    assert client.wait("job-0", lambda event: seen.append(event.seq)).result == result("job-0", True)
    assert seen == [1, 2, 3, 4, 5, 6]


# Downloads


@pytest.fixture
def model(service: FakeService, spec: JobSpec) -> bytes:
    service.add("job-0", SUCCEEDED, spec)
    data = bytes(range(256)) * 300
    service.artifacts = {"best": data, "pareto/3.onnx": b"three"}
    return data


def test_a_download_goes_on_where_it_broke_off(service: FakeService, client: Client, model: bytes, tmp_path: Path) -> None:
    etag = {"ETag": f'"{sha(model)}"'}
    service.next = [httpx.Response(200, stream=Cut(model[:1000], model[1000:3000]), headers=etag)]
    target = tmp_path / "new" / "best.onnx"
    assert client.best("job-0", target) == target
    assert target.read_bytes() == model
    assert [path.name for path in target.parent.iterdir()] == ["best.onnx"]
    assert (service.requests[1].headers["range"], service.requests[1].headers["if-range"]) == ("bytes=3000-", etag["ETag"])
    assert service.pauses == [0.25]


def test_a_download_begins_anew_where_the_file_has_changed(service: FakeService, client: Client, model: bytes, tmp_path: Path) -> None:
    service.next = [
        httpx.Response(200, stream=Cut(b"older" * 1000), headers={"ETag": f'"{sha(b"older" * 2000)}"'}),
        httpx.Response(200, stream=Cut(b"unknown"), headers={"ETag": 'W/"weak"'}),
    ]
    client.download("job-0", "best", tmp_path / "best.onnx")
    assert (tmp_path / "best.onnx").read_bytes() == model
    assert "range" not in service.requests[2].headers


@pytest.mark.parametrize("header", ["ETag", "X-Content-SHA256", None])
@pytest.mark.usefixtures("model")
def test_a_damaged_download_leaves_what_was_there(service: FakeService, client: Client, tmp_path: Path, header: str | None) -> None:
    target = tmp_path / "three.onnx"
    target.write_bytes(b"mine")
    wanted = sha(b"three")
    headers = {header: f'"{wanted}"' if header == "ETag" else wanted} if header else {}
    service.next = [httpx.Response(200, content=b"thre3", headers=headers)]
    with pytest.raises(ServiceError) as caught:
        client.download("job-0", "pareto/3.onnx", target)
    where = f"{URL}/jobs/job-0/artifacts/pareto/3.onnx"
    assert str(caught.value) == f"{where} came damaged: its SHA-256 is {sha(b'thre3')}, not {wanted}; try again"
    assert target.read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"three.onnx", "model.onnx", "data.npz"}
    assert client.download("job-0", "pareto/3.onnx", target).read_bytes() == b"three"


def test_another_part_than_was_asked_for_is_not_taken(service: FakeService, client: Client, model: bytes, tmp_path: Path) -> None:
    etag = {"ETag": f'"{sha(model)}"'}
    service.next = [
        httpx.Response(200, stream=Cut(model[:10]), headers=etag),
        httpx.Response(206, content=model[20:], headers=etag | {"Content-Range": f"bytes 20-{len(model) - 1}/{len(model)}"}),
    ]
    with pytest.raises(ServiceError, match="answered another part of the file than was asked for"):
        client.best("job-0", tmp_path / "best.onnx")


@pytest.mark.usefixtures("model")
def test_what_is_no_target_or_no_artefact(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give the name of the file to write"):
        client.best("job-0", tmp_path)
    with pytest.raises(InputError, match=r"'\.\./\.\./keys' is no name of an artefact"):
        client.download("job-0", "../../keys", tmp_path / "x")
    with pytest.raises(NotFound, match=r"the job has no artifacts/other\.onnx"):
        client.download("job-0", "other.onnx", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# Real sockets


class Handler(BaseHTTPRequestHandler):
    """Hands requests to the fake service. The first answer to each path below /jobs is cut off in the middle."""

    service: FakeService
    cut: set[str]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        request = httpx.Request(self.command, f"http://here{self.path}", headers=dict(self.headers), content=body)
        response = self.service(request)
        broken = "/jobs/" in self.path and self.path not in self.cut
        self.cut.add(self.path)
        self.send_response(response.status_code)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.content[: len(response.content) // 2] if broken else response.content)

    do_GET = do_POST = _serve

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    handler = type("Bound", (Handler,), {"service": service, "cut": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_over_real_connections_that_break(
    service: FakeService, address: str, spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(address, KEY, sleep=service.pauses.append) as client:
        job = client.submit_files(spec)
        told = service.served(spec, *STEPS)
        data = bytes(range(256)) * 1000
        service.artifacts = {"best": data}
        assert list(client.events(job.id)) == told
        assert client.wait(job.id).state == SUCCEEDED
        assert client.best(job.id, tmp_path / "best.onnx").read_bytes() == data
    assert any(request.headers.get("range") == "bytes=128000-" for request in service.requests)
    assert (tmp_path / "model.onnx").read_bytes() == next(r.content for r in service.requests if r.method == "POST")


def test_a_port_where_nobody_listens() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as free:
        port = free.server_port
    with Client(f"http://127.0.0.1:{port}", retries=0) as client, pytest.raises(Unavailable) as caught:
        client.job("job-0")
    assert re.match(
        rf"nothing answers at http://127\.0\.0\.1:{port} \(.*refused\); start a server there with `tuner serve`", str(caught.value)
    )
