from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_calls
import pytest

from tuner.errors import (
    AccutuneError,
    DataError,
    InputError,
    JobCancelled,
    JobError,
    ModelError,
    PlanError,
    StorageError,
    TrialError,
    WrongKind,
)
from tuner.executor import LocalExecutor, harmless
from tuner.job import Budget, Constraint, DataRef, DataSpec, JobSpec

COMMAND = (sys.executable, fake_calls.__file__)
JOB = JobSpec(
    model="model.onnx",
    data=DataSpec(validation=DataRef(file="data.npz")),
    constraints=(Constraint(metric="top1", max_drop=0.01),),
    seed=42,
)


def make(cache: Path, **budget: Any) -> LocalExecutor:
    return LocalExecutor(JOB.model_copy(update={"budget": Budget(**budget)}), cache, COMMAND)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def executor(cache: Path) -> Iterator[LocalExecutor]:
    """One executor for all tests that leave it usable, which is what it promises to be after every error."""
    executor = make(cache)
    yield executor
    executor.close()


def call(executor: LocalExecutor, name: str, timeout: float = 60, **arguments: Any) -> Any:
    return executor.call(name, arguments, timeout=timeout)


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_worker_gets_the_job_and_stays_warm(executor: LocalExecutor) -> None:
    first, second = call(executor, "count"), call(executor, "count")
    assert first["seed"] == 42
    assert second == {**first, "calls": first["calls"] + 1}


def test_progress_is_passed_on(executor: LocalExecutor) -> None:
    seen: list[tuple[int, int]] = []
    assert executor.call("steps", {"total": 3}, timeout=60, progress=lambda done, total: seen.append((done, total))) == "done"
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_libraries_print_goes_to_the_log(executor: LocalExecutor, cache: Path) -> None:
    assert call(executor, "chatter") == "heard"
    log = (cache / "worker-0.log").read_text()
    assert all(words in log for words in ("a library on standard output", "and native code", "and a child"))


def test_an_error_of_a_trial_keeps_its_kind_and_step(executor: LocalExecutor) -> None:
    pid = call(executor, "count")["pid"]
    with pytest.raises(TrialError, match=r"^it broke$") as caught:
        call(executor, "fail_at", step="accuracy")
    assert (caught.value.kind, caught.value.step) == ("ValueError", "accuracy")
    with pytest.raises(TrialError, match=r"^by nought$") as other:
        call(executor, "fail", message="by nought")
    assert (other.value.kind, other.value.step) == ("ZeroDivisionError", "fail")
    with pytest.raises(TrialError, match="not JSON serializable"):
        call(executor, "unsayable")
    assert call(executor, "count")["pid"] == pid


@pytest.mark.parametrize("kind", [JobError, ModelError, DataError, PlanError, StorageError, WrongKind, InputError])
def test_input_errors_come_back_as_what_they_were(executor: LocalExecutor, kind: type[InputError]) -> None:
    with pytest.raises(kind, match=r"^it cannot be used$") as caught:
        call(executor, "refuse", kind=kind.__name__, field="data.validation")
    assert type(caught.value) is kind
    assert caught.value.field == "data.validation"


def test_an_unknown_name_comes_back_with_its_suggestion(executor: LocalExecutor) -> None:
    with pytest.raises(JobError, match=r"unknown metric 'top-1'\. Did you mean 'top1'") as caught:
        call(executor, "misname")
    assert caught.value.field == "metrics"


def test_a_worker_that_leaves_costs_one_call(executor: LocalExecutor) -> None:
    pid = call(executor, "count")["pid"]
    with pytest.raises(TrialError, match=r"^the worker ended with exit status 3; its last words: Segmentation fault$") as caught:
        call(executor, "leave", code=3, words="Aborting\nSegmentation fault\n")
    assert (caught.value.kind, caught.value.step) == ("WorkerDied", "leave")
    after = call(executor, "count")
    assert (after["calls"], after["pid"] != pid) == (1, True)
    with pytest.raises(TrialError, match=r"^the worker ended with exit status 4$"):
        call(executor, "leave", code=4)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (11, "the worker ended by signal 11 (SIGSEGV)"),
        (9, "the worker ended by signal 9 (SIGKILL); the system may have run out of memory"),
    ],
)
def test_a_worker_that_is_killed_says_by_what(executor: LocalExecutor, number: int, text: str) -> None:
    with pytest.raises(TrialError) as caught:
        call(executor, "die", number=number)
    assert str(caught.value).startswith(text)
    assert caught.value.kind == "WorkerDied"
    assert call(executor, "count")["calls"] == 1


def test_a_call_that_takes_too_long_is_ended_with_all_it_started(executor: LocalExecutor, cache: Path) -> None:
    call(executor, "count")
    with pytest.raises(TrialError, match=r"^'with_child' took longer than 1 s and was ended$") as caught:
        call(executor, "with_child", timeout=1.0)
    assert (caught.value.kind, caught.value.step) == ("Timeout", "with_child")
    assert until(lambda: not alive(int((cache / "grandchild").read_text())))
    assert call(executor, "count")["calls"] == 1


def test_an_observer_that_breaks_does_not_shift_the_replies(executor: LocalExecutor) -> None:
    def breaks(done: int, total: int) -> None:
        raise KeyError(done + total)

    with pytest.raises(KeyError):
        executor.call("steps", {"total": 2}, timeout=60, progress=breaks)
    assert call(executor, "count")["calls"] == 1


def test_a_worker_over_its_memory_limit_says_so_and_lives_on(tmp_path: Path) -> None:
    executor = make(tmp_path, memory_gb=0.5)
    try:
        pid = call(executor, "count")["pid"]
        assert call(executor, "allocate", gigabytes=0.1) == int(0.1 * 2**30)
        with pytest.raises(TrialError) as caught:
            call(executor, "allocate", gigabytes=1.0)
        assert (caught.value.kind, caught.value.step) == ("MemoryError", "allocate")
        assert call(executor, "count")["pid"] == pid
    finally:
        executor.close()


def test_a_worker_writes_no_core_dump_and_no_file_over_its_limit(tmp_path: Path) -> None:
    executor = LocalExecutor(JOB, tmp_path, COMMAND, file_gb=0.25)
    try:
        assert call(executor, "limits") == {"file": 2**28, "core": 0}
        call(executor, "enlarge", size=2**28)
        with pytest.raises(StorageError, match=r"^enlarge failed: File too large"):
            call(executor, "enlarge", size=2**28 + 1)
    finally:
        executor.close()


def test_workers_may_write_64_gigabytes_unless_told_otherwise(executor: LocalExecutor) -> None:
    assert call(executor, "limits")["file"] == 64 * 2**30


def test_cancelling_ends_a_running_call_and_refuses_further_ones(tmp_path: Path) -> None:
    executor = make(tmp_path, parallel=2)
    found: list[AccutuneError] = []

    def sleep() -> None:
        try:
            call(executor, "sleep", seconds=60)
        except AccutuneError as error:
            found.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    asleep = tmp_path / "asleep"
    assert until(asleep.exists)
    pid = int(asleep.read_text())
    executor.cancel()
    thread.join(2)
    assert [type(error) for error in found] == [JobCancelled]
    assert not alive(pid)
    with pytest.raises(JobCancelled, match="the job was cancelled"):
        call(executor, "count")


def test_calls_run_side_by_side_in_as_many_workers_as_are_allowed(tmp_path: Path) -> None:
    executor = make(tmp_path, parallel=2)
    pids: list[int] = []

    def count() -> None:
        call(executor, "sleep", seconds=0.5)
        pids.append(call(executor, "count")["pid"])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    executor.close()
    assert len(set(pids)) == 2
    assert not any(map(alive, pids))


def test_a_worker_leaves_when_its_parent_is_gone(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tuner.executor import LocalExecutor; from tuner.job import JobSpec\n"
        "job = JobSpec.model_validate_json(sys.argv[1])\n"
        "LocalExecutor(job, Path(sys.argv[2]), (sys.executable, sys.argv[3])).call('sleep', {'seconds': 60}, timeout=60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, JOB.model_dump_json(), str(tmp_path), fake_calls.__file__], cwd=os.getcwd())
    asleep = tmp_path / "asleep"
    assert until(lambda: asleep.exists() and asleep.read_text() != "")
    worker = int(asleep.read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    assert until(lambda: not alive(worker), 5)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"writing the folder .* failed"):
        make(tmp_path / "file" / "cache")


def test_credentials_do_not_reach_what_reads_strangers_files() -> None:
    needed = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "ACCUTUNE_CACHE": "c"}
    secret = {"AWS_SECRET_ACCESS_KEY": "s", "ACCUTUNE_DATABASE_URL": "p", "ACCUTUNE_ARTIFACTS_URL": "u", "PGPASSWORD": "p"}
    assert harmless(needed | secret) == needed
