"""One plan in, one TrialResult out. The only place that sees both how models are compressed and how they are measured."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from search_spaces.capability import RuntimeTarget, load_target
from search_spaces.presets import load_preset
from search_spaces.space import QUANTIZE, SearchSpace, SpaceSpec, resolve
from search_spaces.structure import RECOVER
from tuner.calibration import Calibration
from tuner.compress.fusion import prepare
from tuner.compress.parts import parts_of
from tuner.compress.pipeline import Compressor
from tuner.compress.quantization.collect import exposing
from tuner.compress.quantization.placement import candidates
from tuner.compress.quantization.qdq import stored_weights
from tuner.compress.quantization.statistics import TensorStatistics
from tuner.data.dataset import Dataset, InputInfo
from tuner.data.metrics import Metric, resolve_metric
from tuner.data.roles import Roles, open_roles
from tuner.errors import JobError, StorageError, TrialError, disk_error, is_full
from tuner.files import plan_file, write_text
from tuner.job import COSTS, Budget, Constraint, JobSpec
from tuner.measure.accuracy import EarlyTest, Progress, Scored, Split, batch_rows, measure, open_split, paired_drop, score, silent
from tuner.measure.footprint import compressed_size
from tuner.measure.judge import Allowance, allowance, is_cost, judge_cost, judge_drop, judge_early
from tuner.measure.latency import Latency, alone, compare_latency, computing_in_turns
from tuner.measure.machine import processor_features
from tuner.measure.row_scores import keep_trial
from tuner.measure.runtime import Session, float_weights
from tuner.model.graph import Model
from tuner.model.layers import LayerInfo, layer_table, total_macs
from tuner.plan import AppliedPlan, CompressionPlan
from tuner.results import Assignment, Interval, Measurement, TrialResult, TrialState, Verdict
from tuner.structures import Structures, Variant, Variants, recovery_rows

if TYPE_CHECKING:
    from tuner.compress.restructure import Restructurer

EARLY_ALPHA = 0.05
"""Chance that ending a trial early gives another verdict than scoring all rows would, per direction."""
TRIAL_RESAMPLES = 200
LONGEST_TRAINING = 0.8
"""Share of a trial's seconds after which its training ends."""


class Evaluator:
    """Everything that judging plans for one job needs, loaded when first used and kept. `cache` is a folder for what can be
    read back after a restart."""

    def __init__(self, job: JobSpec, cache: Path, between: Callable[[], None] = lambda: None) -> None:
        self.job, self.cache = job, cache
        self.between = between
        """Called between blocks of work; may raise to end it."""
        cache.mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> Model:
        return Model.load(self.job.model)

    @cached_property
    def prepared(self) -> Model:
        return prepare(self.model)

    @cached_property
    def target(self) -> RuntimeTarget:
        return load_target(self.job.target.runtime)

    @cached_property
    def spec(self) -> SpaceSpec:
        return load_preset(self.job.space) if isinstance(self.job.space, str) else self.job.space

    @cached_property
    def space(self) -> SearchSpace:
        """The job's space for this model. JobError where nothing in the model can be compressed."""
        spec, target = self.spec, self.target
        parts, notes = parts_of(self.structures.base, spec) if spec.structural else ([], [])
        space = resolve(spec, candidates(self.prepared, target), target, target.processor(processor_features()), parts)
        if not any(layer.options for layer in space.layers):
            kinds = ", ".join(self.target.layers)
            why = f": {'; '.join(notes[:3])}" if notes else f"; it needs at least one of {kinds} with a float weight"
            raise JobError(f"model {self.job.model} has no layer that the space '{space.name}' can compress{why}", field="space")
        if RECOVER not in space.steps:
            return space
        rows = recovery_rows(self.job.budget, self.macs, len(self.roles.training or self.roles.calibration))
        recover = {"rows": rows} | space.steps[RECOVER]
        return space.model_copy(update={"steps": space.steps | {RECOVER: recover}})

    @property
    def quantizes(self) -> bool:
        return any(layer.step == QUANTIZE for layer in self.space.layers)

    @cached_property
    def roles(self) -> Roles:
        inputs = [InputInfo(i.name, i.dtype, i.shape) for i in self.model.inputs]
        return open_roles(self.job.data, inputs, self.cache, self.job.seed)

    @cached_property
    def metrics(self) -> list[Metric]:
        """The job's metrics, then those that only constraints or objectives name; each once."""
        names = [*self.job.metrics, *(c.metric for c in self.constraints), *(o for o in self.job.objectives if o not in COSTS)]
        return list({metric.name: metric for metric in map(self._metric, names)}.values())

    @cached_property
    def constraints(self) -> list[Constraint]:
        """The job's constraints on metrics, each with its metric's own name."""
        asked = [constraint for constraint in self.job.constraints if not is_cost(constraint)]
        return [constraint.model_copy(update={"metric": self._metric(constraint.metric).name}) for constraint in asked]

    @property
    def leading(self) -> Metric:
        """The metric of the first constraint that is not on a cost."""
        return self._metric(self.constraints[0].metric)

    def _metric(self, name: str) -> Metric:
        return resolve_metric(name, self.roles.validation.has_labels)

    @cached_property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs' shapes for one row of the data."""
        return {name: array.shape for name, array in self.roles.validation.batch(np.arange(1)).items()}

    @cached_property
    def layers(self) -> list[LayerInfo]:
        """The layer table for rows of the shape that the data has."""
        return layer_table(self.prepared, self.row_shapes)

    @cached_property
    def macs(self) -> int:
        return total_macs(self.layers)

    @cached_property
    def threads(self) -> int:
        """Threads for everything but latency."""
        return scoring_threads(self.job.budget)

    @cached_property
    def fixed_batch(self) -> int | None:
        return next((i.shape[0] for i in self.model.inputs if i.shape and i.shape[0] is not None), None)

    def batch(self, dataset: Dataset) -> int:
        return batch_rows(dataset, self.fixed_batch)

    @cached_property
    def baseline(self) -> Session:
        """The original, for scoring."""
        return Session(self.model.data, self.threads)

    @cached_property
    def timed_baseline(self) -> Session:
        """The original, with the target's threads."""
        return Session(self.model.data, self.job.target.threads)

    @cached_property
    def feed(self) -> dict[str, NDArray[Any]]:
        """One batch of the target's size, made of calibration rows."""
        size = self.fixed_batch or self.job.target.batch
        return self.roles.calibration.batch(np.arange(size) % len(self.roles.calibration))

    def split(self, name: str, dataset: Dataset, progress: Progress = silent) -> Split:
        return open_split(name, dataset, first_output(self.baseline), self.batch(dataset), self.job.seed, self.cache, progress)

    @cached_property
    def validation(self) -> Split:
        return self.split("validation", self.roles.validation)

    @cached_property
    def data_digest(self) -> str:
        return self.roles.calibration.digest()

    @cached_property
    def calibration(self) -> Calibration:
        symmetric = any("-sym-" in option.split("/")[0] for layer in self.space.layers for option in layer.options)
        return Calibration(self.roles.calibration, self.target, symmetric, self.fixed_batch, self.threads, self.between)

    @cached_property
    def statistics(self) -> dict[str, TensorStatistics]:
        """Of every tensor of the original that some plan could quantize; one pass over the calibration rows, then read from the cache."""
        return self.calibration.of(self.prepared, self.cache / "statistics.npz") if self.quantizes else {}

    @cached_property
    def compressor(self) -> Compressor:
        return Compressor(self.model, self.prepared, self.statistics, self.target, self.data_digest)

    @cached_property
    def structures(self) -> Structures:
        return Structures(self.model, self.cache, self._restructurer, computing_in_turns)

    def _restructurer(self, base: Model) -> Restructurer:
        from tuner.compress.restructure import Material, Restructurer

        roles, seconds = self.roles, LONGEST_TRAINING * self.job.budget.trial_seconds
        training = roles.training or roles.calibration
        material = Material(roles.calibration, training, self.fixed_batch, self.teacher, seconds, self.threads)
        return Restructurer(base, material, self.cache / "training", self.between)

    def teacher(self, tensors: Sequence[str]) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
        """The original as a teacher: feeds to its outputs and the named tensors."""
        session = Session(exposing(self.model, tensors), self.threads) if tensors else self.baseline
        names = [*dict.fromkeys((*self.baseline.output_names, *tensors))]
        return lambda feed: dict(zip(names, session.run(feed, names), strict=True))

    @cached_property
    def variants(self) -> Variants:
        original = Variant(self.compressor, self.macs, self.model.parameters)
        return Variants(original, self.structures, self.calibration, self.row_shapes)

    def allowances(self, split: Split) -> list[tuple[Metric, Allowance]]:
        """What each constraint on a metric allows on this split, in the job's order; costs have none."""
        known = {metric.name: metric for metric in self.metrics}
        asked = [(known[constraint.metric], constraint) for constraint in self.constraints]
        return [(metric, allowance(c, metric.direction, split.base_value(metric))) for metric, c in asked]

    def build(self, plan: CompressionPlan, timings: dict[str, float], progress: Progress = silent) -> tuple[AppliedPlan, bytes]:
        """The applied plan with its digest, and the file's bytes."""
        if plan.structure.steps:
            with step("structure", timings):
                trained = self.variants.of(plan, progress).trained_seconds
            if 0 < trained <= timings["structure"]:  # Made just now, and not taken from the cache.
                timings |= {"structure": timings["structure"] - trained, "recover": trained}
        compressor = self.variants.of(plan).compressor
        with step("resolve", timings):
            applied = compressor.resolve(plan)
        with step("build", timings):
            data = compressor.build(applied)
        return applied.model_copy(update={"result_sha256": hashlib.sha256(data).hexdigest()}), data

    def evaluate(
        self,
        number: int,
        plan: CompressionPlan,
        assignment: Assignment,
        *,
        aims: Mapping[str, float],
        measure_latency: bool,
        full: bool = False,
        progress: Progress = silent,
    ) -> TrialResult:
        """Compress, load, score on validation, and where every constraint is met so far, time. The applied plan and the scores of
        rows are kept in the cache.

        aims: {metric: largest drop on the whole validation set that counts as met}. full: score every row. Whatever breaks is
        raised as TrialError with the step that broke; JobCancelled passes through."""
        timings: dict[str, float] = {}
        applied, data = self.build(plan, timings, progress)
        if applied.structure is not None:
            self.structures.tensors(plan)
        write_text(plan_file(self.cache, number), applied.model_dump_json())
        with step("session", timings):
            session, notes = self.open(applied, data)
            notes = [*self.variants.of(plan).notes, *notes]
        with step("accuracy", timings):
            tests = [] if full or not self.job.early_stopping else self._tests(aims)
            scored = score(self.validation, first_output(session), self.metrics, tests, self.between)
            verdicts = self._verdicts(self.validation, scored, tests)
        keep_trial(self.cache, number, self.leading, scored)
        measurements = {m.name: measure(m, scored, self.validation, timings["accuracy"], self.job.target.name) for m in self.metrics}
        measurements |= self.costs(data, self.variants.of(plan))
        met = all(verdict.decision == "met" or verdict.violation <= 0 for verdict in verdicts)
        latency = None
        if measure_latency and met:
            with step("latency", timings):
                latency = self.time(session if self.threads == self.job.target.threads else Session(data, self.job.target.threads))
            measurements["latency_ms"] = self.latency_measurement(latency.candidate_ms, latency)
        verdicts += [judge_cost(c, measurements) for c in self.job.constraints if is_cost(c)]
        stopped = not scored.complete and any(verdict.decision == "missed" for verdict in verdicts)
        return TrialResult(
            number=number,
            state=TrialState.STOPPED if stopped else TrialState.COMPLETE,
            assignment=assignment,
            plan_digest=plan.digest(),
            measurements=measurements,
            verdicts=tuple(verdicts),
            speedup=latency.ratio if latency else None,
            notes=tuple(notes),
            timings=timings,
        )

    def open(self, applied: AppliedPlan, data: bytes) -> tuple[Session, list[str]]:
        """A session of a compressed model, and a note for every layer that the runtime left in float."""
        weights = stored_weights(onnx.ModelProto.FromString(data).graph, applied.layers)
        session, left = float_weights(data, list(weights), self.threads)
        slow = sorted(layer for name in left for layer in weights[name])
        return session, [f"{layer}: the runtime runs it in float ({applied.layers[layer].scheme})" for layer in slow]

    def time(self, candidate: Session, seconds: float = 0.25, least_blocks: int = 7, precision: float = 0.03) -> Latency:
        """The target's latency of the original and of a candidate, in turn, with nothing else of ours running."""
        with alone():
            return compare_latency(
                lambda: self.timed_baseline.run(self.feed),
                lambda: candidate.run(self.feed),
                seconds=seconds,
                least_blocks=least_blocks,
                precision=precision,
            )

    def costs(self, data: bytes, variant: Variant | None = None) -> dict[str, Measurement]:
        """Size, MACs and parameters of a compressed model, left out the original; its compressed size only where the job asks for it."""
        macs, params = (variant.macs, variant.params) if variant else (self.macs, self.model.parameters)
        found = {"size_bytes": float(len(data)), "macs": float(macs), "params": float(params)}
        asked = {*self.job.objectives, *(c.metric for c in self.job.constraints)}
        if asked & {"compressed_size", "compressed_size_bytes"}:
            found["compressed_size_bytes"] = float(compressed_size(data))
        units = {"macs": "", "params": ""}
        return {n: Measurement(metric=n, value=v, unit=units.get(n, "bytes"), direction="lower") for n, v in found.items()}

    def latency_measurement(self, milliseconds: float, latency: Latency) -> Measurement:
        return Measurement(
            metric="latency_ms",
            value=milliseconds,
            unit="ms",
            direction="lower",
            samples=latency.blocks,
            seconds=latency.seconds,
            target=self.job.target.name,
        )

    def _tests(self, aims: Mapping[str, float]) -> list[EarlyTest]:
        """Early tests for all constraints, or none: where one cannot be decided early, every row is needed anyway."""
        tests = []
        for metric, allowed in self.allowances(self.validation):
            if not metric.ends_early:
                return []
            tests.append(EarlyTest(metric, allowed, aims.get(metric.name, allowed.allowed), EARLY_ALPHA))
        return tests

    def _verdicts(self, split: Split, scored: Scored, tests: Sequence[EarlyTest]) -> list[Verdict]:
        if not scored.complete:
            found = []
            for test, decision in zip(tests, scored.decisions, strict=True):
                base = split.base_scores(test.metric)
                assert base is not None
                drops = test.allowance.sign * (base[scored.rows] - scored.scores[test.metric.name])
                drop, _ = split.draw.estimate(drops)
                found.append(judge_early(test.allowance, decision, test.aim, drop, len(drops), EARLY_ALPHA))
            return found
        return self.judge(split, scored, None, resamples=TRIAL_RESAMPLES)

    def judge(self, split: Split, scored: Scored, confidence: float | None, *, resamples: int = 1000, exact: bool = False) -> list[Verdict]:
        """Verdicts on a split that was scored whole. confidence: replaces the constraints' own, where they have one.
        exact: the candidate is the original, which differs from itself on no row of any data."""
        found = []
        for metric, allowed in self.allowances(split):
            sure = confidence if confidence is not None and allowed.constraint.confidence is not None else allowed.confidence
            nothing = Interval(value=0.0, lower=0.0, upper=0.0, confidence=sure)
            drop = nothing if exact else paired_drop(metric, scored, split, sure, self.job.seed, resamples)
            found.append(judge_drop(allowed, drop, len(split), "holdout" if split.name == "holdout" else "validation"))
        return found


def scoring_threads(budget: Budget) -> int:
    """Threads that one worker scores with."""
    if budget.threads is not None:
        return budget.threads
    return max(1, (os.cpu_count() or 1) // budget.parallel)


def first_output(session: Session) -> Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]:
    """Runs a session for its first output. A model with a fixed batch takes fewer rows too: the first one fills up."""
    name, fixed = session.output_names[:1], session.fixed_batch

    def run(feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        rows = len(next(iter(feed.values())))
        if fixed is None or rows >= fixed:
            return session.run(feed, name)[0]
        whole = {key: np.concatenate([array, np.repeat(array[:1], fixed - rows, axis=0)]) for key, array in feed.items()}
        return session.run(whole, name)[0][:rows]

    return run


@contextmanager
def step(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Times a step, and says which one it was if it breaks."""
    start = time.perf_counter()
    timings[name] = 0.0
    try:
        yield
    except (TrialError, StorageError):
        raise
    except OSError as error:
        if is_full(error):
            raise disk_error(error, name) from error
        raise TrialError(str(error), step=name, kind=type(error).__name__) from error
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise TrialError(str(error) or type(error).__name__, step=name, kind=type(error).__name__) from error
    finally:
        timings[name] = time.perf_counter() - start
