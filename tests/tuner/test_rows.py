from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tuner.plan import AppliedPlan, CompressionPlan, LayerQuant
from tuner.results import BaselineRows, Direction, RowScores
from tuner.rows import PlanChoices, TrialComparison, compare_trials

GOOD, POOR = "u8-asym-mse/s8-sym-channel", "u8-asym-minmax/s8-sym-tensor"
ROWS = (13, 10, 12, 11, 15)


def plan(**schemes: str) -> AppliedPlan:
    layers = {layer: LayerQuant(scheme=scheme) for layer, scheme in schemes.items()}
    return AppliedPlan(plan=CompressionPlan(), model_sha256="0" * 64, layers=layers)


def compared(
    base: Sequence[float],
    *trials: Sequence[float],
    plans: Sequence[AppliedPlan] | None = None,
    classes: tuple[int, ...] | None = None,
    direction: Direction = "higher",
    total: int = 5,
) -> TrialComparison:
    """Trials 3, 4, … on rows 13, 10, 12, 11 and 15 of the file."""
    whole = BaselineRows(metric="m", scores=tuple(base), direction=direction, total=total, rows=ROWS, classes=classes)
    scores = {3 + index: RowScores(metric="m", scores=tuple(own)) for index, own in enumerate(trials)}
    return compare_trials(whole, scores, plans or [plan() for _ in trials])


def test_what_was_right_and_is_wrong_is_lost_and_the_reverse_gained() -> None:
    found = compared([1, 1, 0, 1, 0], [0, 1, 1, 0, 1], [1, 1, 0, 1, 0])
    assert (found.metric, found.rows, found.whole, found.trials) == ("m", 5, True, (3, 4))
    first, second = found.flips
    assert (first.trial, first.lost, first.gained) == (3, 2, 2)
    assert (first.lost_rows, first.gained_rows) == ((11, 13), (12, 15))
    assert (second.trial, second.lost, second.gained, second.lost_rows, second.gained_rows) == (4, 0, 0, (), ())


def test_trials_are_compared_on_the_rows_that_all_have() -> None:
    found = compared([1, 1, 0, 1, 0], [0, 1, 1, 0, 1], [1, 0, 0], classes=(0, 1, 0, 1, 1))
    assert (found.rows, found.whole) == (3, False)
    assert [(flips.lost_rows, flips.gained_rows) for flips in found.flips] == [((13,), (12,)), ((10,), ())]
    assert sum(row.rows for row in found.classes) == 3


def test_rows_beyond_those_kept_are_not_the_whole_split() -> None:
    assert not compared([1] * 5, [1] * 5, total=6).whole


def test_a_metric_that_should_be_low_is_lost_by_growing_and_the_largest_change_comes_first() -> None:
    found = compared([0.5, 0.5, 0.5, 0.5, 0.5], [0.6, 0.9, 0.5 + 5e-7, 0.2, 0.4], direction="lower", classes=(0, 0, 0, 1, 1))
    (flips,) = found.flips
    assert (flips.lost, flips.gained) == (2, 2)
    assert (flips.lost_rows, flips.gained_rows) == ((10, 13), (11, 15))
    assert found.classes == ()


def test_scores_that_are_not_finite_are_lost_unless_both_are() -> None:
    (flips,) = compared([0.5, math.inf, 0.5, 0.5, 0.5], [math.inf, math.inf, math.nan, 0.9, 0.5], direction="lower").flips
    assert (flips.lost_rows, flips.gained_rows) == ((13, 11), ())


def test_classes_have_the_share_that_each_model_has_right() -> None:
    found = compared([1, 1, 0, 1, 0], [0, 1, 1, 0, 1], [1, 1, 0, 1, 1], classes=(7, 2, 7, 2, 2))
    two, seven = found.classes
    assert (two.label, two.rows, seven.label, seven.rows) == (2, 3, 7, 2)
    assert [two.original, *two.trials] == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert [seven.original, *seven.trials] == [0.5, 0.5, 0.5]


def test_lists_hold_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.rows.MOST_LISTED", 2)
    monkeypatch.setattr("tuner.rows.MOST_CLASSES", 3)
    found = compared([1] * 5, [0] * 5, classes=(4, 3, 2, 1, 0))
    (flips,) = found.flips
    assert (flips.lost, flips.lost_rows) == (5, (10, 11))
    assert [row.label for row in found.classes] == [0, 1, 2]


def test_plans_differ_where_a_choice_does() -> None:
    plans = [plan(a=GOOD, c=GOOD), plan(a=GOOD, b=POOR, c=POOR)]
    found = compared([1] * 5, [1] * 5, [1] * 5, plans=plans).plans
    assert found == (PlanChoices(layer="b", choices=("float", POOR)), PlanChoices(layer="c", choices=(GOOD, POOR)))


def test_a_single_trial_has_all_that_it_compressed() -> None:
    found = compared([1] * 5, [1] * 5, plans=[plan(b=POOR, a=GOOD)]).plans
    assert found == (PlanChoices(layer="b", choices=(POOR,)), PlanChoices(layer="a", choices=(GOOD,)))
