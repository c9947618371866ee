"""Tune a PyTorch module trained in the same script: the smallest model that loses at most 1 % of the accuracy.

python examples/torch_module.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from tuner import tune

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/torch-module")
torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
train, validation, holdout = random_split(TensorDataset(images, torch.tensor(digits.target)), [897, 400, 500])


class Net(nn.Module):
    """A small network for 8×8 images; the argument of forward names the input of the tuned model."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(8):
    for image, label in DataLoader(train, batch_size=32, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image), label).backward()
        optimizer.step()

found = tune(
    model,
    DataLoader(validation, batch_size=128),
    training=DataLoader(train, batch_size=128),
    holdout=DataLoader(holdout, batch_size=128),
    max_drop=0.01,
    objective="size",
    trials=8,
    seconds=60,
    out=folder,
)

print(found.result.summary)
speedup = found.speedup
print(f"size {found.size_ratio:.0%} of the original, {speedup.value:.2f}× as fast ({speedup.lower:.2f} to {speedup.upper:.2f})")
for trial in found.trials:
    print(f"trial {trial.number}: top1 {trial.value('top1'):.4f}, {trial.value('size_bytes'):,.0f} bytes")
print(f"model  {found.model_path}\nreport {found.report_path}")
