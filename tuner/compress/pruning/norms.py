"""Statistics of BatchNormalization after a cut: the old ones belong to activations that are no longer there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tuner.errors import DataError, ModelError
from tuner.model.torch_view import TorchView

Feed = Mapping[str, NDArray[Any]]


class Moments:
    """Mean and variance over everything added, per channel, in float64. Values: [rows, channels, *space]."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.m2 = torch.zeros(())

    @property
    def variance(self) -> Tensor:
        """[channels], of the population: divided by the count."""
        return self.m2 / self.count

    def add(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes values in, and gives their own mean and variance. Chan, Golub and LeVeque, 1979, eq. 2.1."""
        wide = values.detach().double().transpose(0, 1).flatten(1)
        count, mean = wide.shape[1], wide.mean(dim=1)
        m2 = (wide - mean[:, None]).square().sum(dim=1)
        total = self.count + count
        delta = mean - self.mean.to(mean)
        self.mean = self.mean.to(mean) + delta * (count / total)
        self.m2 = self.m2.to(m2) + m2 + delta.square() * (self.count * count / total)
        self.count = total
        return mean, m2 / count


def recalibrate_norms(
    view: TorchView, batches: Iterable[Feed], *, exact: bool = False, between: Callable[[], None] = lambda: None
) -> tuple[str, ...]:
    """Computes the running mean and variance of every BatchNormalization anew, and gives the names of their nodes.

    Adaptive BatchNorm (Li et al., 2020, arXiv:2007.02491, section 3.3), with the population's moments over all rows in place of a
    moving average, and no other value of the view touched.
    exact=False: one pass. Layers see what those before them make of each batch by that batch's own statistics, as in training; the
    moments are exact over these inputs. With one batch, both ways agree.
    exact=True: one pass for each layer in order, so that each sees what those before it make by their new statistics: the moments are
    exactly those of what the layer reads in the finished model. `batches` must then give its rows as often as it is asked.
    between: called after every batch. DataError without rows, ModelError where an activation is not finite."""
    norms = [node.name for node in view.model.nodes.values() if node.op_type == "BatchNormalization"]
    if not norms:
        return ()
    with _inference(view), torch.no_grad():
        for names in [[name] for name in norms] if exact else [norms]:
            _recalibrate(view, names, batches, between)
    return tuple(norms)


def _recalibrate(view: TorchView, names: Sequence[str], batches: Iterable[Feed], between: Callable[[], None]) -> None:
    """One pass for the layers `names`, each of which normalizes every batch by itself while it lasts."""
    moments = {name: Moments() for name in names}
    device = next(view.parameters()).device
    with ExitStack() as stack:
        for name in names:
            stack.callback(_watch(view, name, moments[name]).remove)
        for feed in batches:
            view({key: torch.from_numpy(np.ascontiguousarray(values)).to(device) for key, values in feed.items()})
            between()
    for name, found in moments.items():
        if not found.count:
            raise DataError(
                "the statistics of BatchNormalization need rows to be computed from, got none. "
                "Give at least one calibration row; the exact way reads them once for each layer."
            )
        _write(view, name, found.mean, found.variance)


def _watch(view: TorchView, name: str, moments: Moments) -> RemovableHandle:
    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Set as running statistics, not by training mode: a single row would be refused there.
        _write(view, name, *moments.add(inputs[0]))

    return view.modules_by_node[name].register_forward_pre_hook(before)


def _write(view: TorchView, name: str, mean: Tensor, variance: Tensor) -> None:
    if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
        raise ModelError(
            f"what the BatchNormalization '{name}' reads holds NaN or infinity, so it has no mean and variance. "
            "Look for an overflow before it, or cut less."
        )
    node = view.model.nodes[name]
    for initializer, values in zip(node.input[3:5], (mean, variance), strict=True):
        view.value(initializer).copy_(values)


@contextmanager
def _inference(view: TorchView) -> Iterator[None]:
    """Evaluation mode; every module returns to the mode that it was in."""
    modes = {module: module.training for module in view.modules()}
    view.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
