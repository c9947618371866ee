"""Movement pruning: what matters is not how large a weight is but whether training moves it away from zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tuner.compress.pruning.layout import canonical
from tuner.compress.pruning.masking import MaskedTraining, Schemes
from tuner.compress.pruning.schedules import Timing
from tuner.model.torch_view import TorchView


class Movement(MaskedTraining):
    """Hard movement pruning (Sanh et al., 2020, arXiv:2005.07683, section 4), with Top_v over each layer.

    The forward pass uses W' = W ⊙ M with M the Top_v of the scores S. Straight through M, ∂L/∂S = ∂L/∂W' ⊙ W, so that S sums
    −W ⊙ ∂L/∂W' over the steps for masked weights as for the others, and a masked weight, which is not updated, returns with its value
    when its score has risen. That is done exactly: in the view masked weights are zero, which makes its gradient ∂L/∂W', and W is kept
    beside it. S is summed by plain gradient descent from 0, whose step size changes no order; the authors' program lets Adam do it.
    Once the schedule has ended the mask is held, and S with it."""

    def __init__(self, schemes: Schemes, timing: Timing) -> None:
        super().__init__(schemes, timing, revives=True)
        self.movement: dict[str, Tensor] = {}

    def rate(self, name: str, weight: Tensor) -> Tensor:  # noqa: ARG002
        return canonical(self.movement[name], self.layers[name])

    def begin(self, view: TorchView, steps: int) -> None:
        self.movement = {name: torch.zeros_like(weight) for name, weight in self.weights(view)}
        super().begin(view, steps)

    def after_backward(self, view: TorchView, step: int) -> None:
        if not self.settled(step):
            for name, weight in self.weights(view):
                gradient = view.grad(name)
                if gradient is not None:
                    whole = torch.where(self.masks[name], weight, self.hidden[name])
                    self.movement[name] = self.movement[name] - whole * gradient
        super().after_backward(view, step)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"movement/{name}": values for name, values in self.movement.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self.movement = self.placed(state, "movement")
