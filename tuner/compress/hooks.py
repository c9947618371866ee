"""What may take part in training: pruning schedules, penalties and constraints hang on the one training loop by these calls.

Order of the calls: `begin`; then for every step `penalty`, `after_backward`, `after_step`; last `end`. A run that goes on from a
checkpoint calls `begin` on the view it is given, puts the view's values back and then calls `load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from tuner.model.torch_view import TorchView


class TrainingHook:
    """Base of all hooks; every call does nothing unless it is overridden. Steps count from 0."""

    rounds: int = 1
    """Into how many rounds of `round_length` steps training is cut. Each starts with a fresh optimizer and its own warm-up and cosine."""

    def begin(self, view: TorchView, steps: int) -> None:
        """Before the first step of `steps`. It may change weights, and depends on nothing but the view and the hook's own settings."""

    def penalty(self, view: TorchView) -> Tensor | None:  # noqa: ARG002
        """A scalar with a gradient that is added to the training loss (not to the loss of the hold-back rows)."""
        return None

    def after_backward(self, view: TorchView, step: int) -> None:
        """Gradients are there, not yet clipped; `view.grad(initializer)` reads them."""

    def after_step(self, view: TorchView, step: int) -> None:
        """The optimizer has changed the weights in step `step`; masks are put back here."""

    def settled(self, step: int) -> bool:  # noqa: ARG002
        """May the weights as they are after `step` steps be what training returns? False while a schedule has further to go: until
        every hook is settled no state counts as the best and nothing stops training early."""
        return True

    def end(self, view: TorchView) -> None:
        """After the last step, with the best state restored. What the hook promises about the weights holds from here on."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the weights. The tensors are copied by the caller."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a `state`."""


def round_length(steps: int, rounds: int) -> int:
    """Steps of each round but the last, which may be shorter."""
    return -(-steps // max(1, rounds))
