"""How much a weight, a channel or a head matters. Each criterion is one pure function; small scores are removed.

The names of its parameters say what a criterion looks at (the fields of `evidence.Evidence`). Shapes, in the canonical layout:
weight, grad, movement [out, in, *kernel]; gamma, beta, activation_mean, activation_zeros, output_taylor [out]; input_taylor [in];
input_norm [in·kernel], of a grouped Conv [groups, in·kernel]. A criterion of kind `element` gives
the weight's shape, one of kind `channel` gives [out], or [in] where its side is `in`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tuner.errors import PlanError
from tuner.registry import Registry

Kind = Literal["channel", "element"]
Side = Literal["out", "in"]
Function = Callable[..., Tensor]

RANDOM = "random"
"""The parameter that is a generator and not evidence."""


@dataclass(frozen=True)
class Criterion:
    """A registered function: called like it, and saying what it needs."""

    name: str
    function: Function
    kind: Kind
    side: Side
    """Which axis of a layer the channels lie on: those it makes (`out`) or those it reads (`in`)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function).parameters)

    @property
    def needs(self) -> frozenset[str]:
        """What has to be collected; the weight is there anyway."""
        return frozenset(self.parameters) - {"weight", RANDOM}

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)

    def score(self, layer: str, evidence: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """The scores of one layer. PlanError names what `evidence` lacks."""
        known: dict[str, Any] = {**evidence, **({RANDOM: generator} if generator is not None else {})}
        missing = [name for name in self.parameters if name not in known]
        if missing:
            raise PlanError(
                f"criterion '{self.name}' needs {', '.join(missing)} of layer '{layer}', got {', '.join(sorted(known)) or 'nothing'}. "
                f"{_WAYS_OUT.get(missing[0], 'Collect it, or use another criterion, such as l1 or level.')}"
            )
        return self.function(**{name: known[name] for name in self.parameters})


_WAYS_OUT = {
    "gamma": "Only a layer that BatchNormalization follows has it; use l1 for this layer.",
    "gamma_grad": "Only a layer that BatchNormalization follows has it; use taylor for this layer.",
    RANDOM: "Give a seeded generator.",
}


class CriterionRegistry(Registry[Criterion]):
    """`@CRITERIA.register("name")` above a function is all that a criterion needs."""

    def register(self, name: str, *, kind: Kind = "channel", side: Side = "out") -> Callable[[Function], Criterion]:
        enter = super().register(name)

        def wrap(function: Function) -> Criterion:
            return enter(function if isinstance(function, Criterion) else Criterion(name, function, kind, side))

        return wrap


CRITERIA = CriterionRegistry("criterion")


@CRITERIA.register("level", kind="element")
def level(weight: Tensor) -> Tensor:
    """Magnitude |w| (Han et al., 2015, arXiv:1506.02626, section 3)."""
    return weight.abs()


@CRITERIA.register("l1")
def l1(weight: Tensor) -> Tensor:
    """Sum of |w| over a filter (Li et al., 2017, arXiv:1608.08710, section 3.1)."""
    return weight.abs().flatten(1).sum(dim=1)


@CRITERIA.register("l2")
def l2(weight: Tensor) -> Tensor:
    """Euclidean norm of a filter (the L2 variant of Li et al., 2017, arXiv:1608.08710)."""
    return weight.flatten(1).square().sum(dim=1).sqrt()


@CRITERIA.register("fpgm")
def fpgm(weight: Tensor) -> Tensor:
    """Sum of a filter's distances to the layer's other filters (He et al., 2019, arXiv:1811.00250, section 3.3).

    The least sum marks the filter nearest to the geometric median: the others can best stand in for it."""
    flat = weight.flatten(1).double()
    # Without the matrix product, which loses the small distances to cancellation.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=1).to(weight.dtype)


@CRITERIA.register("apoz")
def apoz(activation_zeros: Tensor) -> Tensor:
    """1 − the average percentage of zeros after the activation (Hu et al., 2016, arXiv:1607.03250, equation 1)."""
    return 1 - activation_zeros


@CRITERIA.register("mean-activation")
def mean_activation(activation_mean: Tensor) -> Tensor:
    """Mean magnitude after the activation; of a ReLU, its mean (Molchanov et al., 2017, arXiv:1611.06440, section 2.2)."""
    return activation_mean


@CRITERIA.register("slim")
def slim(gamma: Tensor) -> Tensor:
    """|γ| of the BatchNormalization that follows (Liu et al., 2017, arXiv:1708.06519, section 3)."""
    return gamma.abs()


@CRITERIA.register("taylor")
def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """(Σ g·w)²: the squared first-order change of the loss without a filter (Molchanov et al., 2019, arXiv:1906.10771, section 3)."""
    return (weight * grad).flatten(1).sum(dim=1).square()


@CRITERIA.register("taylor-bn")
def taylor_bn(gamma: Tensor, gamma_grad: Tensor, beta: Tensor, beta_grad: Tensor) -> Tensor:
    """The same for γ and β of the BatchNormalization that follows (Molchanov et al., 2019, arXiv:1906.10771, section 3: gates)."""
    return (gamma * gamma_grad + beta * beta_grad).square()


@CRITERIA.register("taylor-activation")
def taylor_activation(output_taylor: Tensor) -> Tensor:
    """Mean over rows of |Σ activation·gradient| of a feature map (Molchanov et al., 2017, arXiv:1611.06440, section 2.2).

    The paper's 1/M of a map's M positions is left out: it is the same for all maps of a layer."""
    return output_taylor


@CRITERIA.register("mask-gradient", side="in")
def mask_gradient(input_taylor: Tensor) -> Tensor:
    """Mean over rows of |∂loss/∂ξ| for a mask ξ on a head or hidden unit (Michel et al., 2019, arXiv:1905.10650, equation 2).

    It looks at the layer that reads the unit: masking a unit is masking its part of that input."""
    return input_taylor


@CRITERIA.register("snip")
def snip(weight: Tensor, grad: Tensor) -> Tensor:
    """Connection sensitivity |g·w| summed per output channel (Lee et al., 2019, arXiv:1810.02340, section 4.1, not normalised)."""
    return (weight * grad).abs().flatten(1).sum(dim=1)


@CRITERIA.register("snip-element", kind="element")
def snip_element(weight: Tensor, grad: Tensor) -> Tensor:
    """Connection sensitivity |g·w| (Lee et al., 2019, arXiv:1810.02340, section 4.1, not normalised)."""
    return (weight * grad).abs()


@CRITERIA.register("gradient", kind="element")
def gradient(grad: Tensor) -> Tensor:
    """|g|, the slope of the loss along a weight."""
    return grad.abs()


@CRITERIA.register("movement", kind="element")
def movement_score(movement: Tensor) -> Tensor:
    """Accumulated −w·g: weights that training moves away from zero score high (Sanh et al., 2020, arXiv:2005.07683, section 4)."""
    return movement


@CRITERIA.register("wanda", kind="element")
def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|w| times the norm ‖x‖₂ of what it multiplies (Sun et al., 2024, arXiv:2306.11695, equation 1)."""
    norms = input_norm if input_norm.ndim > 1 else input_norm[None]
    rows = norms.repeat_interleave(weight.shape[0] // norms.shape[0], dim=0)
    return weight.abs() * rows.reshape(weight.shape)


@CRITERIA.register("lamp", kind="element")
def lamp(weight: Tensor) -> Tensor:
    """w² over the sum of all squares of the layer that are not smaller (Lee et al., 2021, arXiv:2010.07611, section 3).

    The highest score of every layer is 1, so a global threshold below 1 leaves no layer empty."""
    squares = weight.double().flatten().square()
    order = squares.sort(stable=True).indices
    ascending = squares[order]
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(not_smaller > 0, ascending / not_smaller, 0.0)
    return scores.reshape(weight.shape).to(weight.dtype)


@CRITERIA.register("random")
def random_channels(weight: Tensor, random: torch.Generator) -> Tensor:
    """Evenly distributed numbers, one per channel: the baseline that every criterion must beat."""
    return torch.rand(weight.shape[0], generator=random, device=random.device).to(weight)


@CRITERIA.register("random-element", kind="element")
def random_elements(weight: Tensor, random: torch.Generator) -> Tensor:
    """Evenly distributed numbers, one per weight: the baseline that every criterion must beat."""
    return torch.rand(weight.shape, generator=random, device=random.device).to(weight)
