from __future__ import annotations

import math

import pytest

from search_spaces.domains import Choice, Domain, FloatRange, IntRange


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Choice(("float", "u8", 3, True)), ["float", "u8", 3, True]),
        (IntRange(2, 8, 3), [2, 5, 8]),
        (IntRange(2, 7, 3), [2, 5]),
        (IntRange(-1, -1), [-1]),
    ],
)
def test_size_iteration_and_membership_agree(domain: Choice | IntRange, values: list[object]) -> None:
    assert list(domain) == values
    assert domain.size == len(values)
    assert all(value in domain for value in values)


@pytest.mark.parametrize(
    ("domain", "value"),
    [(Choice(("a",)), "b"), (IntRange(2, 8, 3), 4), (IntRange(2, 8), 9), (IntRange(2, 8), 2.5), (FloatRange(0, 1), "0.5")],
)
def test_what_is_outside_is_not_in_a_domain(domain: Domain, value: object) -> None:
    assert value not in domain


def test_a_float_range_is_closed_and_cannot_be_counted() -> None:
    domain = FloatRange(0.0, 0.5)
    assert 0 in domain and 0.5 in domain and 0.51 not in domain and math.nan not in domain
    assert domain.size == math.inf
    assert FloatRange(0.5, 0.5).size == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Choice(()), "a Choice needs at least one value, got none"),
        (lambda: Choice(("a", "a")), "a Choice must not repeat a value, got ('a', 'a')"),
        (lambda: IntRange(3, 2), "an IntRange needs low <= high and step >= 1, got 3..2 step 1"),
        (lambda: IntRange(1, 2, 0), "an IntRange needs low <= high and step >= 1, got 1..2 step 0"),
        (lambda: FloatRange(1.0, 0.0), "a FloatRange needs low <= high, got 1.0..0.0"),
        (lambda: FloatRange(math.nan, 0.0), "a FloatRange needs low <= high, got nan..0.0"),
    ],
)
def test_empty_domains_are_refused(make: object, text: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == text
