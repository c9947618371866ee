"""Losses that recovery sums up: learning from labels, from the original's outputs and from tensors inside it.

A loss is a function of one `Term`, registered under a name by `@loss`. An `Objective` says which losses are taken over which tensors;
it is settled once, on a few rows, so that the training itself decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.recovery import RecoverySpec
from tuner.errors import DataError, JobError
from tuner.registry import Registry

Needs = Literal["labels", "outputs", "tensors"]
Kind = Literal["scores", "probabilities", "values"]

SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True, eq=False)
class Term:
    """What a loss reads of one tensor. student, target: [rows, …] in float32; the target of `labels` are the labels.

    kind: what the tensor holds (probabilities come as their logarithms, which are scores); axis: where the classes or channels lie;
    scale: the variance of the teacher's tensor, a constant of the run."""

    student: Tensor
    target: Tensor
    kind: Kind = "values"
    axis: int = 1
    scale: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Loss:
    """needs: `labels` and the first output, the teacher's `outputs`, or `tensors` inside the network."""

    needs: Needs
    function: Callable[[Term], Tensor]
    same_shape: bool = True


LOSSES: Registry[Loss] = Registry("loss")


def loss(name: str, needs: Needs, *, same_shape: bool = True) -> Callable[[Callable[[Term], Tensor]], Callable[[Term], Tensor]]:
    """Decorator that registers a loss. same_shape: it needs teacher and student to have the tensor in one shape."""

    def enter(function: Callable[[Term], Tensor]) -> Callable[[Term], Tensor]:
        LOSSES.register(name)(Loss(needs, function, same_shape))
        return function

    return enter


@loss("labels", "labels")
def label_loss(term: Term) -> Tensor:
    """Cross-entropy for class scores, mean over rows (and positions); for values their mean squared distance from the labels."""
    if term.kind == "values":
        return F.mse_loss(term.student, term.target.reshape(term.student.shape).to(term.student.dtype))
    scores = term.student.movedim(term.axis, -1)
    return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), term.target.reshape(-1).long())


@loss("logits", "outputs")
def logit_loss(term: Term) -> Tensor:
    """T² · KL(softmax(t/T) ‖ softmax(s/T)), mean over rows (and positions), for class scores t of the teacher and s of the student.

    Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network", section 2 (arXiv:1503.02531): T² keeps the size of
    the gradient the same for every temperature T. Values: see `feature_loss`."""
    if term.kind == "values":
        return feature_loss(term)
    student = F.log_softmax(term.student / term.temperature, term.axis)
    teacher = F.log_softmax(term.target / term.temperature, term.axis)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(term.axis)
    return divergence.mean() * term.temperature**2


@loss("features", "tensors")
def feature_loss(term: Term) -> Tensor:
    """Mean squared distance from the teacher's tensor, divided by that tensor's variance, so that large tensors do not outweigh small ones.

    The hint of Romero et al., 2015, "FitNets: Hints for Thin Deep Nets", section 2.2 (arXiv:1412.6550), for equal shapes: without the
    regressor that the paper puts between unequal ones."""
    return F.mse_loss(term.student, term.target) / term.scale


@loss("cosine", "tensors")
def cosine_loss(term: Term) -> Tensor:
    """1 − cos between student and teacher, each row as one vector; mean over rows. It does not see the length of a row."""
    return (1 - F.cosine_similarity(term.student.flatten(1), term.target.flatten(1), dim=1)).mean()


@loss("attention", "tensors", same_shape=False)
def attention_loss(term: Term) -> Tensor:
    """½ ‖q(s) − q(t)‖² of activation maps: q(a) is Σ a² over the channels, as a vector over positions of length 1; mean over rows.

    Activation-based attention transfer, Zagoruyko and Komodakis, 2017, "Paying More Attention to Attention", section 3.1, F²sum and
    equation 2 (arXiv:1612.03928); the distance is squared here, because it has no gradient where the maps agree. The number of
    channels may differ."""
    student, teacher = (F.normalize(tensor.square().sum(term.axis).flatten(1), dim=1) for tensor in (term.student, term.target))
    return 0.5 * (student - teacher).square().sum(1).mean()


@dataclass(frozen=True)
class Part:
    """One loss over one tensor; `weight` is the share of that loss's weight."""

    loss: str
    tensor: str
    weight: float
    kind: Kind
    axis: int
    scale: float = 1.0
    classes: int = 0
    """How many classes labels may name; 0 where they are no classes."""


@dataclass(frozen=True)
class Objective:
    """The sum that training makes small. notes: what was left out, and what the outputs were taken for."""

    parts: tuple[Part, ...]
    temperature: float
    notes: tuple[str, ...] = ()

    @property
    def observed(self) -> tuple[str, ...]:
        """Tensors inside the network that it reads."""
        return tuple(dict.fromkeys(part.tensor for part in self.parts if LOSSES[part.loss].needs == "tensors"))

    @property
    def taught(self) -> tuple[str, ...]:
        """Tensors that it wants from the teacher."""
        return tuple(dict.fromkeys(part.tensor for part in self.parts if LOSSES[part.loss].needs != "labels"))

    @property
    def labelled(self) -> Part | None:
        """The part that reads labels, if there is one."""
        return next((part for part in self.parts if LOSSES[part.loss].needs == "labels"), None)

    def __call__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """The weighted sum, a scalar in float32."""
        return torch.stack([part.weight * self._value(part, student, teacher, labels) for part in self.parts]).sum()

    def _value(self, part: Part, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        found = LOSSES[part.loss]
        target = labels if found.needs == "labels" else _readable(teacher[part.tensor], part.kind)
        assert target is not None
        term = Term(_readable(student[part.tensor], part.kind), target, part.kind, part.axis, part.scale, self.temperature)
        return found.function(term)


@dataclass(frozen=True, eq=False)
class Probe:
    """A few rows seen by both networks. outputs: names of the graph's outputs, in order; teacher: empty where none is needed."""

    outputs: tuple[str, ...]
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    labels: Tensor | None


def needs_teacher(spec: RecoverySpec) -> bool:
    return any(LOSSES[name].needs != "labels" for name in spec.active)


def needs_tensors(spec: RecoverySpec) -> bool:
    return any(LOSSES[name].needs == "tensors" for name in spec.active)


def settle(spec: RecoverySpec, tensors: Sequence[str], probe: Probe) -> Objective:
    """Which losses are taken over which tensors. UnknownName for a loss that no one registered, DataError for labels that do not fit."""
    notes: list[str] = []
    parts: list[Part] = []
    for name, weight in spec.active.items():
        names = tensors if LOSSES[name].needs == "tensors" else probe.outputs[:1] if LOSSES[name].needs == "labels" else probe.outputs
        made = [part for tensor in names if (part := _part(spec, name, tensor, probe, notes)) is not None]
        if not made:
            notes.append(f"the loss '{name}' was left out: no tensor is left for it")
        parts += [replace(part, weight=weight / len(made)) for part in made]
    if not parts:
        raise JobError(f"no loss of {', '.join(spec.active)} can be computed: {'; '.join(notes)}. Use logits, which fits every network.")
    return Objective(tuple(parts), spec.temperature, tuple(dict.fromkeys(notes)))


def _part(spec: RecoverySpec, name: str, tensor: str, probe: Probe, notes: list[str]) -> Part | None:
    student = probe.student[tensor]
    if not student.is_floating_point():
        notes.append(f"'{tensor}' was left out of '{name}': it holds whole numbers")
        return None
    if LOSSES[name].needs == "labels":
        return _label_part(spec, name, tensor, probe, notes)
    teacher = probe.teacher[tensor]
    scale = _scale(teacher)
    if LOSSES[name].needs == "outputs":
        kind, axis = output_kind(spec, student, probe.labels if tensor == probe.outputs[0] else None)
        kind = _if_probabilities(kind, axis, teacher)
        notes.append(f"output '{tensor}' was taken for {'class ' if kind == 'scores' else ''}{kind}")
        return Part(name, tensor, 1.0, kind, axis, scale)
    why = _misfit(LOSSES[name], student, teacher, len(probe.student[probe.outputs[0]]))
    if why:
        notes.append(f"'{tensor}' was left out of '{name}': {why}")
        return None
    return Part(name, tensor, 1.0, "values", channel_axis(student.shape, teacher.shape), scale)


def _label_part(spec: RecoverySpec, name: str, tensor: str, probe: Probe, notes: list[str]) -> Part:
    student, labels = probe.student[tensor], probe.labels
    if labels is None:
        raise JobError("the loss 'labels' needs labels, and the training data has none. Add them, or use logits alone.")
    kind, axis = output_kind(spec, student, labels)
    if kind == "values" and student.numel() != labels.numel():
        raise DataError(
            f"labels of shape {list(labels.shape[1:])} per row do not fit output '{tensor}' of shape {list(student.shape[1:])} per row. "
            "Give one class number per row, or one value per output value, or leave 'labels' out of the losses."
        )
    kind = _if_probabilities(kind, axis, student)
    notes.append(f"labels were learned by {'squared distance' if kind == 'values' else 'cross-entropy'}")
    return Part(name, tensor, 1.0, kind, axis, classes=0 if kind == "values" else student.shape[axis])


def output_kind(spec: RecoverySpec, output: Tensor, labels: Tensor | None) -> tuple[Kind, int]:
    """What an output holds, and the axis of its classes. Whole numbers as labels tell the axis: they have the output's shape without it."""
    if spec.outputs == "values" or output.ndim < 2:
        return "values", 1
    if labels is not None and not labels.is_floating_point() and labels.shape != output.shape:
        for axis in (1, output.ndim - 1):
            if output.shape[axis] > 1 and labels.shape == output.shape[:axis] + output.shape[axis + 1 :]:
                return "scores", axis
    if spec.outputs == "classes":
        return "scores", output.ndim - 1 if output.ndim == 3 else 1
    whole = labels is None or not labels.is_floating_point()
    return ("scores", 1) if whole and output.ndim == 2 and output.shape[1] > 1 else ("values", 1)


def channel_axis(student: Sequence[int], teacher: Sequence[int]) -> int:
    """The axis in which two shapes differ; of equal ones the second, and the last of three ([rows, positions, channels])."""
    unequal = [axis for axis in range(1, min(len(student), len(teacher))) if student[axis] != teacher[axis]]
    return unequal[0] if unequal else len(student) - 1 if len(student) == 3 else 1


def _misfit(found: Loss, student: Tensor, teacher: Tensor, rows: int) -> str | None:
    """Why a loss cannot be taken over a tensor inside the network; None where it can."""
    if len(student) != rows or len(teacher) != rows:
        return "its first dimension is not the rows"
    if found.same_shape:
        return None if student.shape == teacher.shape else f"its shape changed from {list(teacher.shape[1:])} to {list(student.shape[1:])}"
    if student.ndim < 3:
        return "it has no positions"
    unequal = sum(a != b for a, b in zip(student.shape, teacher.shape, strict=False))
    return "its shape changed in more than the channels" if student.ndim != teacher.ndim or unequal > 1 else None


def _scale(teacher: Tensor) -> float:
    """The variance of all values of a tensor; 1 where there is none to divide by."""
    variance = float(teacher.double().var(correction=0))
    return variance if variance > 0 and math.isfinite(variance) else 1.0


def _if_probabilities(kind: Kind, axis: int, output: Tensor) -> Kind:
    """Scores that are probabilities already: none below 0, and a sum of 1 over the classes."""
    if kind != "scores" or bool((output < 0).any()):
        return kind
    sums = output.float().sum(axis)
    return "probabilities" if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else kind


def _readable(tensor: Tensor, kind: Kind) -> Tensor:
    """In float32; probabilities as logarithms, whose softmax gives them back."""
    values = tensor.float()
    return values.clamp_min(SMALLEST_PROBABILITY).log() if kind == "probabilities" else values
