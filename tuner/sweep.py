"""How far each layer alone can be pruned: a metric on the validation rows, with a rising share of the layer's weights at zero.

The smallest weights of the layer go, nothing is trained, and all other layers stay as they are (Han et al., 2015, arXiv:1506.02626,
section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from search_spaces.space import SpaceSpec
from search_spaces.structure import SPARSIFY, SparsitySpec
from tuner.evaluator import Evaluator, first_output
from tuner.job import JobSpec
from tuner.measure.accuracy import measure, score
from tuner.measure.runtime import Session
from tuner.plan import make_plan


class Sweep:
    """The sweep of one job's model. early_stop: a layer that lost more of the metric than this is not pruned further."""

    def __init__(self, job: JobSpec, cache: Path, shares: Sequence[float], early_stop: float | None = None) -> None:
        keep = Evaluator(job, cache).spec.keep
        space = SpaceSpec(quantize=False, sparsity=SparsitySpec(shares=tuple(shares)), recovery=None, keep=keep)
        self.evaluator = Evaluator(job.model_copy(update={"space": space}), cache)
        self.shares, self.early_stop = tuple(shares), early_stop
        self.metric = self.evaluator.metrics[0]
        self.baseline = self.evaluator.validation.base_value(self.metric)
        self.layers = tuple(layer.target for layer in self.evaluator.space.layers)

    @property
    def rows(self) -> int:
        """Validation rows that every value is measured on."""
        return len(self.evaluator.validation)

    def run(self) -> Iterator[tuple[str, list[float | None]]]:
        """Each layer with the metric's value at each share; None where the sweep of the layer had ended."""
        for layer in self.evaluator.space.layers:
            values: list[float | None] = []
            for option in layer.options[1:]:
                values.append(None if self._lost(values) else self._value(layer.target, option))
            yield layer.target, values

    def _value(self, layer: str, option: str) -> float:
        evaluator, metric = self.evaluator, self.metric
        plan = make_plan({layer: {SPARSIFY: option}}, evaluator.job.seed, evaluator.space.steps)
        _, data = evaluator.build(plan, {})
        scored = score(evaluator.validation, first_output(Session(data, evaluator.threads)), [metric], (), evaluator.between)
        return measure(metric, scored, evaluator.validation, 0.0, evaluator.job.target.name).value

    def _lost(self, values: Sequence[float | None]) -> bool:
        """Whether the last value is worse than the original's by more than `early_stop`; after an end there is nothing more."""
        if self.early_stop is None or not values:
            return False
        last, sign = values[-1], 1 if self.metric.direction == "higher" else -1
        return last is None or sign * (self.baseline - last) > self.early_stop
