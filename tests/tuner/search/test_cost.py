from __future__ import annotations

import pytest
from fake_executor import FLOAT_BYTES, GOOD, POOR, findings, measured, space

from search_spaces.schemes import FLOAT
from tests.course_samples import widths, widths_problem
from tuner.results import Assignment, TrialResult, TrialState
from tuner.search.base import Problem, float_assignment
from tuner.search.cost import UNMEASURED, build_problem

SPACE = space((FLOAT, GOOD, POOR))


def problem(*objectives: str, **changes: object) -> Problem:
    return build_problem(SPACE, findings().model_copy(update=changes), objectives, 7)


def test_predictions_are_sums_over_layers() -> None:
    made = problem("latency", "size", "macs", "params", fixed_ms=0.5, fixed_bytes=10.0)
    assert made.predict({}) == pytest.approx((0.5 + 4.0, 10.0 + FLOAT_BYTES, 1000, 100))
    assert made.predict({"a": GOOD, "b": POOR}) == pytest.approx((0.5 + 0.3 + 0.295 + 2, 10 + 300 + 295 + 2000, 1000, 100))
    assert made.predict(float_assignment(SPACE)) == made.predict({})
    assert made.seed == 7


@pytest.mark.parametrize(
    ("objective", "value"),
    [("latency", 0.3 + 3), ("size", 3300), ("compressed_size", 3300), ("peak_memory", 3300), ("macs", 3300), ("top1", 0.008)],
)
def test_the_programme_minimizes_what_stands_for_the_first_objective(objective: str, value: float) -> None:
    assert problem(objective, "latency").linear({"c": GOOD}) == pytest.approx(value)


def test_links_cost_where_exactly_one_end_is_in_float() -> None:
    made = problem("latency", links=(("a", "b", 0.1), ("b", "c", 0.2)))
    plain = problem("latency")
    extras: list[tuple[Assignment, float]] = [
        ({}, 0.0),
        ({"a": GOOD}, 0.1),
        ({"b": GOOD}, 0.3),
        ({"a": GOOD, "b": POOR, "c": GOOD}, 0.0),
        ({"d": GOOD}, 0.0),
    ]
    for chosen, extra in extras:
        assert made.linear(chosen) - plain.linear(chosen) == pytest.approx(extra)


def test_an_option_without_a_measured_time_counts_as_slower_than_float() -> None:
    known = findings().latency_ms | {"a": {FLOAT: 2.0, GOOD: 0.5}, "b": {}}
    made = problem("latency", latency_ms=known)
    assert made.linear.options["a"] == {FLOAT: 2.0, GOOD: 0.5, POOR: 2.0 * UNMEASURED}
    assert made.linear.options["b"] == dict.fromkeys((FLOAT, GOOD, POOR), 0.0)


def test_harm_adds_up_and_float_does_none() -> None:
    made = problem("size")
    assert made.total_damage({"a": GOOD, "b": POOR, "c": FLOAT}) == pytest.approx(0.002 + 0.008)
    assert made.total_damage(float_assignment(SPACE)) == 0.0


def trial(metrics: dict[str, float]) -> TrialResult:
    found = {name: measured(name, value, lower=name != "top1") for name, value in metrics.items()}
    return TrialResult(number=0, state=TrialState.COMPLETE, assignment={"a": GOOD}, plan_digest="", measurements=found)


def test_trials_are_worth_what_was_measured_where_that_repeats() -> None:
    made = problem("top1", "size", "mse")
    assert made.values(trial({"top1": 0.9, "mse": 0.3})) == pytest.approx((-0.9, 3300, 0.3))
    assert made.values(trial({})) == pytest.approx((0.002, 3300, 0.002))
    assert problem("latency").values(trial({"latency_ms": 99.0})) == pytest.approx((3.3,))


def test_random_numbers_depend_on_the_seed_and_the_question() -> None:
    def draw(seed: int, attempt: int) -> float:
        return build_problem(SPACE, findings(), ("size",), seed).random(attempt).random()

    assert len({draw(seed, attempt) for seed in (1, 2) for attempt in (0, 1)}) == 4
    assert draw(1, 0) == draw(1, 0)


def test_savings_that_add_up_to_more_than_there_is_gain_no_more_than_a_thousandfold() -> None:
    made = widths_problem({"a": (6, 8, 9), "b": (3, 8, 12)}, {"a": (0.1, 0.2, 0.3), "b": (0.1, 0.2, 0.3)})
    assert made.predict(widths(a="keep-4", b="keep-4")) == (-11.0,)
    gains = [made.predicted_gain(chosen) for chosen in ({}, widths(b="keep-8"), widths(a="keep-4", b="keep-4"))]
    assert gains == pytest.approx([1.0, 5.0, 1000.0])
