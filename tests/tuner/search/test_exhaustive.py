from __future__ import annotations

from collections import Counter

import pytest

from search_spaces.schemes import FLOAT
from search_spaces.space import LayerChoices, SearchSpace
from tuner.search.base import LinearCost, Problem
from tuner.search.exhaustive import grid, random_choice

TENSOR, CHANNEL = "u8-asym-minmax/s8-sym-tensor", "u8-asym-minmax/s8-sym-channel"


def make_problem(*options: tuple[str, ...], seed: int = 0) -> Problem:
    layers = tuple(LayerChoices(name=f"l{i}", op="Conv", input=f"t{i}", options=o) for i, o in enumerate(options))
    return Problem(SearchSpace(name="fake", layers=layers), ("latency",), seed, {}, lambda _: (0.0,), LinearCost(0.0, {}))


def test_grid_walks_the_whole_space_once_with_the_last_layer_fastest() -> None:
    problem = make_problem((FLOAT, TENSOR, CHANNEL), (FLOAT,), (FLOAT, CHANNEL))
    asked = [grid(problem, (), attempt) for attempt in range(7)]
    assert [a and tuple(a.values()) for a in asked] == [
        (FLOAT, FLOAT, FLOAT),
        (FLOAT, FLOAT, CHANNEL),
        (TENSOR, FLOAT, FLOAT),
        (TENSOR, FLOAT, CHANNEL),
        (CHANNEL, FLOAT, FLOAT),
        (CHANNEL, FLOAT, CHANNEL),
        None,
    ]
    assert list(asked[0] or ()) == ["l0", "l1", "l2"]


def test_grid_needs_no_list_of_a_huge_space() -> None:
    problem = make_problem(*[(FLOAT, TENSOR, CHANNEL)] * 100)
    last = grid(problem, (), 3**100 - 1)
    assert last == dict.fromkeys((f"l{i}" for i in range(100)), CHANNEL)
    assert grid(problem, (), 3**100) is None


def test_random_asks_for_nearly_all_float_and_for_nearly_all_quantized_plans() -> None:
    problem = make_problem(*[(FLOAT, TENSOR, CHANNEL)] * 40)
    shares = []
    for attempt in range(400):
        asked = random_choice(problem, (), attempt)
        assert asked is not None
        shares.append(sum(choice == FLOAT for choice in asked.values()) / 40)
    # The share is uniform: a tenth of the draws on either side, against none where every layer is drawn uniformly.
    assert sum(share <= 0.1 for share in shares) == pytest.approx(40, abs=20)
    assert sum(share >= 0.9 for share in shares) == pytest.approx(40, abs=20)
    assert sum(shares) / 400 == pytest.approx(0.5, abs=0.05)


def test_random_treats_the_options_of_a_layer_alike_and_leaves_a_layer_without_options() -> None:
    problem = make_problem((FLOAT, TENSOR, CHANNEL), (FLOAT,))
    drawn = [random_choice(problem, (), attempt) or {} for attempt in range(2000)]
    counts = Counter(a["l0"] for a in drawn)
    assert counts[TENSOR] == pytest.approx(500, abs=75)
    assert counts[CHANNEL] == pytest.approx(500, abs=75)
    assert {a["l1"] for a in drawn} == {FLOAT}


def test_random_depends_on_the_seed_of_the_job() -> None:
    options = [(FLOAT, TENSOR, CHANNEL)] * 20
    assert random_choice(make_problem(*options, seed=1), (), 5) == random_choice(make_problem(*options, seed=1), (), 5)
    assert random_choice(make_problem(*options, seed=1), (), 5) != random_choice(make_problem(*options, seed=2), (), 5)
