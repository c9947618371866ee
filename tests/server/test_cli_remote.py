"""The commands against a server: what they send, print and end with. The server is one in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from server.cli import main
from server.commands import remote
from tests.fake_service import KEY, STEPS, Cut, FakeService, broken_trial, events, problem, result, stream, trial
from tests.tiny_jobs import tiny_job
from tuner.client import DEFAULT_URL, Client
from tuner.job import JobSpec
from tuner.results import TrialFailure
from tuner.store import JobState
from tuner.wire import JobDetail, JobProgress

URL = "http://fake:8000"


class Done(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return tiny_job(tmp_path)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: FakeService, tmp_path: Path) -> Call:
    """`tuner` with these arguments in this process, in an empty folder, against the server in memory."""

    def connect(url: str, key: str | None) -> Client:
        return Client(url, key, sleep=service.pauses.append, transport=httpx.MockTransport(service))

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tuner", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert KEY not in said.out + said.err
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, said.out, said.err)

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ACCUTUNE_URL", URL)
    monkeypatch.setenv("ACCUTUNE_KEY", KEY)
    monkeypatch.setattr(remote, "connect", connect)
    return run


def ended(service: FakeService, job_id: str, feasible: bool) -> None:
    """The job has succeeded, and has this result."""
    changes = {"state": JobState.SUCCEEDED, "feasible": feasible, "result": result(job_id, feasible)}
    service.jobs[job_id] = service.jobs[job_id].model_copy(update=changes)


def test_the_usual_address_is_that_of_the_server() -> None:
    assert remote.LOCAL == DEFAULT_URL


def test_submit_uploads_and_prints_the_id(call: Call, service: FakeService, job_file: Callable[..., Path], tmp_path: Path) -> None:
    done = call("submit", job_file(tmp_path))
    assert done == Done(0, "job-0\n", "Watch it with: tuner watch job-0\n")
    job = service.jobs["job-0"]
    assert job.spec.model in {view.id for view in service.files["models"].values()}
    assert service.seen[-1] == "POST /jobs"
    again = call("submit", job_file(tmp_path), "--json")
    assert JobDetail.model_validate_json(again.out) == service.jobs["job-1"]
    assert [line for line in service.seen if line.startswith("POST")].count("POST /models") == 1


@pytest.mark.parametrize(("feasible", "status"), [(True, 0), (False, 3)])
def test_submit_can_wait_for_the_result(
    call: Call, service: FakeService, job_file: Callable[..., Path], tmp_path: Path, feasible: bool, status: int
) -> None:
    def finished(_: httpx.Request) -> httpx.Response:
        ended(service, "job-0", feasible)
        return httpx.Response(200, content=stream(service.events["job-0"]))

    service.events["job-0"] = events(*STEPS)
    service.next = [None, None, None, None, None, finished]
    done = call("submit", job_file(tmp_path), "--wait")
    assert done.status == status
    assert done.out.startswith(result("job-0", feasible).summary)
    assert done.out.endswith("Download the model with: tuner pull job-0\n")
    assert done.err.splitlines() == [
        "Job job-0 is queued.",
        "Looking for the best size on onnxruntime-cpu, batch 1, 1 thread, where top1 may get worse by at most 0.02.",
        "job queued",
        "job running",
        "[    3.0 s] job: checked",
        "[    4.0 s] search",
        *(
            f"[    {n + 4}.0 s] trial {n + 1}/5: #{n} met after 600 rows, drop 0.0010, 1.50×, 2.00 KiB; best "
            f"#{n} met after 600 rows, drop 0.0010, 1.50×, 2.00 KiB"
            for n in (0, 1)
        ),
        "job succeeded",
    ]


def test_watch_shows_how_a_job_failed(call: Call, service: FakeService, spec: JobSpec) -> None:
    service.served(spec, JobState.RUNNING, broken_trial(0), JobState.FAILED, state=JobState.FAILED)
    error = TrialFailure(type="DataError", message="labels hold NaN; remove those rows", step="prepare")
    service.jobs["job-0"] = service.jobs["job-0"].model_copy(update={"error": error})
    done = call("watch", "job-0")
    assert (done.status, done.out) == (1, "")
    assert "] trial 1/5: #0 failed in session: no kernel\n" in done.err
    assert done.err.splitlines()[-1] == (
        "job job-0 failed in prepare: labels hold NaN; remove those rows; its finished trials are kept; go on with: tuner resume job-0"
    )
    shown = JobDetail.model_validate_json(call("watch", "job-0", "--json").out)
    assert shown == service.jobs["job-0"]


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_stop_it(call: Call, service: FakeService, spec: JobSpec) -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    service.served(spec, *STEPS[:3], state=JobState.RUNNING)
    service.next = [None, httpx.Response(200, content=stream(service.events["job-0"])), interrupt]
    done = call("watch", "job-0", "--url", "http://other:1/")
    assert done.status == 1
    hints = "Watch it again with: tuner watch job-0 --url http://other:1   Cancel it with: tuner cancel job-0 --url http://other:1"
    assert done.err.splitlines()[-1] == f"No longer watching; job job-0 goes on. {hints}"
    assert not [line for line in service.seen if line.startswith("POST")]


def test_jobs_are_listed(call: Call, service: FakeService, spec: JobSpec) -> None:
    progress = JobProgress(phase="search", done=3, total=60, trials=3, best=trial(2))
    service.add("job-0", JobState.RUNNING, spec, progress=progress, cancel_requested=True)
    service.add("job-1", JobState.SUCCEEDED, spec, feasible=False)
    service.add("job-2", JobState.QUEUED, spec)
    done = call("jobs", "--limit", "2")
    lines = [line.split() for line in done.out.splitlines()]
    assert done.status == 0
    assert lines == [
        ["id", "name", "state", "step", "trials", "best", "created", "(UTC)"],
        ["job-0", "job", "running", "(cancelling)", "search", "3/60", "3", "1.50×,", "drop", "0.0010", "2026-11-21", "10:15"],
        ["job-1", "job", "succeeded,", "target", "missed", "0", "2026-11-21", "10:15"],
    ]
    assert done.err == "There are more than these 2; show more with --limit.\n"
    listed = json.loads(call("jobs", "--state", "queued", "--json").out)
    assert [job["id"] for job in listed] == ["job-2"]
    assert json.loads(call("jobs", "--state", "failed", "--json").out) == []
    call("jobs", "--search", "résnet %")
    assert service.requests[-1].url.params["search"] == "résnet %"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], {"sort": "number", "order": "asc"}),
        (["--sort", "speedup"], {"sort": "speedup", "order": "desc"}),
        (["--sort", "size_bytes", "--reverse", "--feasible"], {"sort": "size_bytes", "order": "desc", "feasible": "true"}),
    ],
)
def test_trials_are_listed_in_order(call: Call, service: FakeService, spec: JobSpec, options: list[str], asked: dict[str, Any]) -> None:
    service.add("job-0", JobState.RUNNING, spec)
    service.trials = [trial(0, speedup=1.23456, seconds=2.5), broken_trial(1)]
    done = call("trials", "job-0", *options)
    assert dict(service.requests[-1].url.params) == asked | {"limit": "100"}
    head, first, second = (line.split() for line in done.out.splitlines())
    assert head == "trial state met drop at most speed-up at least size_bytes seconds".split()
    assert first == ["0", "complete", "yes", "0.001", "0.004", "1.235", "2,048", "2.5"]
    assert second == ["1", "failed", "in", "session:", "no", "kernel", "0"]
    assert [row["number"] for row in json.loads(call("trials", "job-0", "--json").out)] == [0, 1]


def test_pull_fetches_the_best_and_writes_nothing_over(call: Call, service: FakeService, spec: JobSpec) -> None:
    service.add("job-0", JobState.SUCCEEDED, spec, feasible=False)
    service.artifacts = {"best": b"model" * 300, "trials/7/model": b"seven"}
    done = call("pull", "job-0")
    assert done == Done(0, "best.onnx: 1,500 bytes\n", "Note: the target was missed; this is the nearest model.\n")
    assert Path("best.onnx").read_bytes() == b"model" * 300
    service.artifacts["best"] = b"new"
    refused = call("pull", "job-0")
    assert refused == Done(2, "", "error: best.onnx is there already; give another name with -o, or replace it with --force\n")
    assert call("pull", "job-0", "--force").out == "best.onnx: 3 bytes\n"
    assert call("pull", "job-0", "--trial", "7").out == "trial-7.onnx: 5 bytes\n"
    assert call("pull", "job-0", "--trial", "7", "-o", "in/it.onnx").out == "in/it.onnx: 5 bytes\n"
    assert Path("in/it.onnx").read_bytes() == b"seven"


def test_cancel_and_resume(call: Call, service: FakeService, spec: JobSpec) -> None:
    service.add("job-0", JobState.RUNNING, spec)
    assert call("cancel", "job-0") == Done(0, "job job-0 is cancelled\n", "Go on with it with: tuner resume job-0\n")
    assert call("resume", "job-0") == Done(0, "job job-0 is queued\n", "Watch it with: tuner watch job-0\n")
    service.next = [problem(409, "job 'job-0' has succeeded; there is nothing to cancel")]
    done = call("cancel", "job-0")
    assert done.status == 1
    assert "failed: job 'job-0' has succeeded; there is nothing to cancel" in done.err


@pytest.mark.parametrize("command", ["watch", "trials", "pull", "cancel", "resume"])
def test_an_unknown_job_is_bad_input(call: Call, command: str) -> None:
    done = call(command, "job-9")
    assert done == Done(2, "", "error: there is no job 'job-9'; GET /api/v1/jobs lists them\n")
    assert list(Path().iterdir()) == []


def test_a_wrong_key_is_bad_input(call: Call) -> None:
    assert call("jobs", "--key", "acc_wrong") == Done(2, "", "error: no API key was given\n")


def test_a_job_that_cannot_be_read_or_is_refused(call: Call, service: FakeService, job_file: Callable[..., Path], tmp_path: Path) -> None:
    assert call("submit", "gone.yaml").err.startswith("error: the job file gone.yaml cannot be read (No such file or directory)")
    service.next = [None] * 4 + [problem(422, "unknown space 'int9'. Did you mean 'int8'?")]  # type: ignore[list-item]
    assert call("submit", job_file(tmp_path)) == Done(2, "", "error: unknown space 'int9'. Did you mean 'int8'?\n")


def test_no_server_is_an_error_with_the_way_out(call: Call, service: FakeService) -> None:
    service.next = [httpx.ConnectError("Connection refused")] * 4
    done = call("jobs", "--url", "http://nowhere:1")
    assert done.status == 1
    assert "nothing answers at http://nowhere:1 (Connection refused); start a server there with `tuner serve`" in done.err
    assert call("jobs", "--url", "nowhere").err == "error: the server's URL must look like http://127.0.0.1:8000, got 'nowhere'\n"


def test_watching_outlives_a_connection(call: Call, service: FakeService, spec: JobSpec) -> None:
    service.served(spec, *STEPS)
    ended(service, "job-0", True)
    service.next = [None, httpx.Response(200, stream=Cut(stream(service.events["job-0"][:4])))]
    done = call("watch", "job-0")
    assert done.status == 0
    assert done.err.count("trial 1/5") == done.err.count("trial 2/5") == 1
