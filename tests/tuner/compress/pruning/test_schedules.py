from __future__ import annotations

from itertools import pairwise

import pytest

from tuner.compress.pruning.schedules import SCHEDULES, Timing, exponential, fraction, sparsity
from tuner.errors import PlanError, UnknownName

STEPS = 24


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("final", [0.1, 0.5, 0.95])
def test_every_schedule_rises_to_exactly_one(name: str, final: float) -> None:
    course = [fraction(step, STEPS, name, final=final) for step in range(STEPS + 3)]
    assert all(before <= after for before, after in pairwise(course))
    assert 0 <= course[0]
    assert course[STEPS:] == [1.0, 1.0, 1.0]
    assert fraction(0, 0, name, final=final) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one-shot", [1, 1, 1, 1, 1]),
        ("linear", [0, 1 / 4, 1 / 2, 3 / 4, 1]),
        ("cubic", [0, 37 / 64, 7 / 8, 63 / 64, 1]),
        ("exponential", [(1 - 0.0625 ** (i / 4)) / 0.9375 for i in range(5)]),
        ("iterative", [(1 - 0.0625 ** (i / 4)) / 0.9375 for i in (1, 2, 3, 4, 4)]),
    ],
)
def test_closed_forms(name: str, expected: list[float]) -> None:
    """A final sparsity of 15/16 leaves halves of halves: 1/2, 1/4, 1/8 and 1/16."""
    assert [fraction(step, 4, name, final=0.9375, rounds=4) for step in range(5)] == pytest.approx(expected)


def test_cubic_is_the_formula_of_automated_gradual_pruning() -> None:
    """s_t = s_f + (s_i − s_f)(1 − t/n)³."""
    s_i, s_f, n = 0.2, 0.9, 30
    expected = [s_f + (s_i - s_f) * (1 - t / n) ** 3 for t in range(n + 1)]
    assert [sparsity(t, n, "cubic", s_f, initial=s_i) for t in range(n + 1)] == pytest.approx(expected)


def test_every_round_of_iterative_takes_the_same_share_of_what_is_left() -> None:
    """0.8 of the weights stay in each of 3 rounds of 10 steps; the last trains at the final sparsity."""
    left = [1 - sparsity(step, 30, "iterative", 1 - 0.8**3, rounds=3) for step in range(31)]
    assert left == pytest.approx([0.8] * 10 + [0.64] * 10 + [0.512] * 11)


def test_exponential_takes_the_same_share_in_every_step_and_is_linear_in_the_limit() -> None:
    left = [1 - sparsity(step, 10, "exponential", 0.9) for step in range(11)]
    assert [after / before for before, after in pairwise(left)] == pytest.approx([0.1**0.1] * 10)
    assert exponential(0.3, 1e-9, 1) == pytest.approx(0.3, abs=1e-6)
    assert exponential(0.3, 0.0, 1) == 0.3


def test_a_window_and_its_renewals() -> None:
    """From step 20 to step 60 of 80, every 16 steps: renewed at 36 and 52, and at the end."""
    timing = Timing("linear", start=0.25, end=0.75, every=16)
    assert timing.window(80) == (20, 60)
    assert [done for done in range(81) if timing.renews(done, 80)] == [36, 52, 60]
    assert [timing.fraction(done, 80, 0.5) for done in (0, 19, 20, 35, 36, 52, 59, 60, 80)] == [0, 0, 0, 0, 0.4, 0.8, 0.8, 1, 1]
    assert [done for done in range(81) if timing.settled(done, 80)] == list(range(60, 81))


def test_a_window_shorter_than_a_step_still_ends_at_one() -> None:
    timing = Timing("cubic", start=0.5, end=0.6)
    assert timing.fraction(1, 1, 0.5) == 1
    assert timing.settled(1, 1)
    assert Timing("cubic").settled(0, 0)


def test_iterative_settles_when_its_last_round_begins() -> None:
    timing = Timing("iterative", end=1.0, rounds=4)
    assert [done for done in range(41) if timing.settled(done, 40)] == list(range(30, 41))
    assert [done for done in range(41) if timing.renews(done, 40)] == [0, 10, 20, 30]
    assert [done for done in range(41) if Timing("one-shot").renews(done, 40)] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1, got start=0.5 and end=0.5"),
        ({"end": 1.2}, "got start=0 and end=1.2"),
        ({"every": 0}, "every >= 1 and rounds >= 1, got every=0 and rounds=4"),
        ({"rounds": 0}, "got every=1 and rounds=0"),
    ],
)
def test_a_wrong_timing_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Timing("linear", **options)  # type: ignore[arg-type]


def test_an_unknown_schedule_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'cubic'"):
        Timing("cubik")
