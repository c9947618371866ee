from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator

import pytest

from search_spaces.schemes import FLOAT, WHOLE
from search_spaces.space import LayerChoices, SearchSpace
from tuner.results import Assignment
from tuner.search import allocate as module
from tuner.search.allocate import allocate, front
from tuner.search.base import LinearCost, Problem, float_assignment

TENSOR, CHANNEL = "u8-asym-minmax/s8-sym-tensor", "u8-asym-minmax/s8-sym-channel"
MANY = tuple(f"u8-asym-p{i // 100:02d}.{i % 100:02d}/s8-sym-channel" for i in range(100))

Table = dict[str, dict[str, float]]
Links = tuple[tuple[str, str, float], ...]


def make_problem(cost: Table, damage: Table, links: Links = ()) -> Problem:
    layers = tuple(LayerChoices(name=name, op="Conv", input=f"{name}.in", options=tuple(options)) for name, options in cost.items())
    linear = LinearCost(1.0, cost, links)
    return Problem(SearchSpace(name="fake", layers=layers), ("latency",), 0, damage, lambda a: (linear(a),), linear)


def random_problem(layers: int, options: int, seed: int, trade: float = 0.0) -> Problem:
    """Damages over eight orders of magnitude; links of either sign, some to a layer that is not in the space.

    trade: how much of an option's cost follows from its damage; what is left is random."""
    source = random.Random(seed)
    cost: Table = {}
    damage: Table = {}
    for i in range(layers):
        size = 10 ** source.uniform(-2, 1)
        harm = {o: source.uniform(0, 8) for o in MANY[: options - 1]}
        damage[f"l{i}"] = {FLOAT: 0.0} | {o: 10**-digits for o, digits in harm.items()}
        dear = {o: trade * digits / 8 + (1 - trade) * source.random() for o, digits in harm.items()}
        cost[f"l{i}"] = {FLOAT: size} | {o: size * (0.3 + 0.8 * part) for o, part in dear.items()}
    ends = [f"l{i}" for i in range(layers)] + ["input"]
    links = tuple((source.choice(ends), source.choice(ends), source.uniform(-0.1, 0.3)) for _ in range(layers))
    return make_problem(cost, damage, links)


def everything(problem: Problem) -> Iterator[Assignment]:
    for choices in itertools.product(*(layer.options for layer in problem.space.layers)):
        yield dict(zip(problem.space.by_name, choices, strict=True))


def found(problem: Problem, max_damage: float) -> Assignment:
    answer = allocate(problem, max_damage)
    assert answer is not None
    return answer


@pytest.mark.parametrize("seed", range(40))
def test_it_costs_what_trying_everything_finds(seed: int) -> None:
    problem = random_problem(4, 4, seed)
    totals = sorted((problem.total_damage(a), problem.linear(a)) for a in everything(problem))
    source = random.Random(seed)
    levels = [0.0, math.inf, 10 ** source.uniform(-8, 0), source.choice(totals)[0], source.choice(totals)[0]]
    for level in levels:
        answer = found(problem, level)
        assert problem.total_damage(answer) <= level * (1 + 1e-9)
        assert problem.linear(answer) == pytest.approx(min(cost for damage, cost in totals if damage <= level), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_savings_from_nothing_cost_what_trying_everything_finds(seed: int) -> None:
    """Widths that save count as negative costs beside layers whose every cost is positive, with links between the latter."""
    source = random.Random(seed)
    cost: Table = {}
    damage: Table = {}
    for i in range(2):
        cost[f"channels:l{i}"] = {WHOLE: 0.0} | {f"keep-{n}": source.uniform(-3, 0.2) for n in (12, 8, 4)}
        cost[f"l{i}"] = {FLOAT: 2.0} | {option: source.uniform(0.5, 2.2) for option in (TENSOR, CHANNEL)}
    for name, options in cost.items():
        damage[name] = {option: 0.0 if option in (WHOLE, FLOAT) else source.uniform(0, 1) for option in options}
    problem = make_problem(cost, damage, (("l0", "l1", 0.3),))
    totals = sorted((problem.total_damage(a), problem.linear(a)) for a in everything(problem))
    for level in (0.0, 0.4, 1.0, math.inf):
        best = min(cost for damage, cost in totals if damage <= level)
        assert problem.linear(found(problem, level)) == pytest.approx(best, abs=1e-6)


def test_a_level_that_lies_just_above_the_optimum_does_not_hide_it() -> None:
    # With the level scaled to 1, the presolve of HiGHS cut this optimum off and returned 6.14 as the least cost.
    one, two, three = MANY[:3]
    cost = {
        "a": {FLOAT: 5.9510795393091405, one: 1.9994196339092025, two: 5.603027832941382, three: 4.185851367621491},
        "b": {FLOAT: 0.024598511261042278, one: 0.0212925202917694, two: 0.02079244704801475, three: 0.024172049890956462},
        "c": {FLOAT: 1.3490392971429233, one: 0.9512428815706888, two: 0.6557054674242953, three: 1.294688971585162},
        "d": {FLOAT: 0.5852891163233334, one: 0.3157407122247533, two: 0.18757658184980094, three: 0.2740027319113126},
    }
    damage = {
        "a": {one: 0.3880129530869088, two: 4.66020921866596e-08, three: 2.4545917255820574e-05},
        "b": {one: 3.435399596556281e-07, two: 5.865612722377278e-07, three: 1.578104433440262e-08},
        "c": {one: 2.3441580671355425e-05, two: 0.007476057453419789, three: 2.8869298910834722e-08},
        "d": {one: 0.001833587673904066, two: 0.5832863599281914, three: 0.011975479122149699},
    }
    links = (("a", "d", 0.04844588809599157), ("b", "d", 0.3072583492465288), ("a", "c", 0.012171109402700504))
    problem = make_problem(cost, damage, links)
    answer = found(problem, 0.38801329662686845)
    assert answer == {"a": one, "b": FLOAT, "c": three, "d": FLOAT}
    assert problem.linear(answer) == pytest.approx(4.952442121174731)


def test_a_saving_that_the_conversions_eat_up_is_not_taken() -> None:
    cost = {name: {FLOAT: 1.0, CHANNEL: 0.7} for name in ("a", "b", "c")}
    damage = {"a": {CHANNEL: 0.1}, "b": {CHANNEL: 0.1}, "c": {CHANNEL: 9.0}}
    dear = make_problem(cost, damage, (("a", "b", 0.4), ("b", "c", 0.7)))
    assert found(dear, 1.0) == {"a": FLOAT, "b": FLOAT, "c": FLOAT}
    cheap = make_problem(cost, damage, (("a", "b", 0.4), ("b", "c", 0.5)))
    assert found(cheap, 1.0) == {"a": CHANNEL, "b": CHANNEL, "c": FLOAT}
    assert found(dear, math.inf) == {"a": CHANNEL, "b": CHANNEL, "c": CHANNEL}


def test_a_link_to_something_outside_the_space_counts_as_one_to_float() -> None:
    problem = make_problem({"a": {FLOAT: 1.0, CHANNEL: 0.7}}, {"a": {CHANNEL: 0.1}}, (("input", "a", 0.2), ("a", "output", 0.2)))
    assert found(problem, 1.0) == {"a": FLOAT}
    assert found(make_problem({"a": {FLOAT: 1.0, CHANNEL: 0.7}}, {"a": {CHANNEL: 0.1}}, (("input", "a", 0.2),)), 1.0) == {"a": CHANNEL}


@pytest.mark.parametrize(("worse", "better"), [("b", "c"), ("c", "b")])
def test_of_equally_cheap_ones_the_least_damaging_is_taken(worse: str, better: str) -> None:
    cost = {name: {FLOAT: 1.0, TENSOR: 0.5} for name in ("a", "b", "c", "d")}
    cost["a"][CHANNEL], cost["d"][TENSOR] = 0.5, 1.0
    damage = {"a": {TENSOR: 3e-4, CHANNEL: 2e-4}, worse: {TENSOR: 7e-4}, better: {TENSOR: 6e-4}, "d": {TENSOR: 1e-4}}
    assert found(make_problem(cost, damage), math.inf) == {"a": CHANNEL, "b": TENSOR, "c": TENSOR, "d": FLOAT}
    assert found(make_problem(cost, damage), 9.1e-4) == {"a": CHANNEL, better: TENSOR, worse: FLOAT, "d": FLOAT}


@pytest.mark.parametrize("level", [-1e-12, math.nan])
def test_a_level_that_even_float_exceeds_has_no_assignment(level: float) -> None:
    assert allocate(random_problem(3, 3, 0), level) is None


def test_no_damage_at_all_still_allows_options_that_do_none() -> None:
    problem = make_problem({"a": {FLOAT: 1.0, CHANNEL: 0.5}, "b": {FLOAT: 1.0, CHANNEL: 0.5}}, {"a": {CHANNEL: 0.0}, "b": {CHANNEL: 1e-12}})
    assert found(problem, 0.0) == {"a": CHANNEL, "b": FLOAT}


def test_an_option_of_unknown_damage_or_cost_is_never_chosen() -> None:
    cost = {"a": {FLOAT: 1.0, TENSOR: 0.1, CHANNEL: 0.5}, "b": {FLOAT: 1.0, TENSOR: math.nan}}
    damage = {"a": {TENSOR: math.nan, CHANNEL: 0.2}, "b": {TENSOR: 0.0}}
    assert found(make_problem(cost, damage), math.inf) == {"a": CHANNEL, "b": FLOAT}
    damage["a"][TENSOR] = math.inf
    assert found(make_problem(cost, damage), math.inf) == {"a": CHANNEL, "b": FLOAT}


def test_without_time_it_falls_back_to_what_was_found_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(40, 30, 0)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    answer = found(problem, 0.01)
    assert problem.total_damage(answer) <= 0.01
    assert problem.linear(answer) <= problem.linear(float_assignment(problem.space))


def test_the_front_is_strictly_better_step_by_step_and_each_step_is_optimal() -> None:
    problem = random_problem(5, 4, 3)
    plans = front(problem, 12)
    costs, damages = [problem.linear(p) for p in plans], [problem.total_damage(p) for p in plans]
    assert 4 <= len(plans) <= 12
    assert costs == sorted(set(costs))
    assert damages == sorted(set(damages), reverse=True)
    assert costs[-1] < problem.linear(float_assignment(problem.space))
    whole = [(problem.linear(a), problem.total_damage(a)) for a in everything(problem)]
    assert costs[0] == pytest.approx(min(whole)[0])
    for cost, damage in zip(costs, damages, strict=True):
        assert cost == pytest.approx(min(c for c, d in whole if d <= damage * (1 + 1e-9)), abs=1e-6)


def test_the_front_reaches_from_the_cheapest_to_the_harmless() -> None:
    cost = {name: {FLOAT: 1.0, CHANNEL: 0.5} for name in ("a", "b", "c")}
    problem = make_problem(cost, {"a": {CHANNEL: 1e-6}, "b": {CHANNEL: 1e-3}, "c": {CHANNEL: 1.0}})
    assert front(problem, 24) == [
        {"a": CHANNEL, "b": CHANNEL, "c": CHANNEL},
        {"a": CHANNEL, "b": CHANNEL, "c": FLOAT},
        {"a": CHANNEL, "b": FLOAT, "c": FLOAT},
    ]
    assert front(problem, 1) == [{"a": CHANNEL, "b": CHANNEL, "c": CHANNEL}]


def test_the_front_is_empty_where_nothing_is_cheaper_than_float() -> None:
    assert front(make_problem({"a": {FLOAT: 1.0, CHANNEL: 1.5}, "b": {FLOAT: 1.0, CHANNEL: 1.0}}, {"a": {CHANNEL: 0.1}}), 24) == []
    assert front(make_problem({"a": {FLOAT: 1.0}}, {}), 24) == []


def test_the_front_of_harmless_options_is_one_plan() -> None:
    problem = make_problem({"a": {FLOAT: 1.0, CHANNEL: 0.5}}, {"a": {CHANNEL: 0.0}})
    assert front(problem, 24) == [{"a": CHANNEL}]


def test_a_front_of_real_size_is_the_same_every_time_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    problem = random_problem(20, 13, 5, trade=0.9)  # HiGHS prints twice while it solves these
    assert front(problem, 24) == front(problem, 24)
    os.write(1, b"results")
    assert capfd.readouterr() == ("results", "")
