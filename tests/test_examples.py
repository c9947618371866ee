"""Every example runs as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(*arguments: object, path: Path | None = None) -> str:
    environment = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in EXAMPLES.glob("*.py") if f'"{file.name}"' not in source] == []


@pytest.mark.slow
def test_onnx_file(tmp_path: Path) -> None:
    printed = run(EXAMPLES / "onnx_file.py", tmp_path)
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert result["feasible"]
    assert result["summary"] in printed
    assert result["best"]["size_ratio"] < 0.5
    assert result["rows"] == {"calibration": 256, "training": 0, "validation": 400, "holdout": 600}


@pytest.mark.slow
def test_torch_module(tmp_path: Path) -> None:
    printed = run(EXAMPLES / "torch_module.py", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["feasible"]
    assert result["summary"] in printed
    assert result["baseline"]["measurements"]["top1"]["value"] > 0.95
    assert result["best"]["size_ratio"] < 0.4
    assert (tmp_path / "best.onnx").stat().st_size == result["best"]["measurements"]["size_bytes"]["value"]


def test_custom_metric_as_a_script() -> None:
    assert run(EXAMPLES / "custom_metric.py") == "per row [1. 0. 1.]\nvalue   0.667; top1 would say 1.000\n"


def test_custom_metric_as_a_plug_in_reaches_the_workers(tmp_path: Path) -> None:
    """What pip leaves of the entry point that the example describes is a folder of metadata beside the module."""
    metadata = tmp_path / "confident-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: confident\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[accutune.plugins]\nconfident = custom_metric\n")
    (tmp_path / "custom_metric.py").write_bytes((EXAMPLES / "custom_metric.py").read_bytes())
    script = """
import sys
import numpy as np
import torch
from tuner import tune
points = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
torch.manual_seed(0)
model = torch.nn.Linear(16, 4)
model.weight.data *= 10
labels = model(torch.from_numpy(points)).argmax(1)
found = tune(model, (points, labels), metric="confident_top1", max_drop=0.5, trials=2, seconds=60, out=sys.argv[1])
print(found.result.baseline.measurements["confident_top1"].value)
"""
    (tmp_path / "script.py").write_text(script)
    value = float(run(tmp_path / "script.py", tmp_path / "out", path=tmp_path))
    assert 0 < value < 1
    assert value * 200 == pytest.approx(np.round(value * 200))
