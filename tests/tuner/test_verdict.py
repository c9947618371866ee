from __future__ import annotations

from typing import Any

import pytest
from fake_executor import GOOD, HARM, findings, make_job

from tuner.job import Constraint
from tuner.plan import AppliedPlan, CompressionPlan
from tuner.results import Baseline, Certificate, Decision, Drop, Interval, Measurement, Outcome, Verdict
from tuner.verdict import advice, blame, spelled_out, summary

JOB = make_job(constraints=(Constraint(metric="top1", max_drop=0.02, confidence=0.95),))
LAYERS = {"a": GOOD, "c": GOOD}


def judged(decision: Decision, *, metric: str = "top1", violation: float = -0.01) -> Verdict:
    return Verdict(metric=metric, drop=0.01, lower=0.0, upper=0.015, confidence=0.975, decision=decision, violation=violation)


def certificate(*verdicts: Verdict, rows_needed: int | None = None, baseline: float = 0.9, **changes: Any) -> Certificate:
    decisions = {verdict.decision for verdict in verdicts}
    overall: Decision = "missed" if "missed" in decisions else "undecided" if "undecided" in decisions else "met"
    outcome = Outcome(
        measurements={},
        trial=3,
        plan_digest="d",
        drop=Drop(value=0.01, lower=0.0, upper=0.015, confidence=0.975),
        speedup=Interval(value=1.5, lower=1.4, upper=1.6),
        size_ratio=0.25,
        verdict=overall,
        verdicts=verdicts,
        layers=LAYERS,
    ).model_copy(update=changes)
    measured = {"top1": Measurement(metric="top1", value=baseline)}
    applied = AppliedPlan(plan=CompressionPlan(), model_sha256="0")
    return Certificate(baseline=Baseline(measurements=measured), outcome=outcome, applied=applied, rows_needed=rows_needed)


def test_a_packed_size_that_was_asked_for_is_told() -> None:
    found = certificate(judged("met"), size_ratio=0.98, speedup=Interval(value=1.0, lower=0.98, upper=1.02))
    sizes = [Measurement(metric="compressed_size_bytes", value=value, direction="lower") for value in (900.0, 500.0)]
    packed = "compressed_size_bytes"
    found = found.model_copy(
        update={
            "baseline": Baseline(measurements=found.baseline.measurements | {packed: sizes[0]}),
            "outcome": found.outcome.model_copy(update={"measurements": {packed: sizes[1]}}),
        }
    )
    gains = "not measurably different in speed, 1.0× smaller and, packed, 1.8× smaller"
    assert summary(JOB, found, 4000) == f"Target met: the best model is {gains}; {DROP}."


DROP = "its drop in top1 on 4,000 unseen rows is 0.01, at most 0.015 at 0.975 confidence"


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (certificate(judged("met")), f"Target met: the best model is 1.50× faster and 4.0× smaller; {DROP}."),
        (
            certificate(judged("met"), speedup=Interval(value=0.8, lower=0.7, upper=0.9), size_ratio=1.5),
            f"Target met: the best model is 1.25× slower and 1.5× larger; {DROP}.",
        ),
        (
            certificate(judged("met"), speedup=Interval(value=1.05, lower=0.98, upper=1.1)),
            f"Target met: the best model is not measurably different in speed and 4.0× smaller; {DROP}.",
        ),
        (
            certificate(judged("undecided", violation=0.001), rows_needed=12345),
            f"Undecided: the best model is 1.50× faster and 4.0× smaller; {DROP}, which 4,000 rows can neither certify nor refute; "
            "about 12,345 rows could decide it.",
        ),
        (
            certificate(judged("undecided", violation=0.001)),
            f"Undecided: the best model is 1.50× faster and 4.0× smaller; {DROP}, which 4,000 rows can neither certify nor refute.",
        ),
        (
            certificate(judged("missed", violation=0.0123)),
            f"Target missed (top1 by 0.0123): the nearest model is 1.50× faster and 4.0× smaller; {DROP}.",
        ),
        (
            certificate(judged("met"), judged("missed", metric="size_bytes", violation=0.25)),
            f"Target missed (size_bytes is 25.0% over its limit): the nearest model is 1.50× faster and 4.0× smaller; {DROP}.",
        ),
        (
            certificate(judged("met"), layers={}),
            "Nothing was gained: no compressed model was both better and within the target "
            "(top1 may get worse by at most 0.02, with 95% confidence), so the original is returned.",
        ),
        (
            certificate(judged("missed", violation=0.05), layers={}),
            "Target missed (top1 by 0.05): no model within the target was found "
            "(top1 may get worse by at most 0.02, with 95% confidence); the original is returned.",
        ),
    ],
)
def test_the_verdict_in_one_sentence(found: Certificate, sentence: str) -> None:
    assert summary(JOB, found, 4000) == sentence


def test_a_relative_drop_is_told_in_per_cent() -> None:
    job = make_job(constraints=(Constraint(metric="top1", max_drop=0.02, relative=True),))
    assert "its drop in top1 on 10 unseen rows is 1.00%, at most 1.50%" in summary(job, certificate(judged("met")), 10)
    assert summary(job, certificate(judged("missed", violation=0.005)), 10).startswith("Target missed (top1 by 0.50%)")


def test_the_sentence_is_about_accuracy_wherever_its_constraint_stands() -> None:
    job = make_job(constraints=(Constraint(metric="size_bytes", at_most=1000), *JOB.constraints))
    assert "its drop in top1 on 10 unseen rows" in summary(job, certificate(judged("met"), judged("met", metric="size_bytes")), 10)


def test_blame_goes_to_the_layers_with_the_most_predicted_harm() -> None:
    total = HARM["a"] + HARM["c"]
    assert blame(certificate(judged("missed")).outcome, findings()) == (
        f"c: {HARM['c'] / total:.0%} of the predicted harm ({GOOD})",
        f"a: {HARM['a'] / total:.0%} of the predicted harm ({GOOD})",
    )
    assert blame(certificate(judged("missed"), layers={}).outcome, findings()) == ()


def test_advice_names_the_ways_out() -> None:
    tips = advice(JOB, certificate(judged("undecided", violation=0.001), rows_needed=9000), findings())
    assert tips == (
        "give at least 9,000 holdout rows, or ask for less confidence than 95%",
        "search a larger space: space: int8-full offers 16-bit activations and further ranges",
        "allow a larger drop: this model needs max_drop 0.015",
        "keep the most sensitive layer in float: d (see sensitivity.csv)",
    )


def test_advice_names_the_point_estimate_where_that_decides() -> None:
    job = make_job(space="int8-full")
    tips = advice(job, certificate(judged("missed", violation=0.001)), findings())
    assert tips[0] == "allow a larger drop: this model needs max_drop 0.01"


@pytest.mark.parametrize(
    ("constraint", "baseline", "told"),
    [
        (Constraint(metric="top1", at_least=0.95), 0.9, True),
        (Constraint(metric="top1", at_least=0.85), 0.9, False),
        (Constraint(metric="top1", at_most=0.5), 0.9, True),
    ],
)
def test_a_limit_that_the_original_misses_is_pointed_out(constraint: Constraint, baseline: float, told: bool) -> None:
    tips = advice(make_job(constraints=(constraint,)), certificate(judged("missed", violation=0.01), baseline=baseline), findings())
    assert ("the original itself reaches 0.9; ask for no more than that, or for a max_drop from it" in tips) == told
    assert not any("max_drop 0.0" in tip for tip in tips)


def test_a_missed_cost_is_not_blamed_on_accuracy() -> None:
    tips = advice(JOB, certificate(judged("met"), judged("missed", metric="size_bytes", violation=0.2)), findings())
    assert not any("drop" in tip or "float" in tip for tip in tips)


@pytest.mark.parametrize(("metrics", "name"), [(("top1",), "top1"), (("agreement",), "agreement"), (("agreement", "top1"), "top1")])
def test_auto_is_spelled_out(metrics: tuple[str, ...], name: str) -> None:
    job = make_job(metrics=("auto", name), constraints=(Constraint(metric="auto", max_drop=0.1), Constraint(metric="mse", max_drop=0.1)))
    found = spelled_out(job, metrics)
    assert found.metrics == (name,)
    assert [constraint.metric for constraint in found.constraints] == [name, "mse"]
    assert found.constraints[0].max_drop == 0.1
