from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import fake_calls

from tuner.job import Constraint, DataRef, DataSpec, JobSpec

SCRIPT = """
import resource, sys
from tuner.limits import limit_files, limit_memory
limit_files(0.001, 64)
limit_files(1.0, 1000)
limit_memory(0.25)
print(*(resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)))
try:
    open(sys.argv[1], "wb").write(bytes(2**21))
except OSError as error:
    print(error.errno)
try:
    bytearray(2**29)
except MemoryError:
    print("no memory")
"""


def test_limits_hold_and_cannot_be_raised_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "file")], capture_output=True, text=True, check=True)
    bytes_, said = int(0.001 * 2**30), done.stdout.splitlines()
    assert said == [f"({bytes_}, {bytes_}) (0, 0) (64, 64)", "27", "no memory"]
    assert (tmp_path / "file").stat().st_size <= bytes_
    assert resource.getrlimit(resource.RLIMIT_FSIZE) != (bytes_, bytes_)


def test_a_process_whose_parent_went_before_it_could_look_ends() -> None:
    script = "import time; from tuner.limits import end_with_parent; end_with_parent(2**30); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 1


def test_a_worker_does_not_work_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    data = DataSpec(validation=DataRef(file="data.npz"))
    job = JobSpec(model="model.onnx", data=data, constraints=(Constraint(metric="top1", max_drop=0.01),))
    settings = {"job": job.model_dump(mode="json"), "cache": str(tmp_path), "memory_gb": None, "file_gb": 1.0, "parent": 2**30}
    requests = [settings, {"call": "sleep", "args": {"seconds": 60}}]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([sys.executable, fake_calls.__file__], input=lines, text=True, capture_output=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (1, "")
