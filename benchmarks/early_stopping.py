"""What ending trials early saves, and how often its verdict is not that of all rows, on trials that are hard to decide.

Random damaging plans are scored once on every validation row. The scoring of each is then replayed with targets set around its true
drop, in several random orders of the rows, by the code that scores a real trial."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from plain_loop import Case, Report, add_case_arguments, for_each_case

from search_spaces.schemes import FLOAT
from tuner.data.dataset import Dataset
from tuner.data.metrics import Metric
from tuner.errors import TrialError
from tuner.evaluator import EARLY_ALPHA, Evaluator, first_output
from tuner.job import Constraint, parse_job
from tuner.measure.accuracy import EarlyTest, Split, run_rows, score
from tuner.measure.judge import Allowance
from tuner.measure.order import doubt_weights, draw_order
from tuner.measure.runtime import Session, environment
from tuner.plan import make_plan

SPACE = {
    "name": "damaging",
    "granularities": ["tensor", "channel"],
    "calibrations": ["minmax", "p99.9", "p99", "p97"],
}
LARGEST_DROP = 0.05
"""Plans that lose more are no borderline cases of any target that a user would set."""
BORDER = 0.003
BUCKETS = (0.0, 0.0005, 0.001, 0.002, BORDER, 0.01, 0.03)
"""Edges of |true drop - target|. Targets beyond BORDER show what easy verdicts cost; they are left out of the totals."""
MET_TOO_SOON, MISSED_TOO_SOON = "met, but all rows say missed", "missed, but all rows say met"


@dataclass(frozen=True)
class Scores:
    """One plan's outputs on every validation row, in the data's order."""

    layers: int
    drop: float
    discordance: float
    """Share of rows on which the original and the plan's model differ in being right."""
    outputs: NDArray[np.float32]


@dataclass(frozen=True)
class Replay:
    """One replayed trial: the target, the rows it took, and what was wrong with its verdict ("" if nothing)."""

    drop: float
    target: float
    rows: int
    wrong: str

    @property
    def margin(self) -> float:
        return abs(self.drop - self.target)


@dataclass(frozen=True)
class RowNumbers:
    """Stands in for the data: a batch is its row numbers, by which outputs that are known already are looked up."""

    known_labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.known_labels)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        return {"rows": rows}

    def labels(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.known_labels[rows]


def open_evaluator(case: Case, cache: Path, seed: int) -> Evaluator:
    train, test, rows = str(case.file("train")), str(case.file("test")), case.length("test")
    job = parse_job(
        {
            "model": str(case.model),
            "data": {
                "calibration": {"file": train, "rows": [0, 512]},
                "validation": {"file": test, "rows": [0, rows // 2]},
                "holdout": {"file": test, "rows": [rows // 2, rows]},
            },
            "constraints": [{"metric": "top1", "max_drop": 0.01}],
            "space": SPACE,
            "budget": {"threads": 1},
            "seed": seed,
        }
    )
    return Evaluator(job, cache)


def random_choices(evaluator: Evaluator, source: random.Random) -> dict[str, dict[str, Any]]:
    """A random subset of the layers, of random size, each with a random option."""
    share = source.random()
    chosen = {}
    for layer in evaluator.space.layers:
        if source.random() < share:
            chosen[layer.name] = source.choice([option for option in layer.options if option != FLOAT])
    return evaluator.space.decode(chosen)


def score_plans(evaluator: Evaluator, metric: Metric, plans: int, seconds: float, seed: int) -> Iterator[Scores]:
    """Plans with a drop of at most LARGEST_DROP, each scored on every row, until there are enough or the time is over."""
    source, split, started = random.Random(seed), evaluator.validation, time.monotonic()
    base = split.base_scores(metric)
    assert base is not None
    found = 0
    while found < plans and (found == 0 or time.monotonic() - started < seconds):
        choices = random_choices(evaluator, source)
        if not choices:
            continue
        try:
            session = Session(evaluator.build(make_plan(choices, 0), {})[1], evaluator.threads)
        except TrialError as error:
            print(f"a plan was left out: {error}", file=sys.stderr)
            continue
        outputs = np.concatenate(list(run_rows(split.dataset, first_output(session), np.arange(len(split)), split.batch)))
        drops = base - np.asarray(metric.per_sample(outputs, split.labels, split.reference))
        if drops.mean() <= LARGEST_DROP:
            found += 1
            yield Scores(len(choices), float(drops.mean()), float(np.abs(drops).mean()), outputs)


def replay(split: Split, metric: Metric, plan: Scores, target: float, seed: int) -> Replay:
    """The trial's scoring once more, in the order that `seed` gives, with `target` as the drop that is allowed."""
    assert split.labels is not None
    draw = draw_order(doubt_weights(split.reference), seed)
    known = Split(split.name, cast(Dataset, RowNumbers(split.labels)), len(split), split.reference, draw, split.scores)
    constraint = Constraint(metric=metric.name, max_drop=max(target, 0.0))
    allowed = Allowance(constraint=constraint, direction=metric.direction, allowed=target, scale=1.0)
    scored = score(known, lambda feed: plan.outputs[feed["rows"]], [metric], [EarlyTest(metric, allowed, target, EARLY_ALPHA)])
    met, truly = scored.decisions[0] == "met", plan.drop <= target
    wrong = "" if met == truly else MET_TOO_SOON if met else MISSED_TOO_SOON
    return Replay(plan.drop, target, len(scored.rows), wrong)


def replays(split: Split, metric: Metric, plan: Scores, targets: int, orders: int, seed: int) -> Iterator[Replay]:
    """Targets at random distances on both sides of the true drop, as many in every bucket; negative ones are left out, because
    no job can ask for them."""
    source = random.Random(seed)
    for low, high in pairwise(BUCKETS):
        for _ in range(targets):
            for side in (-1, 1):
                target = plan.drop + side * source.uniform(low, high)
                if target >= 0:
                    yield from (replay(split, metric, plan, target, source.randrange(2**32)) for _ in range(orders))


def bucket_rows(found: list[Replay], rows: int) -> list[dict[str, Any]]:
    """A line per bucket, and one for all within BORDER."""
    lines = []
    edges = [*pairwise(BUCKETS), (0.0, BORDER)]
    for low, high in edges:
        inside = [r for r in found if low <= r.margin < high]
        if not inside:
            continue
        counts = {kind: sum(r.wrong == kind for r in inside) for kind in (MET_TOO_SOON, MISSED_TOO_SOON)}
        # The test promises each kind of error its own rate: among the trials in which that error can happen.
        can = {MET_TOO_SOON: sum(r.drop > r.target for r in inside), MISSED_TOO_SOON: sum(r.drop <= r.target for r in inside)}
        lines.append(
            {
                "low": low,
                "high": high,
                "total": (low, high) == edges[-1],
                "trials": len(inside),
                "rows_used": sum(r.rows for r in inside) / (rows * len(inside)),
                "ended_early": sum(r.rows < rows for r in inside) / len(inside),
                "wrong": counts,
                "possible": can,
                "worst_margin": max((r.margin for r in inside if r.wrong), default=0.0),
            }
        )
    return lines


def table(case: str, plans: list[Scores], lines: list[dict[str, Any]], rows: int) -> str:
    drops = [plan.drop for plan in plans]
    discordance = float(np.median([plan.discordance for plan in plans]))
    text = [
        f"## {case}",
        "",
        f"{len(plans)} plans, true drops from {min(drops):.2%} to {max(drops):.2%}, {discordance:.1%} of the rows discordant "
        f"(median); {rows:,} validation rows; each kind of wrong verdict may have a rate of at most {EARLY_ALPHA:.0%}.",
        "",
        f"| distance of the true drop from the target, points | trials | rows used | ended early | {MET_TOO_SOON} | {MISSED_TOO_SOON} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        name = f"{100 * line['low']:g} to {100 * line['high']:g}"
        wrong = [f"{line['wrong'][kind]} of {line['possible'][kind]}" for kind in (MET_TOO_SOON, MISSED_TOO_SOON)]
        shown = f"all within {100 * BORDER:g}" if line["total"] else name
        text.append(f"| {shown} | {line['trials']:,} | {line['rows_used']:.1%} | {line['ended_early']:.1%} | {' | '.join(wrong)} |")
    worst = max((line["worst_margin"] for line in lines), default=0.0)
    text += ["", f"* the most by which a wrong verdict was wrong: {100 * worst:.2f} points" if worst else "* no verdict was wrong", ""]
    return "\n".join(text)


def study_case(case: Case, arguments: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        evaluator = open_evaluator(case, Path(folder), arguments.seed)
        metric, split = evaluator.metrics[0], evaluator.validation
        plans: list[Scores] = []
        found: list[Replay] = []
        for number, plan in enumerate(score_plans(evaluator, metric, arguments.plans, arguments.seconds, arguments.seed)):
            plans.append(plan)
            found += replays(split, metric, plan, arguments.targets, arguments.orders, arguments.seed + number)
            print(f"{case.name}: plan {number}, {plan.layers} layers, drop {plan.drop:.2%}", file=sys.stderr)
        lines = bucket_rows(found, len(split))
        kept = {
            "rows": len(split),
            "plans": [{"layers": plan.layers, "drop": plan.drop, "discordance": plan.discordance} for plan in plans],
            "buckets": lines,
            "wrong": [asdict(r) for r in found if r.wrong],
        }
        return table(case.name, plans, lines, len(split)), kept, False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_arguments(parser)
    parser.add_argument("--plans", type=int, default=80, help="[80]")
    parser.add_argument("--seconds", type=float, default=900.0, help="per case; what is done by then is reported [900]")
    parser.add_argument("--targets", type=int, default=2, help="per plan, bucket and side [2]")
    parser.add_argument("--orders", type=int, default=5, help="random orders of the rows per target [5]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    return for_each_case("early_stopping.py", arguments, environment(), lambda case: study_case(case, arguments))


if __name__ == "__main__":
    sys.exit(main())
