"""What a runtime can execute on quantized data, and why the rest is forbidden. The facts are data: capabilities/*.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from search_spaces.schemes import FLOAT, Frozen, QuantScheme


class LayerCapability(Frozen):
    """One operator with a weight. `kernel` lists activation/weight dtypes that have an integer kernel."""

    activation: tuple[str, ...]
    weight: tuple[str, ...]
    kernel: tuple[str, ...]
    writes: Literal["quantized", "float"]


class OperatorCapability(Frozen):
    """One operator without a weight."""

    activation: tuple[str, ...]


class Processor(Frozen):
    """What a class of processors accelerates; it is recognised by the features it needs."""

    name: str
    needs: tuple[str, ...]
    accelerated: tuple[str, ...]
    warning: str | None = None


class Rule(Frozen):
    """A combination that is never offered. A field left out matches everything; `symmetric` is about the activation where the
    rule names one, else about the weight."""

    why: str
    activation: str | None = None
    weight: str | None = None
    symmetric: bool | None = None
    granularity: str | None = None
    operators: tuple[str, ...] | None = None

    def forbids(self, op: str, scheme: QuantScheme) -> bool:
        if self.operators is not None and op not in self.operators:
            return False
        activation, weight = scheme.activation, scheme.weight
        if self.activation is not None and (activation is None or activation.dtype != self.activation):
            return False
        if self.weight is not None and (weight is None or weight.dtype != self.weight):
            return False
        part = activation if self.activation is not None else weight
        if self.symmetric is not None and (part is None or part.symmetric != self.symmetric):
            return False
        return self.granularity is None or (weight is not None and weight.granularity == self.granularity)


class RuntimeTarget(Frozen):
    """The capabilities of one runtime."""

    runtime: str
    opsets: tuple[int, int]
    layers: dict[str, LayerCapability]
    operators: dict[str, OperatorCapability]
    transparent: tuple[str, ...]
    absorbed: tuple[str, ...]
    processors: tuple[Processor, ...]
    forbidden: tuple[Rule, ...]

    def processor(self, features: Iterable[str]) -> Processor:
        """The first class of processors whose needs are all among `features`."""
        have = set(features)
        return next(p for p in self.processors if have.issuperset(p.needs))

    def refusal(self, op: str, scheme: QuantScheme) -> str | None:
        """Why `op` cannot be quantized like this; None where it can."""
        allowed = self.layers.get(op) if scheme.weight is not None else self.operators.get(op)
        if allowed is None:
            return f"{self.runtime} has no quantized {op}"
        dtype = scheme.activation.dtype if scheme.activation else FLOAT
        if dtype not in allowed.activation:
            return f"{op} takes {' or '.join(allowed.activation)} activations, not {dtype}"
        if scheme.weight is not None and isinstance(allowed, LayerCapability) and scheme.weight.dtype not in allowed.weight:
            return f"{op} takes {' or '.join(allowed.weight)} weights, not {scheme.weight.dtype}"
        return next((rule.why for rule in self.forbidden if rule.forbids(op, scheme)), None)

    def has_kernel(self, op: str, scheme: QuantScheme) -> bool:
        """Does an integer kernel run this, rather than a float one between conversions?"""
        if scheme.weight is None:
            return True
        return op in self.layers and dtype_pair(scheme) in self.layers[op].kernel


def dtype_pair(scheme: QuantScheme) -> str:
    """`u8/s8`: the dtypes of activation and weight."""
    activation = scheme.activation.dtype if scheme.activation else FLOAT
    return activation if scheme.weight is None else f"{activation}/{scheme.weight.dtype}"


@cache
def load_target(runtime: str) -> RuntimeTarget:
    """The capabilities of `runtime`. KeyError with the known names where there is no such file."""
    if runtime not in known_targets():
        raise KeyError(f"unknown runtime '{runtime}'; known: {', '.join(known_targets())}")
    text = files("search_spaces").joinpath("capabilities", f"{runtime}.yaml").read_text(encoding="utf-8")
    return RuntimeTarget.model_validate(yaml.safe_load(text))


@cache
def known_targets() -> tuple[str, ...]:
    folder = files("search_spaces").joinpath("capabilities")
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))
