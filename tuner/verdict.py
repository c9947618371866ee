"""What a result means, in words."""

from __future__ import annotations

from tuner.job import JobSpec
from tuner.results import Certificate, Findings, Outcome

WORST_LAYERS = 5


def summary(job: JobSpec, best: Certificate, holdout: int) -> str:
    """The verdict in one sentence."""
    outcome, constraint = best.outcome, job.constraints[0]
    if not outcome.layers:
        if outcome.verdict == "met":
            return f"Nothing was gained: no compressed model in this space was both better and within the target ({constraint.sentence()}), so the original is returned."
        return f"Target missed ({constraint.sentence()}): neither the original nor any compressed model meets it; the original is returned."
    gains = f"{_speed(outcome)} and {_size(outcome)}"
    drop = f"its drop in {constraint.metric} on {holdout:,} unseen rows is {_number(job, outcome.drop.value)}, at most {_number(job, outcome.drop.upper)} at {outcome.drop.confidence:.4g} confidence"
    if outcome.verdict == "met":
        return f"Target met: the best model is {gains}; {drop}."
    if outcome.verdict == "undecided":
        rows = f"; about {best.rows_needed:,} rows could decide it" if best.rows_needed else ""
        return f"Undecided: the best model is {gains}; {drop}, which {holdout:,} rows can neither certify nor refute{rows}."
    over = max(verdict.violation for verdict in outcome.verdicts)
    return f"Target missed by {_number(job, over)}: the nearest model is {gains}; {drop}."


def blame(outcome: Outcome, findings: Findings) -> tuple[str, ...]:
    """The compressed layers with the most predicted harm, worst first."""
    harms = {layer: findings.damage.get(layer, {}).get(scheme, 0.0) for layer, scheme in outcome.layers.items()}
    total = sum(harms.values()) or 1.0
    worst = sorted(harms, key=lambda layer: harms[layer], reverse=True)[:WORST_LAYERS]
    return tuple(f"{layer}: {harms[layer] / total:.0%} of the predicted harm ({outcome.layers[layer]})" for layer in worst if harms[layer] > 0)


def advice(job: JobSpec, best: Certificate, findings: Findings) -> tuple[str, ...]:
    """What to try where the target was missed."""
    tips = []
    constraint = job.constraints[0]
    if best.outcome.verdict == "undecided" and best.rows_needed:
        tips.append(f"give at least {best.rows_needed:,} holdout rows, or ask for less confidence than {constraint.confidence or 0.95:.0%}")
    value = best.baseline.measurements.get(constraint.metric)
    if constraint.at_least is not None and value is not None and value.direction == "higher" and value.value < constraint.at_least:
        tips.append(f"the original itself reaches {value.value:.4g}; ask for at most that, or for a max_drop from it")
    if job.space != "int8-full":
        tips.append("search a larger space: space: int8-full offers 16-bit activations and further ranges")
    if best.outcome.layers and best.outcome.drop.value > 0:
        tips.append(f"allow a larger drop: this model needs max_drop {best.outcome.drop.upper:.3g}")
    worst = max(findings.sensitivity, key=lambda row: row.divergence, default=None)
    if worst is not None:
        tips.append(f"keep the most sensitive layer in float: {worst.layer} (see sensitivity.csv)")
    return tuple(tips)


def _speed(outcome: Outcome) -> str:
    ratio = outcome.speedup
    if ratio.contains(1.0):
        return "not measurably different in speed"
    word, factor = ("faster", ratio.value) if ratio.value > 1 else ("slower", 1 / ratio.value)
    return f"{factor:.2f}× {word}"


def _size(outcome: Outcome) -> str:
    ratio = outcome.size_ratio
    return f"{1 / ratio:.1f}× smaller" if ratio <= 1 else f"{ratio:.1f}× larger"


def _number(job: JobSpec, value: float) -> str:
    return f"{value:.2%}" if job.constraints[0].relative else f"{value:.4g}"
