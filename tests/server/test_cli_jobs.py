"""Whole jobs on the command line, and what is left of them when they are cut off."""

from __future__ import annotations

import csv
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuner.results import JobResult

COMMAND = (sys.executable, "-c", "from server.cli import main; main()")
LONG: dict[str, Any] = {"space": "int8-full", "strategy": "random", "budget": {"trials": 5000, "seconds": 600, "threads": 1}}
"""Cut off long before its budget is spent."""

FILES = set("best.onnx best.plan.json job.json report.html result.json sensitivity.csv trials.csv trials.db cache lock".split())

WriteJob = Callable[..., Path]


def tuner(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options)
    assert "Traceback" not in done.stderr
    return done


def rows(folder: Path) -> dict[str, str]:
    """{trial: plan} of every whole row of trials.csv."""
    path = folder / "trials.csv"
    whole = path.read_text().rpartition("\n")[0] if path.is_file() else ""
    listed = [(row["number"], row["plan_digest"]) for row in csv.DictReader(whole.splitlines())]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def result(folder: Path) -> JobResult:
    return JobResult.model_validate_json((folder / "result.json").read_bytes())


def _hear_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would everything that the tests start from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A job in a process of its own, waited for until it has finished some trials."""

    def __init__(self, job: Path, folder: Path, trials: int) -> None:
        self._log = folder.with_suffix(".log")
        with self._log.open("w") as log:
            command = [*COMMAND, "run", str(job), "--out", str(folder)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_hear_ctrl_c)
        deadline = time.monotonic() + 60
        while len(rows(folder)) < trials and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.process.poll() is None, self.said
        self.workers = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self, by: signal.Signals) -> int:
        """Its exit status; its workers must be gone soon after it."""
        self.process.send_signal(by)
        status = self.process.wait(timeout=15)
        assert self.workers
        assert psutil.wait_procs(self.workers, timeout=15)[1] == []
        return status


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, job_file: WriteJob) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A small job that met its target, started in the folder of one that failed before its first trial."""
    home = tmp_path_factory.mktemp("finished")
    folder = home / "out"
    refused = tuner("run", job_file(home, metrics=["auroc"], model=str(home / "gone.onnx")), "--out", folder)
    assert refused.returncode == 2
    assert "gone.onnx cannot be read (No such file or directory); give the path of an .onnx file" in refused.stderr
    assert (folder / "trials.db").is_file()
    return tuner("run", job_file(home), "--out", folder), folder


def test_a_job_that_meets_its_target_has_status_0_and_leaves_its_files(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = finished
    assert done.returncode == 0, done.stderr
    found = result(folder)
    assert found.feasible
    assert done.stdout.startswith(found.summary)
    assert f"Files: {folder}" in done.stdout
    left = {path.name for path in folder.iterdir()}
    assert left == FILES
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    assert [name for name in left if f"`{name}" not in guide] == []
    assert len(rows(folder)) == found.trials["total"] >= 5
    assert "[" in done.stderr
    assert "trial 5/5: #4" in done.stderr


def test_a_finished_job_is_shown_again(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, folder = finished
    again = tuner("run", "--resume", folder)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert again.stderr == f"The job in {folder} is finished already.\n"
    assert JobResult.model_validate_json(tuner("run", "--resume", folder, "--json").stdout) == result(folder)


def test_a_finished_job_is_not_written_over(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = finished
    before = (folder / "result.json").read_bytes()
    refused = tuner("run", folder.parent / "job.yaml", "--out", folder)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {folder} holds a job with trials; go on with it by --resume {folder}, or choose another folder with --out\n"
    )
    assert (folder / "result.json").read_bytes() == before


def test_applying_the_best_plan_gives_the_best_model(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = finished
    again = folder / "again.onnx"
    done = tuner("apply", folder / "best.plan.json", folder.parent / "model.onnx", "-o", again)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (folder / "best.onnx").read_bytes()


def test_a_missed_target_has_status_3_and_still_a_model(tmp_path: Path, job_file: WriteJob) -> None:
    unreachable = [{"metric": "top1", "at_least": 0.999}]
    done = tuner("run", job_file(tmp_path, constraints=unreachable, budget={"trials": 1}), "--out", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stderr
    found = JobResult.model_validate_json(done.stdout)
    assert not found.feasible
    assert found.summary.startswith("Target missed")
    assert found.advice
    assert (tmp_path / "out" / "best.onnx").is_file()


@pytest.mark.slow
def test_ctrl_c_stops_at_once_and_the_job_can_be_finished(tmp_path: Path, job_file: WriteJob) -> None:
    folder = tmp_path / "out"
    running = Running(job_file(tmp_path, **LONG), folder, trials=3)
    assert running.end(signal.SIGINT) == 1
    assert f"stopped: the job was stopped; every finished trial is kept; go on with: tuner run --resume {folder}" in running.said
    assert "Traceback" not in running.said
    kept = rows(folder)
    done = tuner("run", "--resume", folder, "--finish")
    assert done.returncode in (0, 3), done.stderr
    assert kept.items() <= rows(folder).items()
    assert result(folder).stop_reason == "it was asked to finish with what there is"


@pytest.mark.slow
def test_a_killed_job_goes_on_without_losing_a_row(tmp_path: Path, job_file: WriteJob) -> None:
    folder = tmp_path / "out"
    running = Running(job_file(tmp_path, **LONG | {"budget": {"trials": 60, "seconds": 600, "threads": 1}}), folder, trials=3)
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    kept = rows(folder)
    assert not (folder / "result.json").exists()
    done = tuner("run", "--resume", folder)
    assert done.returncode in (0, 3), done.stderr
    assert kept.items() <= rows(folder).items()
    assert {str(number) for number in range(60)} <= set(rows(folder))
    assert result(folder).stop_reason == "the budget of 60 trials is spent"


@pytest.mark.slow
def test_a_full_disk_ends_the_job_and_keeps_what_it_found(tmp_path: Path, job_file: WriteJob) -> None:
    folder, full = tmp_path / "out", 1024 * 1024

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))

    stopped = tuner("run", job_file(tmp_path, **LONG), "--out", folder, preexec_fn=limit)
    assert stopped.returncode == 2
    complaint = stopped.stderr.splitlines()[-1]
    assert complaint.startswith("error: ")
    assert "go on with --resume" in complaint
    kept = rows(folder)
    assert kept
    done = tuner("run", "--resume", folder, "--finish")
    assert done.returncode in (0, 3), done.stderr
    assert kept.items() <= rows(folder).items()
    assert json.loads((folder / "result.json").read_text())["state"] == "succeeded"
