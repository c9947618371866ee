"""Network slimming: training presses the scales of normalizations to zero, so that channels that are not needed show themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tuner.compress.hooks import TrainingHook
from tuner.errors import PlanError
from tuner.model.torch_view import TorchView


class Slimming(TrainingHook):
    """Adds λ Σ|γ| over the scales γ of BatchNormalization to the loss (Liu et al., 2017, arXiv:1708.06519, eq. 1), by sub-gradients,
    with 0 at γ = 0. It sets nothing to zero: afterwards |γ| is the criterion for removing channels.

    strength: λ. gammas: initializers; none means the scale of every BatchNormalization."""

    def __init__(self, *, strength: float = 1e-4, gammas: Sequence[str] = ()) -> None:
        if strength <= 0:
            raise PlanError(f"slim needs strength > 0, got strength={strength:g}. It is the weight λ of Σ|γ| in the loss; 0.0001 is usual.")
        self.strength = strength
        self.gammas = tuple(gammas)

    def begin(self, view: TorchView, steps: int) -> None:  # noqa: ARG002
        scales = [node.input[1] for node in view.model.nodes.values() if node.op_type == "BatchNormalization"]
        found = tuple(dict.fromkeys(name for name in scales if name in view.trainable))
        wrong = [name for name in self.gammas if name not in found]
        if wrong or not found:
            what = f"'{wrong[0]}' is no scale of a BatchNormalization" if wrong else "there is no BatchNormalization"
            raise PlanError(f"slim works on the scales of BatchNormalization, and {what} of this model. Use another pruner, such as agp.")
        self.gammas = self.gammas or found

    def penalty(self, view: TorchView) -> Tensor | None:
        return self.strength * torch.stack([view.parameter(name).abs().sum() for name in self.gammas]).sum()
