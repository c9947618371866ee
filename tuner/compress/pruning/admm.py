"""Pruning by the alternating direction method of multipliers: weights are drawn to a sparse point until little is lost by cutting."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.pruning.layout import canonical, restore
from tuner.compress.pruning.masking import MaskedTraining, Schemes
from tuner.compress.pruning.patterns import keep_mask
from tuner.compress.pruning.schedules import Timing
from tuner.errors import PlanError
from tuner.model.torch_view import TorchView


def project(weight: Tensor, scheme: SparsityScheme) -> Tensor:
    """The point nearest to `weight`, in the Euclidean sense, that has the zeros of the scheme. [out, in, *kernel].

    Its distance is the norm of what is set to zero, so squares are the scores, of whole blocks their sum."""
    return weight.masked_fill(~keep_mask(weight.square(), scheme), 0.0)


class Admm(MaskedTraining):
    """Zhang et al., 2018, arXiv:1804.03294, section 3, in the scaled form.

    Training minimises loss + ρ/2 ‖W − Z + U‖². Every `timing.every` steps, which stand for the minimisation over W, Z becomes the
    projection of W + U onto the pattern and U grows by W − Z. At the end of the window W itself is projected, and what is left trains
    on with its mask (section 3.4). No weight is masked before. ρ must exceed the curvature of the loss for W − Z to vanish; with less,
    Z goes on changing its zeros and the cut costs something."""

    def __init__(self, schemes: Schemes, timing: Timing, *, rho: float = 0.01) -> None:
        if rho <= 0:
            raise PlanError(f"admm needs rho > 0, got rho={rho:g}. It is the weight of the pull to zero; 0.01 is usual.")
        super().__init__(schemes, timing)
        self.rho = rho
        self.z: dict[str, Tensor] = {}
        self.u: dict[str, Tensor] = {}

    def rate(self, name: str, weight: Tensor) -> Tensor:  # noqa: ARG002
        return weight.square()

    def begin(self, view: TorchView, steps: int) -> None:
        super().begin(view, steps)
        if self.settled(0):
            return
        self.z = {name: self._project(name, weight) for name, weight in self.weights(view)}
        self.u = {name: torch.zeros_like(weight) for name, weight in self.weights(view)}

    def penalty(self, view: TorchView) -> Tensor | None:
        if not self.z:
            return None
        terms = [(in_file_layout(view, name) - z + self.u[name]).square().sum() for name, z in self.z.items()]
        return self.rho / 2 * torch.stack(terms).sum()

    def advance(self, view: TorchView, done: int) -> None:
        self.done = done
        if self.settled(done) and not self.settled(done - 1):
            self.renew(view, dict.fromkeys(self.schemes, 1.0))
            self.z, self.u = {}, {}
        elif self.z and self.timing.renews(done, self.steps):
            self._update(view)
        self.apply(view)

    def end(self, view: TorchView) -> None:
        super().end(view)
        self.z, self.u = {}, {}

    def state(self) -> dict[str, Tensor]:
        found = super().state() | {f"z/{name}": values for name, values in self.z.items()}
        return found | {f"u/{name}": values for name, values in self.u.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self.z, self.u = self.placed(state, "z"), self.placed(state, "u")

    def _update(self, view: TorchView) -> None:
        for name, weight in self.weights(view):
            self.z[name] = self._project(name, weight + self.u[name])
            self.u[name] = self.u[name] + weight - self.z[name]

    def _project(self, name: str, weight: Tensor) -> Tensor:
        node = self.layers[name]
        return restore(project(canonical(weight, node), self.schemes[name]), node)


def in_file_layout(view: TorchView, initializer: str) -> Tensor:
    """The parameter itself, for gradients, in the layout of the ONNX file."""
    parameter = view.parameter(initializer)
    return parameter.transpose(0, 1) if view.transposed(initializer) else parameter
