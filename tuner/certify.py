"""The verdict that counts: finalists from their files on disk, on rows that the search never saw."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from tuner.errors import TrialError, writing
from tuner.evaluator import Evaluator, first_output
from tuner.files import beside
from tuner.measure.accuracy import Scored, Split, baseline_scored, measure, score
from tuner.measure.footprint import peak_memory
from tuner.measure.judge import is_cost, judge_cost, nth_confidence
from tuner.measure.latency import Latency
from tuner.measure.runtime import Session, scratch
from tuner.measure.statistics import samples_needed
from tuner.model.graph import Model
from tuner.plan import CompressionPlan
from tuner.results import Baseline, Certificate, Decision, Drop, Interval, Measurement, Outcome, Verdict

LATENCY_SECONDS, LATENCY_BLOCKS, LATENCY_PRECISION = 4.0, 31, 0.008


def certify(evaluator: Evaluator, number: int, plan: CompressionPlan, attempt: int, path: Path) -> Certificate:
    """Write the finalist to `path`, load it again and measure everything on the holdout.

    attempt: 1 for the first finalist shown to the holdout, 2 for the next, … The n-th is tested at the error (1 - confidence) / 2ⁿ, so that
    the chance that any of them is certified wrongly stays within 1 - confidence (union bound)."""
    applied, data = evaluator.build(plan, {})
    with writing(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if applied.structure is not None:
            shutil.copyfile(evaluator.structures.tensors(plan), beside(path))
    candidate = Model.load(path)
    holdout = evaluator.split("holdout", evaluator.roles.holdout)
    session, notes = evaluator.open(applied, candidate.data)
    notes = [*evaluator.variants.of(plan).notes, *notes]
    started = time.perf_counter()
    scored = score(holdout, first_output(session), evaluator.metrics, (), evaluator.between)
    seconds = time.perf_counter() - started
    verdicts = evaluator.judge(holdout, scored, _confidence(evaluator, attempt), exact=plan.identity)
    target = evaluator.job.target.name
    measurements = {m.name: measure(m, scored, holdout, seconds, target) for m in evaluator.metrics}
    measurements |= evaluator.costs(candidate.data, evaluator.variants.of(plan))
    base_scores = baseline_scored(holdout, evaluator.metrics)
    baseline = {m.name: measure(m, base_scores, holdout, 0.0, target) for m in evaluator.metrics} | evaluator.costs(evaluator.model.data)
    timed = Session(path, evaluator.job.target.threads)
    latency = evaluator.time(timed, LATENCY_SECONDS, LATENCY_BLOCKS, LATENCY_PRECISION)
    _add_runtime(evaluator, path, latency, baseline, measurements)
    verdicts += [judge_cost(c, measurements) for c in evaluator.job.constraints if is_cost(c)]
    ratio = Interval(value=1.0, lower=1.0, upper=1.0) if plan.identity else latency.ratio
    outcome = Outcome(
        measurements=measurements,
        trial=number,
        plan_digest=plan.digest(),
        drop=_drop(verdicts),
        speedup=ratio,
        size_ratio=len(data) / len(evaluator.model.data),
        verdict=overall(verdicts),
        verdicts=tuple(verdicts),
        notes=tuple(notes),
        layers=applied.choices,
        file=path.name,
    )
    return Certificate(
        baseline=Baseline(measurements=baseline),
        outcome=outcome,
        applied=applied.model_copy(update={"notes": tuple(notes)}),
        rows_needed=_rows_needed(evaluator, holdout, scored, verdicts[0]),
    )


def overall(verdicts: list[Verdict]) -> Decision:
    """Missed if any is missed, met if all are met."""
    decisions = {verdict.decision for verdict in verdicts}
    return "missed" if "missed" in decisions else "undecided" if "undecided" in decisions else "met"


def _confidence(evaluator: Evaluator, attempt: int) -> float | None:
    asked = [c.confidence for c in evaluator.job.constraints if c.confidence is not None]
    return nth_confidence(max(asked), attempt) if asked else None


def _drop(verdicts: list[Verdict]) -> Drop:
    first = verdicts[0]
    return Drop(value=first.drop, lower=first.lower, upper=first.upper, confidence=first.confidence)


def _add_runtime(
    evaluator: Evaluator, path: Path, latency: Latency, baseline: dict[str, Measurement], measurements: dict[str, Measurement]
) -> None:
    """Latency of both, and the peak memory of both in fresh processes."""
    for into, value in ((baseline, latency.baseline_ms), (measurements, latency.candidate_ms)):
        into["latency_ms"] = evaluator.latency_measurement(value, latency)
    with scratch() as folder:
        for into, file in ((baseline, Path(evaluator.job.model)), (measurements, path)):
            try:
                peak = peak_memory(file, evaluator.feed, evaluator.job.target.threads, folder)
            except TrialError:
                continue
            into["peak_memory_bytes"] = Measurement(metric="peak_memory_bytes", value=peak, unit="bytes", direction="lower")


def _rows_needed(evaluator: Evaluator, holdout: Split, scored: Scored, verdict: Verdict) -> int | None:
    """How many rows would certify the first constraint for a model like this one, where the holdout's do not; None where they
    do, and where no number of rows would."""
    metric, limit = evaluator.allowances(holdout)[0]
    if verdict.upper * limit.scale <= limit.allowed:
        return None
    base = holdout.base_scores(metric)
    drop = max(verdict.drop * limit.scale, 0.0)
    if base is None or metric.bounds != (0.0, 1.0) or drop >= limit.allowed:
        return None
    discordance = float(np.abs(base[scored.rows] - scored.scores[metric.name]).mean())
    asked = limit.constraint.confidence
    confidence = limit.confidence if asked is None else nth_confidence(asked, 1)
    return samples_needed(limit.allowed, max(discordance, drop), confidence, drop)
