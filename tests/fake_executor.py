"""An executor that computes its answers from the plan, in no time: what a study does can be tested without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_spaces.schemes import FLOAT
from search_spaces.space import LayerChoices, SearchSpace
from tuner.errors import JobCancelled
from tuner.job import Budget, Constraint, DataRef, DataSpec, JobSpec
from tuner.plan import AppliedPlan, CompressionPlan, LayerQuant
from tuner.results import (
    Baseline,
    Certificate,
    Decision,
    Drop,
    Findings,
    Interval,
    Measurement,
    Outcome,
    Preflight,
    SensitivityRow,
    TrialResult,
    TrialState,
    Verdict,
)

GOOD, POOR = "u8-asym-mse/s8-sym-channel", "u8-asym-minmax/s8-sym-tensor"
TWIN = "u8-asym-kl/s8-sym-channel"
"""Another range than GOOD's on the same kernel; it costs and saves the same."""
LAYERS = ("a", "b", "c", "d")
HARM = {"a": 0.002, "b": 0.004, "c": 0.008, "d": 0.016}
"""The drop that GOOD costs on each layer; POOR costs twice as much and saves a little more."""
BASELINE, ALLOWED, FLOAT_BYTES = 0.9, 0.02, 4000


def drop_of(choices: dict[str, Any]) -> float:
    return sum(HARM[layer] * {GOOD: 1, TWIN: 1, POOR: 2}.get(str(choice), 0) for layer, choice in choices.items())


def bytes_of(choices: dict[str, Any]) -> int:
    return FLOAT_BYTES - sum({GOOD: 700, TWIN: 700, POOR: 705}.get(str(choice), 0) for choice in choices.values())


def milliseconds_of(choices: dict[str, Any]) -> float:
    return bytes_of(choices) / 1000


def space(options: tuple[str, ...]) -> SearchSpace:
    return SearchSpace(name="fake", layers=tuple(LayerChoices(name=n, op="Gemm", input=f"{n}_in", options=options) for n in LAYERS))


def findings() -> Findings:
    return Findings(
        sensitivity=tuple(SensitivityRow(layer=layer, op="Gemm", scheme=GOOD, divergence=HARM[layer]) for layer in LAYERS),
        damage={layer: {FLOAT: 0.0, GOOD: HARM[layer], TWIN: HARM[layer], POOR: 2 * HARM[layer]} for layer in LAYERS},
        latency_ms={layer: {FLOAT: 1.0, GOOD: 0.3, TWIN: 0.3, POOR: 0.295} for layer in LAYERS},
        size_bytes={layer: {FLOAT: 1000, GOOD: 300, TWIN: 300, POOR: 295} for layer in LAYERS},
        fixed_ms=0.0,
        fixed_bytes=0.0,
        macs=1000,
        params=100,
    )


def make_job(**changes: Any) -> JobSpec:
    job = JobSpec(
        model="model.onnx",
        data=DataSpec(validation=DataRef(file="data.npz")),
        metrics=("top1",),
        constraints=(Constraint(metric="top1", max_drop=ALLOWED),),
        objectives=("size",),
        strategy="random",
        budget=Budget(trials=12, seconds=1000),
    )
    return job.model_copy(update=changes)


def measured(metric: str, value: float, lower: bool = True) -> Measurement:
    return Measurement(metric=metric, value=value, direction="lower" if lower else "higher")


@dataclass
class FakeExecutor:
    """allowed: what the constraint allows. before: called with each call's name and arguments, may raise or count.
    shift: {trial: how much worse it is on the holdout}. slower: how much slower than predicted everything compressed runs."""

    job: JobSpec
    allowed: float = ALLOWED
    before: Callable[[str, dict[str, Any]], None] = lambda *_: None
    shift: dict[int, float] = field(default_factory=dict)
    slower: float = 1.0
    doubt: float = 0.0
    options: tuple[str, ...] = (FLOAT, GOOD, POOR)
    early: bool = False
    """Whether trials come back judged on a part of the rows."""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    closed: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def call(self, name: str, arguments: dict[str, Any], *, timeout: float, progress: Callable[[int, int], None] = lambda *_: None) -> Any:
        assert timeout > 0
        self.calls.append((name, arguments))
        self.before(name, arguments)
        if self.cancelled.is_set():
            raise JobCancelled("the job was cancelled")
        progress(1, 1)
        result = getattr(self, f"_{name}")(**arguments)
        return result if isinstance(result, dict) else result.model_dump(mode="json")

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True

    def evaluated(self) -> list[dict[str, Any]]:
        """The assignments of all trials, in the order asked."""
        return [arguments["assignment"] for name, arguments in self.calls if name == "evaluate"]

    def _prepare(self) -> dict[str, list[str]]:
        return {"notes": ["a note"]}

    def _baseline(self, notes: list[str]) -> Preflight:
        return Preflight(
            space=space(self.options),
            baseline=Baseline(measurements={"top1": measured("top1", BASELINE, False), "size_bytes": measured("size_bytes", FLOAT_BYTES)}),
            metrics=("top1",),
            allowed={"top1": self.allowed},
            rows={"calibration": 10, "training": 0, "validation": 100, "holdout": 100},
            notes=tuple(notes),
        )

    def _calibrate(self) -> dict[str, int]:
        return {"tensors": 4, "rows": 10}

    def _survey(self) -> Findings:
        return findings()

    def _aims(self, discordance: float) -> dict[str, float]:
        return {"top1": self.allowed + discordance}

    def _evaluate(
        self, number: int, plan: dict[str, Any], assignment: dict[str, Any], aims: dict[str, float], measure_latency: bool, full: bool
    ) -> TrialResult:
        assert aims == {"top1": self.allowed}
        verdict = self._verdict(drop_of(assignment), "validation", 0.95)
        if self.early and not full:
            verdict = verdict.model_copy(update={"rule": "anytime-valid test", "samples": 40})
        costs = {"size_bytes": measured("size_bytes", bytes_of(assignment))}
        timed = measure_latency and verdict.decision == "met"
        if timed:
            costs["latency_ms"] = measured("latency_ms", milliseconds_of(assignment))
        verdicts = (verdict, *self._cost_verdicts(costs))
        return TrialResult(
            number=number,
            state=TrialState.COMPLETE,
            assignment=assignment,
            plan_digest=CompressionPlan.model_validate(plan).digest(),
            measurements={"top1": measured("top1", BASELINE - drop_of(assignment), False)} | costs,
            verdicts=verdicts,
            speedup=self._speedup(assignment) if timed else None,
            timings={"accuracy": 0.5},
        )

    def _certify(self, number: int, plan: dict[str, Any], attempt: int, path: str) -> Certificate:
        applied = CompressionPlan.model_validate(plan)
        choices = applied.layers("quantize")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(f"model {number}".encode())
        confidence = 1 - 0.05 / 2**attempt
        drop = drop_of(choices) + self.shift.get(number, 0.0)
        costs = {"size_bytes": measured("size_bytes", bytes_of(choices)), "latency_ms": measured("latency_ms", milliseconds_of(choices))}
        verdict = self._verdict(drop, "holdout", confidence)
        verdicts = (verdict, *self._cost_verdicts(costs))
        decisions = [each.decision for each in verdicts]
        overall: Decision = "missed" if "missed" in decisions else "undecided" if "undecided" in decisions else "met"
        outcome = Outcome(
            measurements={"top1": measured("top1", BASELINE - drop, False)} | costs,
            trial=number,
            plan_digest=applied.digest(),
            drop=Drop(value=drop, lower=verdict.lower, upper=verdict.upper, confidence=confidence),
            speedup=self._speedup(choices),
            size_ratio=bytes_of(choices) / FLOAT_BYTES,
            verdict=overall,
            verdicts=verdicts,
            layers={layer: str(choice) for layer, choice in choices.items()},
            file=Path(path).name,
        )
        baseline = {"top1": measured("top1", BASELINE, False), "size_bytes": measured("size_bytes", FLOAT_BYTES)}
        layers = {layer: LayerQuant(scheme=str(choice)) for layer, choice in choices.items()}
        return Certificate(
            baseline=Baseline(measurements=baseline),
            outcome=outcome,
            applied=AppliedPlan(plan=applied, model_sha256="0" * 64, layers=layers),
            rows_needed=None,
        )

    def _speedup(self, choices: dict[str, Any]) -> Interval:
        ratio = FLOAT_BYTES / 1000 / milliseconds_of(choices) / (self.slower if choices and bytes_of(choices) < FLOAT_BYTES else 1.0)
        return Interval(value=ratio, lower=ratio * 0.99, upper=ratio * 1.01)

    def _verdict(self, drop: float, split: str, confidence: float) -> Verdict:
        upper = drop + self.doubt
        met: Decision = "met" if upper <= self.allowed else "missed" if drop > self.allowed else "undecided"
        return Verdict.model_validate(
            {
                **{"metric": "top1", "drop": drop, "lower": drop - self.doubt, "upper": upper, "confidence": confidence, "decision": met},
                **{"violation": upper - self.allowed, "split": split, "samples": 100, "rule": "bound"},
            }
        )

    def _cost_verdicts(self, costs: dict[str, Measurement]) -> list[Verdict]:
        found = []
        for constraint in self.job.constraints:
            if constraint.metric in costs and constraint.at_most is not None:
                over = costs[constraint.metric].value - constraint.at_most
                decision: Decision = "met" if over <= 0 else "missed"
                share = over / constraint.at_most
                found.append(
                    Verdict(metric=constraint.metric, drop=over, lower=over, upper=over, confidence=1, decision=decision, violation=share)
                )
        return found
