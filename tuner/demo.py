"""The demonstration: a small network trained on real digits, and a job file that tunes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.errors import InputError, writing
from tuner.model.from_torch import export

SEED = 0
SPLITS = {"train": (0, 797), "validation": (797, 1197), "holdout": (1197, 1797)}
"""Rows of the shuffled digits. The holdout is the largest test split, because its size limits what can be certified."""
ENLARGED = 3
"""The 8×8 images are enlarged to 24×24, so that convolutions have something to do."""
EPOCHS, BATCH, PEAK_RATE = 6, 32, 4e-3

JOB = """\
# A job file: everything a job needs. Change it and run it again with: tuner run {path}
version: 1
name: digits
model: digits.onnx
data:
  calibration: {{file: train.npz, rows: [0, 512]}}   # chooses the ranges of activations
  training: {{file: train.npz}}
  validation: {{file: validation.npz}}               # what the search sees
  holdout: {{file: holdout.npz}}                     # what the winner has to prove itself on
metrics: [top1]
constraints:
  # At most 1 % of the accuracy may be lost, and the holdout must show it with 95 % confidence.
  - {{metric: top1, max_drop: 0.01, relative: true, confidence: 0.95}}
objectives: [latency]                              # or size, or both: [latency, size]
space: int8
budget: {{trials: 25, seconds: 60}}
target: {{runtime: onnxruntime-cpu, batch: 1, threads: 1}}
seed: 0
"""

Rows = dict[str, NDArray[Any]]


def prepare_demo(out: Path, say: Callable[[str], None]) -> Path:
    """Train the network, write model, data and job file to `out`, and return the job file. `say` is told what happens."""
    splits = digit_splits()
    say(
        f"Training a small convolutional network on {len(splits['train']['labels'])} of scikit-learn's handwritten digits "
        f"({_side(splits)}×{_side(splits)} pixels); this takes about ten seconds."
    )
    started = time.perf_counter()
    network = train(splits["train"])
    validation = splits["validation"]
    right = accuracy(network, validation)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    say(
        f"It has {parameters:,} parameters and gets {100 * right:.1f} % of {len(validation['labels'])} other digits right "
        f"({time.perf_counter() - started:.0f} s)."
    )
    job = out / "job.yaml"
    with writing(f"the demo to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in splits.items():
            np.savez(out / f"{name}.npz", image=rows["image"], labels=rows["labels"])
        export(network, {"image": torch.from_numpy(validation["image"][:2])}, out / "digits.onnx")
        job.write_text(JOB.format(path=job), encoding="utf-8")
    say(
        f"The model, its data and the job file are in {out}. Every layer may now become 8-bit, in several ways. The search looks for the "
        f"fastest model that loses at most 1 % of the accuracy; {len(splits['holdout']['labels'])} digits kept aside have to confirm it."
    )
    return job


def digit_splits() -> dict[str, Rows]:
    """Disjoint rows {split: {image [n, 1, 24, 24] in 0..1, labels [n]}} of the digits in a fixed random order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the demo needs scikit-learn for its images; install it with: pip install 'accutune[demo]'") from error
    digits = load_digits()
    images = np.kron(digits.images / digits.images.max(), np.ones((1, ENLARGED, ENLARGED)))[:, None].astype(np.float32)
    order = np.random.default_rng(SEED).permutation(len(images))
    labels = digits.target.astype(np.int64)
    return {name: {"image": images[order[a:b]], "labels": labels[order[a:b]]} for name, (a, b) in SPLITS.items()}


class DigitNet(nn.Module):
    """Five convolutions with BatchNormalization and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(1, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        self.features = nn.Sequential(*(_block(*width) for width in widths))
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.features(image).mean((2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def train(rows: Rows, epochs: int = EPOCHS) -> DigitNet:
    """A DigitNet trained on `rows`: Adam with one cycle of the learning rate, the same result for the same rows."""
    dataset = TensorDataset(torch.from_numpy(rows["image"]), torch.from_numpy(rows["labels"]))
    with _reproducible():
        network = DigitNet().train()
        optimizer = torch.optim.Adam(network.parameters())
        batches = DataLoader(dataset, BATCH, shuffle=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * len(batches))
        for _ in range(epochs):
            for image, label in batches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(image), label)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    return network.eval()


def accuracy(network: nn.Module, rows: Rows) -> float:
    """The share of rows that `network` classifies correctly."""
    with torch.no_grad():
        predicted = network(torch.from_numpy(rows["image"])).argmax(dim=1).numpy()
    return float((predicted == rows["labels"]).mean())


@contextmanager
def _reproducible() -> Iterator[None]:
    """A seed of its own and one thread, which so small a network trains on almost as fast as on many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)


def _side(splits: dict[str, Rows]) -> int:
    return int(splits["train"]["image"].shape[-1])
