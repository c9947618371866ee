"""What a result means, in words."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.job import COST_METRICS, Constraint, JobSpec
from tuner.results import Certificate, Findings, Outcome

WORST_LAYERS = 5


def spelled_out(job: JobSpec, metrics: Sequence[str]) -> JobSpec:
    """The job with every `auto` replaced by the metric it came to stand for, as it is written in results.

    metrics: the names that the checks resolved; top1 is among them only where there are labels."""
    own = "top1" if "top1" in metrics else "agreement"
    constraints = tuple(c.model_copy(update={"metric": own}) if c.metric == "auto" else c for c in job.constraints)
    named = tuple(dict.fromkeys(own if metric == "auto" else metric for metric in job.metrics))
    return job.model_copy(update={"constraints": constraints, "metrics": named})


def summary(job: JobSpec, best: Certificate, holdout: int) -> str:
    """The verdict in one sentence."""
    outcome, constraint = best.outcome, job.accuracy_constraint
    if not outcome.layers:
        return _original(job, outcome)
    gains = _gains(best)
    drop = (
        f"its drop in {constraint.metric} on {holdout:,} unseen rows is {_number(constraint, outcome.drop.value)}, "
        f"at most {_number(constraint, outcome.drop.upper)} at {outcome.drop.confidence:.4g} confidence"
    )
    if outcome.verdict == "met":
        return f"Target met: the best model is {gains}; {drop}."
    if outcome.verdict == "undecided":
        rows = f"; about {best.rows_needed:,} rows could decide it" if best.rows_needed else ""
        return f"Undecided: the best model is {gains}; {drop}, which {holdout:,} rows can neither certify nor refute{rows}."
    return f"Target missed ({_excess(job, outcome)}): the nearest model is {gains}; {drop}."


def _original(job: JobSpec, outcome: Outcome) -> str:
    target = " and ".join(constraint.sentence() for constraint in job.constraints)
    if outcome.verdict == "met":
        return f"Nothing was gained: no compressed model was both better and within the target ({target}), so the original is returned."
    return f"Target missed ({_excess(job, outcome)}): no model within the target was found ({target}); the original is returned."


def _excess(job: JobSpec, outcome: Outcome) -> str:
    """What is missed by most, and by how much."""
    worst = max(outcome.verdicts, key=lambda verdict: verdict.violation)
    if worst.metric in COST_METRICS:
        return f"{worst.metric} is {worst.violation:.1%} over its limit"
    of_this_metric = [constraint for constraint in job.constraints if constraint.metric == worst.metric]
    return f"{worst.metric} by {_number(of_this_metric[0], worst.violation)}"


def blame(outcome: Outcome, findings: Findings) -> tuple[str, ...]:
    """The compressed layers with the most predicted harm, worst first."""
    harms = {layer: findings.damage.get(layer, {}).get(scheme, 0.0) for layer, scheme in outcome.layers.items()}
    total = sum(harms.values()) or 1.0
    worst = sorted(harms, key=lambda layer: harms[layer], reverse=True)[:WORST_LAYERS]
    guilty = (layer for layer in worst if harms[layer] > 0)
    return tuple(f"{layer}: {harms[layer] / total:.0%} of the predicted harm ({outcome.layers[layer]})" for layer in guilty)


def advice(job: JobSpec, best: Certificate, findings: Findings) -> tuple[str, ...]:
    """What to try where the target was missed."""
    tips = []
    constraint = job.accuracy_constraint
    if best.outcome.verdict == "undecided" and best.rows_needed:
        tips.append(f"give at least {best.rows_needed:,} holdout rows, or ask for less confidence than {constraint.confidence or 0.95:.0%}")
    value = best.baseline.measurements.get(constraint.metric)
    if value is not None and _beyond(constraint, value.value):
        tips.append(f"the original itself reaches {value.value:.4g}; ask for no more than that, or for a max_drop from it")
    if job.space != "int8-full":
        tips.append("search a larger space: space: int8-full offers 16-bit activations and further ranges")
    too_much = best.outcome.verdicts[0].decision != "met"
    if best.outcome.layers and too_much and constraint.max_drop is not None:
        needed = best.outcome.drop.value if constraint.confidence is None else best.outcome.drop.upper
        tips.append(f"allow a larger drop: this model needs max_drop {needed:.3g}")
    worst = max(findings.sensitivity, key=lambda row: row.divergence, default=None)
    if worst is not None and best.outcome.layers and too_much:
        tips.append(f"keep the most sensitive layer in float: {worst.layer} (see sensitivity.csv)")
    return tuple(tips)


def _beyond(constraint: Constraint, value: float) -> bool:
    """Does the original itself break the limit?"""
    if constraint.at_least is not None:
        return value < constraint.at_least
    return constraint.at_most is not None and value > constraint.at_most


def _speed(outcome: Outcome) -> str:
    ratio = outcome.speedup
    if ratio.contains(1.0):
        return "not measurably different in speed"
    word, factor = ("faster", ratio.value) if ratio.value > 1 else ("slower", 1 / ratio.value)
    return f"{factor:.2f}× {word}"


def _gains(best: Certificate) -> str:
    """How much faster and smaller; for a job that asked for the size of the packed file, that too."""
    speed, size = _speed(best.outcome), _size(best.outcome.size_ratio)
    original, own = (each.measurements.get("compressed_size_bytes") for each in (best.baseline, best.outcome))
    if original is None or own is None:
        return f"{speed} and {size}"
    return f"{speed}, {size} and, packed, {_size(own.value / original.value)}"


def _size(ratio: float) -> str:
    return f"{1 / ratio:.1f}× smaller" if ratio <= 1 else f"{ratio:.1f}× larger"


def _number(constraint: Constraint, value: float) -> str:
    return f"{value:.2%}" if constraint.relative else f"{value:.4g}"
