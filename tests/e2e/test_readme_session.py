"""README's session with the service, run as it stands: curl and jq against a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from running_server import RunningServer
from tiny_jobs import FEATURES, dense, dense_data, save_data

from tests.test_docs import README, blocks
from tuner import demo

SERVER = "http://127.0.0.1:8000"
MISSING = [name for name in ("bash", "curl", "jq") if shutil.which(name) is None]


def session() -> str:
    """The block under "As a service"."""
    (text,) = blocks(README[README.index("\n## As a service\n") :], "sh")
    return text


def prepare(folder: Path) -> None:
    """Files of the demo's names, of a model that is faster to tune."""
    model = dense()
    (folder / "digits.onnx").write_bytes(model)
    for seed, (name, rows) in enumerate((("train", 512), ("validation", 400), ("holdout", 600))):
        save_data(folder / f"{name}.npz", dense_data(model, rows, seed=seed))


def test_the_session_names_the_files_of_the_demo() -> None:
    named = set(re.findall(r"(?:models|datasets) (\S+?\.\w+)", session()))
    assert named == {"digits.onnx", *(f"{name}.npz" for name in demo.SPLITS)}
    assert "model: digits.onnx" in demo.JOB
    (first, last) = (int(number) for number in re.findall(r'"rows": \[(\d+), (\d+)\]', session())[0])
    assert 0 <= first < last <= demo.SPLITS["train"][1] - demo.SPLITS["train"][0]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"the session needs {', '.join(MISSING)}")
def test_the_session_works_as_it_stands(tmp_path: Path) -> None:
    here = tmp_path / "demo"
    here.mkdir()
    prepare(here)
    assert session().count(SERVER) == 1
    with RunningServer(tmp_path) as server:
        script = session().replace(SERVER, server.url)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=here, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr + server.log()[-2000:]
        (job,) = server.get("/jobs")["items"]
        detail = server.get(f"/jobs/{job['id']}")
        (best,) = (item for item in server.get(f"/jobs/{job['id']}/artifacts") if item["name"] == "best.onnx")
    events, printed = done.stdout.split(json.dumps(detail["result"]["summary"], ensure_ascii=False))
    assert (job["state"], job["feasible"]) == ("succeeded", True)

    seen = [int(number) for number in re.findall(r"^id: (\d+)$", events, re.MULTILINE)]
    assert seen == list(range(1, len(seen) + 1))
    told = [json.loads(line) for line in re.findall(r"^data: (.*)$", events, re.MULTILINE)]
    assert [event["state"] for event in told if event["kind"] == "state"] == ["queued", "running", "succeeded"]

    trials = [json.loads(text) for text in re.findall(r"^\{.*?^\}", printed, re.MULTILINE | re.DOTALL)]
    assert len(trials) == 3
    assert all(list(trial) == ["number", "drop", "speedup"] for trial in trials)
    speeds = [trial["speedup"] for trial in trials if trial["speedup"] is not None]
    assert speeds and speeds == sorted(speeds, reverse=True)

    assert (here / "best.onnx").stat().st_size == best["size_bytes"]
    outputs = onnxruntime.InferenceSession(here / "best.onnx").run(None, {"x": np.zeros((2, FEATURES), np.float32)})
    assert outputs[0].shape[0] == 2
    page = (here / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html") and job["id"] in page
