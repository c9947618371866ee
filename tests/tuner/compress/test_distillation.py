from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from search_spaces.recovery import RecoverySpec
from tuner.compress.distillation import (
    LOSSES,
    Probe,
    Term,
    attention_loss,
    channel_axis,
    cosine_loss,
    feature_loss,
    label_loss,
    logit_loss,
    loss,
    output_kind,
    settle,
)
from tuner.errors import DataError, JobError, UnknownName


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scores(student: Tensor, target: Tensor, **given: Any) -> Term:
    return Term(student, target, kind="scores", **given)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_follow_the_formula(temperature: float) -> None:
    student, teacher = normal(5, 7), 3 * normal(5, 7, seed=1)
    p = softmax(teacher.numpy() / temperature, axis=1)
    ratio = log_softmax(teacher.numpy() / temperature, axis=1) - log_softmax(student.numpy() / temperature, axis=1)
    expected = temperature**2 * (p * ratio).sum(1).mean()
    assert logit_loss(scores(student, teacher, temperature=temperature)).item() == pytest.approx(expected, rel=1e-12)


def test_hot_soft_targets_match_logits() -> None:
    """Hinton et al., section 2.1: for large T the gradient is that of ½ mean of squared distances of zero-mean logits."""
    student, teacher = normal(4, 6).requires_grad_(), normal(4, 6, seed=1)
    (gradient,) = torch.autograd.grad(logit_loss(scores(student, teacher, temperature=1e4)), student)
    zero_mean = [tensor - tensor.mean(1, keepdim=True) for tensor in (student.detach(), teacher)]
    torch.testing.assert_close(gradient, (zero_mean[0] - zero_mean[1]) / (6 * 4), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["logits", "features", "cosine", "attention"])
@pytest.mark.parametrize("kind", ["scores", "values"])
def test_a_student_like_its_teacher_has_no_loss_and_no_gradient(name: str, kind: Any) -> None:
    student = normal(3, 4, 5).requires_grad_()
    value = LOSSES[name].function(Term(student, student.detach().clone(), kind=kind, temperature=3.0))
    (gradient,) = torch.autograd.grad(value, student)
    assert abs(value.item()) < 1e-12 and gradient.abs().max().item() < 1e-12


@pytest.mark.parametrize("name", ["logits", "cosine", "attention", "features"])
def test_gradients_equal_finite_differences(name: str) -> None:
    target = normal(2, 3, 4, seed=1)

    def value(student: Tensor) -> Tensor:
        return LOSSES[name].function(scores(student, target, temperature=2.5, scale=0.7))

    assert torch.autograd.gradcheck(value, normal(2, 3, 4).requires_grad_())


def test_labels_are_learned_by_cross_entropy_or_squared_distance() -> None:
    student, labels = normal(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = -log_softmax(student.numpy(), axis=1)[np.arange(6), labels.numpy()].mean()
    assert label_loss(scores(student, labels)).item() == pytest.approx(expected)
    values = normal(6, seed=2)
    assert label_loss(Term(student[:, :1], values)).item() == pytest.approx(((student[:, 0] - values) ** 2).mean().item())


def test_labels_of_positions_take_the_axis_of_the_classes() -> None:
    student, labels = normal(2, 3, 4, 5), torch.arange(2 * 4 * 5).reshape(2, 4, 5) % 3
    turned = student.movedim(1, -1)
    assert label_loss(scores(student, labels, axis=1)).item() == pytest.approx(label_loss(scores(turned, labels, axis=3)).item())
    assert label_loss(scores(student, labels)).item() == pytest.approx(torch.nn.functional.cross_entropy(student, labels).item())


def test_features_are_relative_to_the_variance() -> None:
    student, teacher = normal(8, 5), normal(8, 5, seed=1)
    variance = teacher.var(correction=0).item()
    once = feature_loss(Term(student, teacher, scale=variance)).item()
    assert once == pytest.approx((((student - teacher) ** 2).mean() / variance).item())
    assert feature_loss(Term(100 * student, 100 * teacher, scale=1e4 * variance)).item() == pytest.approx(once)
    assert feature_loss(Term(teacher.mean().expand_as(teacher), teacher, scale=variance)).item() == pytest.approx(1.0)


def test_cosine_sees_directions_only() -> None:
    student, teacher = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    once = cosine_loss(Term(student, teacher)).item()
    assert cosine_loss(Term(7 * student, 0.1 * teacher)).item() == pytest.approx(once)
    assert cosine_loss(Term(-teacher, teacher)).item() == pytest.approx(2.0)


def test_attention_maps_do_not_see_channels_signs_or_sizes() -> None:
    student, teacher = normal(3, 4, 5, 5), normal(3, 8, 5, 5, seed=1)
    once = attention_loss(Term(student, teacher)).item()
    assert attention_loss(Term(-3 * student.flip(1), 2 * teacher[:, torch.randperm(8)])).item() == pytest.approx(once)
    assert attention_loss(Term(torch.cat([student, 0 * student], 1), teacher)).item() == pytest.approx(once)
    maps = [(tensor.square().sum(1).flatten(1).numpy()) for tensor in (student, teacher)]
    cosines = (maps[0] * maps[1]).sum(1) / np.linalg.norm(maps[0], axis=1) / np.linalg.norm(maps[1], axis=1)
    assert once == pytest.approx(1 - cosines.mean())


@pytest.mark.parametrize(
    ("wanted", "output", "labels", "expected"),
    [
        ("auto", (8, 10), None, ("scores", 1)),
        ("auto", (8, 1), None, ("values", 1)),
        ("auto", (8,), None, ("values", 1)),
        ("auto", (8, 5, 7), None, ("values", 1)),
        ("values", (8, 10), (8,), ("values", 1)),
        ("auto", (8, 10), (8,), ("scores", 1)),
        ("auto", (8, 5, 7), (8, 5), ("scores", 2)),
        ("auto", (8, 3, 6, 6), (8, 6, 6), ("scores", 1)),
        ("classes", (8, 5, 7), None, ("scores", 2)),
        ("classes", (8, 3, 6, 6), None, ("scores", 1)),
    ],
)
def test_what_an_output_holds(wanted: Any, output: tuple[int, ...], labels: tuple[int, ...] | None, expected: tuple[str, int]) -> None:
    truth = None if labels is None else torch.zeros(labels, dtype=torch.int64)
    assert output_kind(RecoverySpec(outputs=wanted), torch.zeros(output), truth) == expected


def test_float_labels_mean_values() -> None:
    assert output_kind(RecoverySpec(), torch.zeros(8, 10), torch.zeros(8, 10))[0] == "values"


def test_the_channels_are_where_shapes_differ() -> None:
    assert channel_axis((2, 4, 9), (2, 8, 9)) == 1
    assert channel_axis((2, 9, 4), (2, 9, 8)) == 2
    assert channel_axis((2, 9, 4), (2, 9, 4)) == 2
    assert channel_axis((2, 4, 9, 9), (2, 4, 9, 9)) == 1


def probe(labels: Tensor | None = None, **student: Tensor) -> Probe:
    """The teacher has a wider "inner" and says the same otherwise, halved."""
    teacher = {name: tensor / 2 for name, tensor in student.items() if tensor.is_floating_point()}
    if "inner" in student:
        teacher["inner"] = normal(len(student["inner"]), 9, *student["inner"].shape[2:], dtype=torch.float32)
    return Probe(tuple(name for name in student if name.startswith("out")), student, teacher, labels)


def test_tensors_that_do_not_fit_are_left_out_with_a_note() -> None:
    shown = probe(out=normal(4, 5), inner=normal(4, 3, 6), flat=normal(4, 7), mask=normal(1, 7))
    spec = RecoverySpec(losses={"logits": 1, "features": 3, "attention": 2})
    objective = settle(spec, ("inner", "flat", "mask"), shown)
    assert [(part.loss, part.tensor, part.weight) for part in objective.parts] == [
        ("attention", "inner", 2),
        ("features", "flat", 3),
        ("logits", "out", 1),
    ]
    assert (objective.observed, objective.taught) == (("inner", "flat"), ("inner", "flat", "out"))
    assert "'inner' was left out of 'features': its shape changed from [9, 6] to [3, 6]" in objective.notes
    assert "'flat' was left out of 'attention': it has no positions" in objective.notes
    assert "'mask' was left out of 'features': its first dimension is not the rows" in objective.notes
    assert "output 'out' was taken for class scores" in objective.notes


def test_the_weight_of_a_loss_is_shared_by_its_tensors() -> None:
    shown = probe(out=normal(4, 5), out2=normal(4, 3), out3=torch.zeros(4, dtype=torch.int64))
    objective = settle(RecoverySpec(losses={"logits": 3}, temperature=1), (), shown)
    assert [(part.tensor, part.weight) for part in objective.parts] == [("out", 1.5), ("out2", 1.5)]
    assert "'out3' was left out of 'logits': it holds whole numbers" in objective.notes
    parts = [logit_loss(scores(shown.student[name].float(), shown.teacher[name].float())) for name in ("out", "out2")]
    assert objective(shown.student, shown.teacher, None).item() == pytest.approx(1.5 * sum(part.item() for part in parts), rel=1e-6)


def test_probabilities_are_taken_as_logarithms_of_themselves() -> None:
    student, teacher = normal(4, 5), normal(4, 5, seed=1)
    said = {"out": torch.softmax(student, 1)}, {"out": torch.softmax(teacher, 1)}
    objective = settle(RecoverySpec(temperature=3), (), Probe(("out",), *said, None))
    assert "output 'out' was taken for probabilities" in objective.notes
    assert objective(*said, None).item() == pytest.approx(logit_loss(scores(student, teacher, temperature=3.0)).item(), rel=1e-5)


def test_what_cannot_be_learned_is_refused() -> None:
    shown = probe(out=normal(4, 5))
    with pytest.raises(UnknownName, match=r"unknown loss 'logit'. Did you mean 'logits'"):
        settle(RecoverySpec(losses={"logit": 1}), (), shown)
    with pytest.raises(JobError, match=r"the loss 'labels' needs labels, and the training data has none. Add them, or use logits alone"):
        settle(RecoverySpec(losses={"labels": 1}), (), shown)
    with pytest.raises(DataError, match=r"labels of shape \[2\] per row do not fit output 'out' of shape \[5\] per row"):
        settle(RecoverySpec(losses={"labels": 1}), (), probe(torch.zeros(4, 2), out=normal(4, 5)))
    with pytest.raises(JobError, match="no loss of features can be computed: the loss 'features' was left out: no tensor is left"):
        settle(RecoverySpec(losses={"features": 1}), (), shown)


def test_a_loss_is_added_by_registering_it() -> None:
    @loss("largest", "outputs")
    def largest(term: Term) -> Tensor:
        return (term.student - term.target).abs().amax()

    try:
        shown = probe(out=normal(4, 5))
        objective = settle(RecoverySpec(losses={"largest": 2}), (), shown)
        assert objective(shown.student, shown.teacher, None).item() == pytest.approx(normal(4, 5).abs().max().item(), rel=1e-6)
    finally:
        del LOSSES._items["largest"]
