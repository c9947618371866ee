from __future__ import annotations

import pytest

from tuner.report.figures import Cost, history, layer_strip, pareto_front, sensitivity_bars
from tuner.results import Interval, SensitivityRow, TrialResult, TrialState


def trial(number: int, state: TrialState = TrialState.COMPLETE, speedup: float | None = None) -> TrialResult:
    ratio = None if speedup is None else Interval(value=speedup, lower=speedup, upper=speedup)
    return TrialResult(number=number, state=state, assignment={"a": "s", "b": "float"}, plan_digest="", speedup=ratio)


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    assert pareto_front([(3, 1), (1, 3), (2, 2), (2, 4), (3, 3), (4, 1)]) == [(1, 3), (2, 2), (3, 1)]
    assert pareto_front([]) == []


def test_a_measured_speedup_goes_before_a_prediction() -> None:
    cost = Cost("latency_ms", 2.0, {"a": 0.25, "b": 0.125})
    assert cost.known(trial(0)) == 1.5
    assert cost.known(trial(0, speedup=4.0)) == 0.5
    assert cost.gain(trial(0)) is None
    assert cost.gain(trial(0, speedup=4.0)) == pytest.approx(4.0)
    assert Cost("latency_ms", None).known(trial(0)) is None


def test_what_is_whole_is_not_predicted_to_save() -> None:
    cost = Cost("latency_ms", 2.0, {"channels:a": 0.5, "a": 0.25})
    alone = trial(0).model_copy(update={"assignment": {"channels:a": "whole", "a": "s"}})
    both = trial(1).model_copy(update={"assignment": {"channels:a": "keep-8", "a": "s"}})
    assert (cost.known(alone), cost.known(both)) == (1.5, 0.5)


def test_sensitivity_and_strip_of_nothing_still_draw() -> None:
    assert "Nothing to draw" in sensitivity_bars([]).chart
    assert layer_strip([]).legend == ()
    worst = SensitivityRow(layer="z", op="Conv", scheme="s", divergence=0.5)
    least = SensitivityRow(layer="a", op="Conv", scheme="s", divergence=0.01)
    assert "2 layers, worst first; the worst is z" in sensitivity_bars([least, worst]).chart


def test_a_history_without_a_feasible_trial_marks_failures_only() -> None:
    found = history([trial(0), trial(1, TrialState.FAILED)], Cost("latency_ms", 2.0))
    assert found.remarks == ("Best speed-up over the original so far: no trial met the target and was measured.",)
    assert [words for _, words in found.legend] == ["failed"]
    assert "best-line" not in found.chart
