"""One contract for all criteria, then each against a formula, a constructed case or brute force."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tuner.compress.pruning.criteria import CRITERIA, Criterion, lamp
from tuner.errors import PlanError, UnknownName

NAMES = list(CRITERIA)
OF_WEIGHT_ALONE = [name for name in NAMES if CRITERIA[name].parameters == ("weight",)]
ZERO_IS_LEAST = ["level", "l1", "l2", "slim", "taylor", "taylor-bn", "snip", "snip-element", "wanda", "lamp"]


def evidence(shape: tuple[int, ...] = (6, 4, 3, 3), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    out, inner = shape[0], shape[1:]
    columns = int(torch.tensor(inner).prod())
    return {
        "weight": normal(*shape),
        "grad": normal(*shape),
        "movement": normal(*shape),
        **{name: normal(out) for name in ("gamma", "gamma_grad", "beta", "beta_grad")},
        **{name: normal(out).abs() for name in ("activation_mean", "output_taylor")},
        "activation_zeros": torch.rand(out, generator=generator),
        "input_taylor": normal(inner[0]).abs(),
        "input_norm": normal(columns).abs(),
    }


def score(name: str, given: dict[str, Tensor], seed: int = 7) -> Tensor:
    return CRITERIA[name].score("layer", given, torch.Generator().manual_seed(seed))


@pytest.fixture(params=[(6, 4, 3, 3), (6, 4), (6, 4, 5)], ids=["conv2d", "linear", "conv1d"])
def given(request: pytest.FixtureRequest) -> Iterator[dict[str, Tensor]]:
    yield evidence(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_the_shape_of_their_kind_and_are_finite(name: str, given: dict[str, Tensor]) -> None:
    scores, criterion = score(name, given), CRITERIA[name]
    channels = given["weight"].shape[:1] if criterion.side == "out" else given["weight"].shape[1:2]
    assert scores.shape == (given["weight"].shape if criterion.kind == "element" else channels)
    assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("name", NAMES)
def test_equal_evidence_gives_equal_scores_and_is_not_changed(name: str, given: dict[str, Tensor]) -> None:
    before = {key: value.clone() for key, value in given.items()}
    assert torch.equal(score(name, given), score(name, given))
    assert all(torch.equal(given[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_an_all_zero_layer_has_finite_scores(name: str) -> None:
    assert bool(torch.isfinite(score(name, {key: torch.zeros_like(value) for key, value in evidence().items()})).all())


@pytest.mark.parametrize("name", ZERO_IS_LEAST)
def test_what_is_zero_scores_least(name: str) -> None:
    given = evidence()
    for key in ("weight", "gamma", "beta"):
        given[key][2] = 0
    scores = score(name, given).reshape(6, -1)
    assert bool((scores[2] == 0).all())
    assert float(scores[[0, 1, 3, 4, 5]].min()) > 0


@pytest.mark.parametrize("name", OF_WEIGHT_ALONE)
def test_scaling_a_layer_keeps_the_order(name: str) -> None:
    given = evidence()
    plain, scaled = score(name, given), score(name, given | {"weight": given["weight"] * 8})
    assert torch.equal(plain.flatten().argsort(), scaled.flatten().argsort())


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    criterion = CRITERIA[name]
    assert criterion.name == name
    assert criterion.summary
    assert "arXiv:" in (criterion.function.__doc__ or "") or name in ("gradient", "random", "random-element")


def test_a_missing_piece_is_named() -> None:
    with pytest.raises(PlanError, match=r"criterion 'slim' needs gamma of layer 'fc', got weight. Only a layer that BatchNormalization"):
        CRITERIA["slim"].score("fc", {"weight": torch.ones(2, 2)})
    with pytest.raises(PlanError, match=r"criterion 'random' needs random of layer 'fc', got weight. Give a seeded generator"):
        CRITERIA["random"].score("fc", {"weight": torch.ones(2, 2)})


def test_unknown_criteria_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown criterion 'fpmg'. Did you mean 'fpgm'"):
        CRITERIA["fpmg"]


def test_registering_takes_one_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_items", dict(CRITERIA._items))

    @CRITERIA.register("largest")
    def largest(weight: Tensor) -> Tensor:
        """The largest magnitude of a filter."""
        return weight.abs().flatten(1).amax(dim=1)

    assert isinstance(CRITERIA["largest"], Criterion)
    assert (CRITERIA["largest"].kind, CRITERIA["largest"].needs) == ("channel", frozenset())
    assert largest(torch.tensor([[1.0, -3.0], [2.0, 0.0]])).tolist() == [3, 2]
    with pytest.raises(ValueError, match=r"registered twice"):
        CRITERIA.register("l1")(lambda weight: weight)


def test_norms_on_numbers() -> None:
    weight = torch.tensor([[[3.0, -4.0]], [[1.0, 1.0]]])
    assert score("level", {"weight": weight}).tolist() == [[[3, 4]], [[1, 1]]]
    assert score("l1", {"weight": weight}).tolist() == [7, 2]
    assert score("l2", {"weight": weight}).tolist() == pytest.approx([5, 2**0.5])


def test_fpgm_equals_brute_force() -> None:
    weight = evidence()["weight"]
    expected = [sum(float((a - b).square().sum()) ** 0.5 for b in weight) for a in weight]
    assert score("fpgm", {"weight": weight}).tolist() == pytest.approx(expected, rel=1e-5)


def test_fpgm_finds_the_filter_that_the_others_can_replace() -> None:
    weight = torch.tensor([[0.0, 4], [4, 0], [0, -4], [-4, 0], [0.1, 0.1]]) + 10
    assert int(score("fpgm", {"weight": weight}).argmin()) == 4
    assert int(score("l1", {"weight": weight}).argmin()) != 4


def test_lamp_equals_its_formula() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    # 1/(1+4+9+16), 4/(4+9+16), 9/(9+16), 16/16.
    assert score("lamp", {"weight": weight}).flatten().tolist() == pytest.approx([1 / 30, 4 / 29, 9 / 25, 1])


def test_lamp_is_the_same_for_a_scaled_layer_and_one_at_its_largest_weight() -> None:
    weight = evidence()["weight"]
    assert torch.allclose(lamp(weight=weight), lamp(weight=weight * 64))
    assert float(lamp(weight=weight).max()) == 1.0


def test_wanda_is_magnitude_where_all_inputs_are_equally_strong() -> None:
    given = evidence() | {"input_norm": torch.full((36,), 2.5)}
    assert torch.allclose(score("wanda", given), score("level", given) * 2.5)


def test_wanda_gives_every_group_of_a_grouped_layer_its_own_norms() -> None:
    given = {"weight": -torch.ones(4, 1, 2), "input_norm": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    assert score("wanda", given).flatten(1).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_snip_sums_its_elements_and_bounds_taylor() -> None:
    given = evidence()
    by_element = score("snip-element", given)
    assert torch.allclose(by_element, score("gradient", given) * score("level", given))
    assert torch.allclose(score("snip", given), by_element.flatten(1).sum(dim=1))
    # |Σ g·w| ≤ Σ |g·w|, and equal where all products have one sign.
    assert bool((score("taylor", given).sqrt() <= score("snip", given)).all())
    same = given | {"grad": given["weight"]}
    assert torch.allclose(score("taylor", same).sqrt(), score("snip", same))


def test_apoz_keeps_the_channels_with_few_zeros() -> None:
    assert score("apoz", {"activation_zeros": torch.tensor([0.25, 1.0, 0.0])}).tolist() == [0.75, 0, 1]


def test_random_scores_depend_on_the_seed_alone() -> None:
    given = evidence()
    assert not torch.equal(score("random", given, seed=1), score("random", given, seed=2))
    assert torch.equal(score("random", given), score("random", evidence(seed=5)))
