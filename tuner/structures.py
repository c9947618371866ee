"""The structured models of a job: made once for all plans that agree in their structure, and kept for the next process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.schemes import Frozen
from search_spaces.space import QUANTIZE
from search_spaces.structure import RECOVER
from tuner.calibration import Calibration
from tuner.compress.fusion import prepare, unfold
from tuner.compress.pipeline import Compressor
from tuner.compress.structure import changed_tensors, restored
from tuner.files import structure_file, tensors_file, write_text
from tuner.job import Budget
from tuner.model.graph import Model
from tuner.model.layers import layer_table, total_macs
from tuner.plan import CompressionPlan, Structure
from tuner.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from tuner.compress.restructure import Restructurer

KEPT = 2
"""Structured models that stay in memory."""

RECOVERY_SHARE = 0.6
"""Share of a trial's time that is meant for training, where a plan trains."""
TRAINED_TRIALS = 12
"""A search that trains is planned for at most so many trials, each of which gets more time."""
TRAINED_MACS_PER_SECOND = 1.5e10
"""Multiply-accumulates of training per second, three for each of the forward pass: 1.2e10 to 4.5e10 were measured on two cores."""
LEAST_RECOVERY_ROWS, MOST_PASSES = 512, 20

Progress = Callable[[int, int], None]


def recovery_rows(budget: Budget, macs: int, data_rows: int) -> int:
    """Rows that each structured model is trained on: what the budget leaves for a trial at an assumed speed, so that the same job trains
    the same on every machine; and no more than a fair number of passes over the data.

    macs: of one row's forward pass."""
    share = budget.seconds * budget.parallel / min(budget.trials, TRAINED_TRIALS)
    rows = int(RECOVERY_SHARE * min(share, budget.trial_seconds) / max(training_seconds(1, macs), 1e-9))
    return max(LEAST_RECOVERY_ROWS, min(rows, MOST_PASSES * data_rows))


def training_seconds(rows: int, macs: int) -> float:
    """About how long training on so many rows takes."""
    return 3 * macs * rows / TRAINED_MACS_PER_SECOND


class Made(Frozen):
    """What came out when a structure was made."""

    structure: Structure
    notes: tuple[str, ...] = ()
    trained_seconds: float = 0.0


Working = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Held during heavy work; gives a function to be called between its steps."""


@contextmanager
def _freely() -> Iterator[Callable[[], None]]:
    yield lambda: None


class Structures:
    """Makes and remembers structured models. `maker` is called when the first one has to be made: it brings in what trains."""

    def __init__(self, original: Model, cache: Path, maker: Callable[[Model], Restructurer], working: Working = _freely) -> None:
        """working: held while a structure is made."""
        self.original, self.cache = original, cache
        self._start, self._working = maker, working
        self._kept: OrderedDict[str, tuple[Model, Made]] = OrderedDict()

    @cached_property
    def base(self) -> Model:
        """The original with its BatchNormalization apart."""
        return unfold(self.original)

    @cached_property
    def maker(self) -> Restructurer:
        return self._start(self.base)

    def get(self, plan: CompressionPlan, progress: Progress = lambda _done, _total: None) -> tuple[Model, Made]:
        """The structured model of a plan, un-folded. One that was trained is read from the cache where it was made before."""
        plan = plan.structure
        digest = plan.digest()
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest]
        trained = plan.step(RECOVER) is not None
        found = self._read(digest) if trained else None
        if found is None:
            found = self._make(plan, progress)
            if trained:
                self._write(digest, found[1], found[0])
        self._kept[digest] = found
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found

    def tensors(self, plan: CompressionPlan) -> Path:
        """The file with the weights that a plan's structure changed; written now where it is not there."""
        digest = plan.structure.digest()
        if self._read(digest) is None:
            model, made = self.get(plan)
            self._write(digest, made, model)
        return tensors_file(self.cache, digest)

    def _make(self, plan: CompressionPlan, progress: Progress) -> tuple[Model, Made]:
        with self._working() as self.maker.turn:
            model, structure, notes, trained = self.maker.make(plan, progress)
        return model, Made(structure=structure, notes=tuple(notes), trained_seconds=trained)

    def _write(self, digest: str, made: Made, model: Model) -> None:
        """The record last: where it is, the weights are there too."""
        save_tensors(tensors_file(self.cache, digest), changed_tensors(self.base, made.structure, model))
        write_text(structure_file(self.cache, digest), made.model_dump_json(), durable=False)

    def _read(self, digest: str) -> tuple[Model, Made] | None:
        path = structure_file(self.cache, digest)
        if not path.is_file():
            return None
        made = Made.model_validate_json(path.read_text())
        return restored(self.base, made.structure, load_tensors(tensors_file(self.cache, digest))), made


@dataclass(frozen=True)
class Variant:
    """The original with a structure: what quantizes it, and what it costs."""

    compressor: Compressor
    macs: int
    params: int
    notes: tuple[str, ...] = ()
    trained_seconds: float = 0.0


@dataclass
class Variants:
    """What plans quantize: the original, or a structured model with statistics of its own. Two stay in memory: one that is asked for again
    and again, and the original."""

    original: Variant
    structures: Structures
    calibration: Calibration
    row_shapes: Mapping[str, tuple[int, ...]]
    """Of one row of the data."""
    _last: tuple[tuple[str, bool], Variant] | None = None

    def of(self, plan: CompressionPlan, progress: Progress = lambda _done, _total: None) -> Variant:
        """What the plan's structure makes of the original, ready to be quantized."""
        if not plan.structure.steps:
            return self.original
        key = (plan.structure.digest(), plan.step(QUANTIZE) is not None)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._make(plan, key[0], progress))
        return self._last[1]

    def _make(self, plan: CompressionPlan, digest: str, progress: Progress) -> Variant:
        model, made = self.structures.get(plan, progress)
        prepared, first = prepare(model), self.original.compressor
        statistics = {}
        if plan.step(QUANTIZE) is not None:
            statistics = self.calibration.of(prepared, self.structures.cache / "structures" / f"{digest}.statistics.npz")
        compressor = Compressor(first.original, prepared, statistics, first.target, first.data_sha256, made.structure)
        return Variant(compressor, total_macs(layer_table(prepared, self.row_shapes)), model.parameters, made.notes, made.trained_seconds)
