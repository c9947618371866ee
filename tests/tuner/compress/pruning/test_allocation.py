from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tuner.compress.pruning.allocation import DISTRIBUTIONS, choose, distribute, group_scores, keep_counts, removals, units_of
from tuner.compress.pruning.channels import ChannelGroup, Slot
from tuner.compress.pruning.criteria import CRITERIA
from tuner.compress.pruning.patterns import removed_count
from tuner.errors import PlanError, UnknownName

SHAPES = {"stem": (8, 3, 3, 3), "middle": (16, 8, 3, 3), "wide": (32, 16, 3, 3), "gate": (4, 1), "fc": (10, 32)}
SENSITIVITY = {
    "stem": {0.5: 2.0, 0.9: 9.0},
    "middle": {1.0: 1.0},
    "wide": {0.5: 0.1, 0.9: 0.4},
    "gate": {1.0: 0.0},
    "fc": {0.3: 0.2, 0.6: 0.2},
}


def magnitudes(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).abs() * 2**index for index, (name, shape) in enumerate(SHAPES.items())}


def sizes() -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("how", list(DISTRIBUTIONS))
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3, 0.5, 0.77, 0.95, 0.995])
def test_counts_add_up_exactly_and_every_layer_keeps_something(how: str, ratio: float) -> None:
    found = removals(ratio, magnitudes(), how, sensitivity=SENSITIVITY)
    assert sum(found.values()) == math.ceil(round(ratio * sum(sizes().values()), 9))
    assert all(0 <= found[name] < size for name, size in sizes().items())


@pytest.mark.parametrize("how", list(DISTRIBUTIONS))
def test_ratios_give_the_same_counts_back(how: str) -> None:
    counts = removals(0.6, magnitudes(), how, sensitivity=SENSITIVITY)
    ratios = distribute(0.6, magnitudes(), how, sensitivity=SENSITIVITY)
    assert {name: removed_count(ratio, sizes()[name]) for name, ratio in ratios.items()} == counts


def test_uniform_takes_the_same_share_everywhere() -> None:
    assert removals(0.5, {"a": torch.ones(10), "b": torch.ones(20, 2)}) == {"a": 5, "b": 20}


def test_global_takes_the_lowest_of_all() -> None:
    scores = {"a": torch.tensor([1.0, 5, 6, 7]), "b": torch.tensor([2.0, 3, 8, 9])}
    assert removals(0.375, scores, "global") == {"a": 1, "b": 2}
    assert removals(0.375, {"a": scores["a"], "b": scores["b"] + 10}, "global") == {"a": 3, "b": 0}


def test_global_leaves_the_highest_of_a_layer_that_is_low_throughout() -> None:
    scores = {"low": torch.tensor([0.2, 0.1, 0.3]), "high": torch.tensor([5.0, 6, 7])}
    assert removals(2 / 3, scores, "global") == {"low": 2, "high": 2}


def test_lamp_is_a_global_threshold_on_lamp_scores() -> None:
    weights = magnitudes()
    counts = removals(0.4, weights, "lamp")
    scores = {name: CRITERIA["lamp"](weight=weight.double()) for name, weight in weights.items()}
    highest_removed = max(float(scores[name].flatten().sort().values[count - 1]) for name, count in counts.items() if count)
    assert all(int((score <= highest_removed).sum()) == counts[name] for name, score in scores.items())


def test_lamp_does_not_depend_on_the_scale_of_a_layer() -> None:
    weights = magnitudes()
    assert removals(0.7, weights, "lamp") == removals(0.7, weights | {"stem": weights["stem"] * 100}, "lamp")


def test_erk_equals_its_closed_form() -> None:
    shapes = {"a": (64, 32, 3, 3), "b": (128, 64, 3, 3)}
    counts = removals(0.8, {name: torch.empty(shape) for name, shape in shapes.items()}, "erk")
    kept = {name: math.prod(shape) - counts[name] for name, shape in shapes.items()}
    # Kept weights stand as 64 + 32 + 3 + 3 to 128 + 64 + 3 + 3.
    assert kept["a"] / kept["b"] == pytest.approx(102 / 198, rel=1e-3)


def test_erk_leaves_a_layer_whole_that_would_need_more_weights_than_it_has() -> None:
    counts = removals(0.5, {name: torch.empty(shape) for name, shape in SHAPES.items()}, "erk")
    density = {name: 1 - counts[name] / size for name, size in sizes().items()}
    assert density["gate"] == density["stem"] == density["fc"] == 1
    left = sum(sizes().values()) - sum(counts.values()) - sum(sizes()[name] for name in ("gate", "stem", "fc"))
    assert sizes()["middle"] - counts["middle"] == pytest.approx(left * 30 / (30 + 54), abs=1)


def test_water_filling_brings_all_layers_to_one_level_of_damage() -> None:
    scores = {name: torch.empty(1000) for name in "abc"}
    ratios = distribute(0.4, scores, "sensitivity", sensitivity={"a": {1.0: 1.0}, "b": {1.0: 2.0}, "c": {0.5: 4.0, 1.0: 40.0}})
    damage = [ratios["a"], 2 * ratios["b"], 8 * ratios["c"]]
    assert damage == pytest.approx([damage[0]] * 3, abs=0.01)
    # λ(1 + 1/2 + 1/8) = 3 · 0.4
    assert damage[0] == pytest.approx(1.2 / 1.625, abs=0.002)


def test_water_filling_empties_what_harms_nothing_first() -> None:
    scores = {"free": torch.empty(100), "dear": torch.empty(100)}
    assert removals(0.495, scores, "sensitivity", sensitivity={"free": {1.0: 0.0}, "dear": {1.0: 3.0}}) == {"free": 99, "dear": 0}


def test_water_filling_needs_every_layer() -> None:
    with pytest.raises(PlanError, match=r"needs the damage of every layer, got none for b"):
        removals(0.5, {"a": torch.ones(3), "b": torch.ones(3)}, "sensitivity", sensitivity={"a": {1.0: 1.0}})


def test_what_cannot_be_met_is_refused_with_the_most_that_can() -> None:
    with pytest.raises(
        PlanError, match=r"5 of 6 cannot be removed, because each of the 2 layers keeps at least one\. Remove .* at most 0\.666667"
    ):
        removals(0.9, {"a": torch.ones(3), "b": torch.ones(3)})
    with pytest.raises(PlanError, match=r"must be at least 0 and below 1"):
        removals(1.0, {"a": torch.ones(3)})
    with pytest.raises(UnknownName, match=r"unknown distribution 'unifrom'. Did you mean 'uniform'"):
        removals(0.5, {"a": torch.ones(3)}, "unifrom")


def test_channels_are_kept_by_normalised_scores() -> None:
    small = torch.tensor([1.0, 2, 3, 9])
    counts = keep_counts(0.5, {"a": small, "b": small * 1000})
    assert counts == {"a": 2, "b": 2}
    assert keep_counts(0.25, {"flat": torch.ones(4), "uneven": torch.tensor([0.1, 0.1, 9, 9])}) == {"flat": 4, "uneven": 2}


def group(*slots: Slot) -> ChannelGroup:
    return ChannelGroup("first", "channels", 3, slots, tuple(slot.node for slot in slots))


def slot(node: str, positions: tuple[tuple[int, ...], ...], role: str = "out", axis: int = 0) -> Slot:
    return Slot(f"{node}.w", axis, positions, role, node)  # type: ignore[arg-type]


SINGLE = ((0,), (1,), (2,))


def test_dependency_looks_at_all_that_is_tied_and_plain_at_the_first() -> None:
    tied = group(slot("first", SINGLE), slot("second", SINGLE), slot("reader", SINGLE, "in", 1))
    scores = {"first": torch.tensor([1.0, 2, 3]), "second": torch.tensor([600.0, 300, 0]), "reader": torch.tensor([0.0, 0, 1])}
    assert group_scores(tied, scores, "plain").tolist() == pytest.approx([0.5, 1, 1.5])
    assert group_scores(tied, scores, "dependency").tolist() == pytest.approx([1.25, 1, 0.75])
    assert group_scores(tied, scores, side="in").tolist() == pytest.approx([0, 0, 3])


def test_a_channel_of_several_positions_counts_all_of_them() -> None:
    heads = group(slot("qkv", ((0, 1), (2, 3), (4, 5))))
    assert group_scores(heads, {"qkv": torch.tensor([1.0, 1, 0, 2, 3, 5])}).tolist() == pytest.approx([0.5, 0.5, 2])


def test_a_layer_that_lacks_a_channel_has_no_say_about_it() -> None:
    padded = group(slot("first", ((0,), (1,), ())), slot("second", SINGLE))
    scores = {"first": torch.tensor([1.0, 3]), "second": torch.tensor([2.0, 2, 2])}
    assert group_scores(padded, scores, "plain").tolist() == pytest.approx([0.5, 1.5, 1])
    assert group_scores(padded, scores).tolist() == pytest.approx([0.75, 1.25, 1])


def test_scores_that_do_not_fit_a_group_are_refused() -> None:
    tied = group(slot("first", SINGLE), slot("reader", SINGLE, "in", 1))
    with pytest.raises(PlanError, match=r"no layer that makes the channels of group 'first' has scores. Score one of first"):
        group_scores(tied, {"reader": torch.ones(3)})
    with pytest.raises(PlanError, match=r"scores of 'first' must be a list of more than 2 channels, got shape \[2\]"):
        group_scores(tied, {"first": torch.ones(2)})


def test_the_highest_channels_stay_in_their_order() -> None:
    scores = torch.tensor([1.0, 9, 3, 3, 7])
    assert choose(scores, 3) == (1, 2, 4)
    assert choose(scores, 5) == (0, 1, 2, 3, 4)
    with pytest.raises(PlanError, match=r"a group of 5 channels keeps between 1 and 5 of them, got 0"):
        choose(scores, 0)


def test_units_are_what_each_reading_layer_sees_of_a_channel() -> None:
    flattened = group(slot("first", SINGLE), slot("fc", ((0, 1), (2, 3), (4, 5)), "in", 1))
    assert units_of([flattened]) == {"fc": [(0, 1), (2, 3), (4, 5)]}


def test_channels_go_where_they_hardly_count() -> None:
    """Both groups have a mean of 1. Four of eight go: at a common damage of 0.85, a loses 0.85 channels and b 3.15."""
    scores = {"a": torch.ones(4), "b": torch.tensor([0.1, 3.7, 0.1, 0.1])}
    assert keep_counts(0.5, scores, "sensitivity") == {"a": 3, "b": 1}
    assert keep_counts(0.5, scores, "uniform") == {"a": 2, "b": 2}
