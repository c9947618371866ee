"""Tune an ONNX file with data from numpy arrays: the fastest model that loses at most 1 % of the accuracy.

python examples/onnx_file.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tuner import tune
from tuner.demo import prepare_demo

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/onnx-file")

# Trains a small network, to have something to tune. Put your own model and arrays in its place.
prepare_demo(folder, print)
train, validation, holdout = (np.load(folder / f"{name}.npz") for name in ("train", "validation", "holdout"))

found = tune(
    folder / "digits.onnx",
    {"image": validation["image"], "labels": validation["labels"]},  # arrays are named after the model's inputs
    calibration={"image": train["image"][:256]},  # chooses the ranges of activations; needs no labels
    holdout={"image": holdout["image"], "labels": holdout["labels"]},  # decides; the search never sees it
    max_drop=0.01,
    trials=8,
    seconds=60,
    out=folder / "tuned",
    progress=lambda event: print(f"{event.seconds:5.1f} s  {event.phase}  {event.done}/{event.total}", end="\r"),
)

print("\n" + found.result.summary)
for name in ("top1", "latency_ms", "size_bytes"):
    original, best = found.result.baseline.measurements[name], found.result.best.measurements[name]
    print(f"{name:12} {original.value:12.4g} -> {best.value:.4g} {best.unit}")
print(f"model  {found.model_path}\nreport {found.report_path}")
