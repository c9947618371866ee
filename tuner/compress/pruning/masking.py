"""Masks that change or stay while a network trains: what all pruners of single weights have in common.

Weights, gradients and masks have the layout of the ONNX file; scores have the canonical one, [out, in, *kernel], as patterns want them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
import torch
from torch import Tensor

from search_spaces.schemes import SparsityScheme
from tuner.compress.hooks import TrainingHook
from tuner.compress.pruning.layout import LAYERS, canonical, restore
from tuner.compress.pruning.patterns import keep_mask
from tuner.compress.pruning.schedules import Timing
from tuner.errors import PlanError
from tuner.model.graph import Model
from tuner.model.torch_view import TorchView

Schemes = Mapping[str, SparsityScheme]
"""{initializer: the zeros that it shall have}."""


class MaskedTraining(TrainingHook):
    """Renews masks by a schedule, then holds them. A removed weight is exactly zero after every step, and no gradient reaches it.

    given: {initializer: fixed scores}, [out, in, *kernel]; where there are none, weights are rated by `rate`.
    revives: whether a removed weight may come back while the schedule runs. It then does so with the value it had, for weights below
    a mask are not updated (Zhu and Gupta, 2017, arXiv:1710.01878, section 3). Otherwise what is gone stays gone."""

    def __init__(self, schemes: Schemes, timing: Timing, *, revives: bool = False, given: Mapping[str, Tensor] | None = None) -> None:
        self.schemes = dict(schemes)
        self.timing = timing
        self.revives = revives
        self.given = dict(given or {})
        self.steps = 0
        self.done = 0
        self.layers: dict[str, onnx.NodeProto] = {}
        self.masks: dict[str, Tensor] = {}
        """True where a weight is in use."""
        self.hidden: dict[str, Tensor] = {}
        """All weights as they were when they were last in use; only while masks may give some back."""

    def rate(self, name: str, weight: Tensor) -> Tensor:
        """How much each weight matters. weight: [out, in, *kernel], those below the mask with the values that they would come back with."""
        return self.given[name].to(weight.device) if name in self.given else weight.abs()

    def begin(self, view: TorchView, steps: int) -> None:
        self.layers = {name: layer_of(view.model, name) for name in self.schemes}
        self.steps = steps
        for name, weight in self.weights(view):
            self._check_given(name, canonical(weight, self.layers[name]).shape)
            self.masks[name] = torch.ones_like(weight, dtype=torch.bool)
            if self.revives:
                self.hidden[name] = weight.clone()
        self.advance(view, 0)

    def after_backward(self, view: TorchView, step: int) -> None:  # noqa: ARG002
        for name, mask in self.masks.items():
            gradient = view.grad(name)
            if gradient is not None:
                gradient.masked_fill_(~mask, 0.0)

    def after_step(self, view: TorchView, step: int) -> None:
        self._remember(view)
        self.advance(view, step + 1)

    def settled(self, step: int) -> bool:
        return self.timing.settled(step, self.steps)

    def end(self, view: TorchView) -> None:
        """Puts the masks on the weights: the final ones, also where training ended before the schedule did."""
        self._remember(view)
        if not self.settled(self.done):
            self.renew(view, dict.fromkeys(self.schemes, 1.0))
        self.apply(view)
        self.hidden.clear()

    def state(self) -> dict[str, Tensor]:
        found = {"done": torch.tensor(self.done)}
        found |= {f"mask/{name}": mask for name, mask in self.masks.items()}
        return found | {f"hidden/{name}": values for name, values in self.hidden.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.done = int(state["done"])
        self.masks = self.placed(state, "mask")
        self.hidden = self.placed(state, "hidden")

    def weights(self, view: TorchView) -> Iterator[tuple[str, Tensor]]:
        """The weights to be pruned; writing to them writes to the view."""
        return ((name, view.value(name)) for name in self.schemes)

    def advance(self, view: TorchView, done: int) -> None:
        """To the state after `done` steps: masks renewed where it is time, and put on the weights."""
        self.done = done
        if self.timing.renews(done, self.steps):
            self.renew(view, {name: self.timing.fraction(done, self.steps, scheme.ratio) for name, scheme in self.schemes.items()})
        self.apply(view)
        if self.settled(done):
            self.hidden.clear()

    def renew(self, view: TorchView, shares: Mapping[str, float]) -> None:
        """Makes the masks anew. shares: {initializer: share of its final sparsity}."""
        for name, weight in self.weights(view):
            scores = self.rate(name, canonical(self.hidden.get(name, weight), self.layers[name]))
            if not self.revives:
                scores = last(scores, canonical(self.masks[name], self.layers[name]))
            self.masks[name] = restore(partial_mask(scores, self.schemes[name], shares[name]), self.layers[name]).contiguous()

    def apply(self, view: TorchView) -> None:
        """Zero where a mask says so; what it gives back gets its value."""
        for name, weight in self.weights(view):
            weight.copy_(self.hidden.get(name, weight).masked_fill(~self.masks[name], 0.0))

    def placed(self, state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
        """The tensors `<kind>/<initializer>` of a state, each where the mask of that weight lies."""
        keys = {name: f"{kind}/{name}" for name in self.schemes if f"{kind}/{name}" in state}
        return {name: state[key].to(self.masks[name].device, copy=True) for name, key in keys.items()}

    def _remember(self, view: TorchView) -> None:
        for name, hidden in self.hidden.items():
            self.hidden[name] = torch.where(self.masks[name], view.value(name), hidden)

    def _check_given(self, name: str, shape: torch.Size) -> None:
        scores = self.given.get(name)
        if scores is not None and scores.shape != shape:
            raise PlanError(
                f"scores of '{name}' must have the shape of its weight, [out, in, *kernel] = {list(shape)}, got {list(scores.shape)}. "
                "Use a criterion of kind 'element'."
            )


def layer_of(model: Model, initializer: str) -> onnx.NodeProto:
    """The layer whose weight an initializer is; of several that share it the first. PlanError where it is none."""
    for node in model.consumers.get(initializer, []):
        if node.op_type in LAYERS and node.input[1] == initializer:
            return node
    raise PlanError(
        f"'{initializer}' is no weight of a Conv, ConvTranspose, Gemm or MatMul of the model, so it cannot be pruned. "
        "Leave it out of the plan's step 'sparsify'."
    )


def partial_mask(scores: Tensor, scheme: SparsityScheme, share: float) -> Tensor:
    """The mask at `share` of the scheme's sparsity: none at 0, the scheme's own at 1. scores: [out, in, *kernel].

    On the way there `any` and blocks have the ratio share · ratio. A pattern N:M knows no ratio between: there the lowest ⌈share · n⌉
    of the n weights go that the whole pattern would remove."""
    if share <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if share >= 1:
        return keep_mask(scores, scheme)
    if scheme.kept is None:
        return keep_mask(scores, SparsityScheme(ratio=scheme.ratio * share, pattern=scheme.pattern))
    keep = keep_mask(scores, scheme).flatten()
    doomed = (~keep).nonzero().flatten()
    order = scores.flatten()[doomed].sort(stable=True).indices
    spared = order[math.ceil(share * doomed.numel()) :]
    keep[doomed[spared]] = True
    return keep.reshape(scores.shape)


def last(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores in which what `mask` has removed comes after everything else, also where scores of a block are added up."""
    return scores.masked_fill(~mask, -2 * float(scores.abs().sum()) - 1)
