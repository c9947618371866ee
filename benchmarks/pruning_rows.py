"""What pruning.py measures: every row of its tables as a function that gives the row's numbers.

Models are made as a job makes them (Evaluator and Restructurer), with one budget of training, seed and loss for all, and scored by
onnxruntime on the exported file. The channels of the other side (magnitude_pruner.py) go through the same training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import magnitude_pruner
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from plain_loop import Case

from search_spaces.domains import Scalar
from search_spaces.schemes import ChannelScheme, SparsityScheme
from search_spaces.space import SpaceSpec
from search_spaces.structure import CHANNELS, EVERY_LAYER, FACTORIZE, RECOVER, SPARSIFY, RankSpec
from tuner.compress.fusion import prepare, unfold
from tuner.compress.parts import parts_of
from tuner.compress.pruning.channels import find_groups
from tuner.compress.pruning.criteria import CRITERIA
from tuner.compress.pruning.norms import recalibrate_norms
from tuner.compress.pruning.removal import mask_channels, prove, remove_channels
from tuner.compress.restructure import EVIDENCE_BATCH, EVIDENCE_ROWS, Restructurer
from tuner.evaluator import Evaluator, first_output
from tuner.job import parse_job
from tuner.measure.accuracy import Split, score
from tuner.measure.footprint import compressed_size
from tuner.measure.runtime import Session
from tuner.model.graph import Model, seal, serialize
from tuner.model.layers import layer_table, total_macs
from tuner.model.torch_view import torch_view
from tuner.plan import CompressionPlan, Step, plan_of
from tuner.search.allocate import front
from tuner.search.cost import build_problem
from tuner.survey import survey

SEED = 0
EXACT_SHARE, EXACT_SEEDS, EXACT_ROWS = 0.3, 3, 32
LEVELS = 100
"""Damage levels of the walk that finds the measured widths."""
MOST_UNIFORM = 90
"""Per cent of the channels of every group."""
ZEROS_OVER_LAYERS = "erk"
"""How zeros are divided among layers, the same for all methods."""
ZERO_METHODS: dict[str, dict[str, str]] = {
    "level": {"pruner": "level"},
    "wanda": {"criterion": "wanda"},
    "sparsegpt": {"criterion": "sparsegpt"},
    "agp": {"pruner": "agp"},
    "lottery": {"pruner": "lottery"},
    "admm": {"pruner": "admm"},
    "movement": {"pruner": "movement"},
}
AT_ONCE = ("level", "wanda", "sparsegpt")
"""The others cut while they train: there is nothing to score before."""
RANK_METHODS = ("spatial-svd", "channel-svd", "tucker2")
SAME_FUNCTION = 1e-4

Numbers = dict[str, Any]
Keep = Callable[[str, Callable[[], Numbers]], Numbers]
"""(key, measure) -> what an earlier run kept under the key, else what is measured now."""


@dataclass(frozen=True)
class Settings:
    """What decides the numbers. Shares are per cent."""

    rows: int
    """Training rows that every model sees in all."""
    test_rows: int
    calibration_rows: int
    channels: tuple[int, ...] = (30, 50)
    zeros: tuple[int, ...] = (50, 70, 80, 90)
    ranks: tuple[int, ...] = (25, 50, 75)
    exact_seeds: int = EXACT_SEEDS


class Bench:
    """One case. keep: for what rows share and a second run must not decide anew."""

    def __init__(self, case: Case, settings: Settings, cache: Path, threads: int | None, keep: Keep) -> None:
        self.case, self.settings, self.keep = case, settings, keep
        self.evaluator = Evaluator(_job(case, settings, threads), cache)
        self.recover = Step(name=RECOVER, options={"rows": settings.rows})
        self._pruned: dict[tuple[int, bool], magnitude_pruner.Pruned] = {}

    def rows(self) -> dict[str, Callable[[], Numbers]]:
        """{key: measure}. Keys: channels/<per cent of MACs>/<widths>/<criterion>, zeros/<per cent>/<method>, ranks/<per cent>/<method>."""
        found: dict[str, Callable[[], Numbers]] = {}
        for percent in self.settings.channels:
            at = f"channels/{percent}"
            found |= {f"{at}/measured/{name}": partial(self.channels, "measured", percent, name) for name in _channel_criteria()}
            for widths in ("for-macs", "uniform"):
                found |= {f"{at}/{widths}/{name}": partial(self.channels, widths, percent, name) for name in ("l1", "taylor")}
            found[f"{at}/torch-pruning/each-layer"] = partial(self.other_side, percent, False)
            found[f"{at}/torch-pruning/all-layers"] = partial(self.other_side, percent, True)
            found |= {f"{at}/its-widths/{name}": partial(self.channels, "its-widths", percent, name) for name in ("l1", "taylor")}
        for percent in self.settings.zeros:
            found |= {f"zeros/{percent}/{name}": partial(self.zeros, percent, name) for name in ZERO_METHODS}
        for percent in self.settings.ranks:
            found |= {f"ranks/{percent}/{name}": partial(self.ranks, percent, name) for name in RANK_METHODS}
        return found

    def original(self) -> Numbers:
        return self._costs(self.evaluator.model.data) | {"right": self._right(self.evaluator.baseline)}

    def channels(self, widths: str, percent: int, criterion: str) -> Numbers:
        layers: dict[str, Scalar] = {**self.widths(widths, percent)}
        return self._row(Step(name=CHANNELS, layers=layers, options={"criterion": criterion}))

    def zeros(self, percent: int, method: str) -> Numbers:
        layers: dict[str, Scalar] = {EVERY_LAYER: SparsityScheme(ratio=percent / 100).name}
        options = {"distribution": ZEROS_OVER_LAYERS, **ZERO_METHODS[method]}
        return self._row(Step(name=SPARSIFY, layers=layers, options=options), before=method in AT_ONCE)

    def ranks(self, percent: int, method: str) -> Numbers:
        """All layers that can lose the share are split; the others stay whole."""
        spec = SpaceSpec(quantize=False, rank=RankSpec(methods=(method,), shares=(percent / 100,)))
        parts, _ = parts_of(self.evaluator.structures.base, spec)
        row = self._row(Step(name=FACTORIZE, layers={part.layer: part.options[0] for part in parts}))
        return row | {"layers": len(parts)}

    def other_side(self, percent: int, together: bool) -> Numbers:
        """Torch-Pruning's choice, with the same new statistics of BatchNormalization and the same training."""
        maker, evaluator = self.evaluator.structures.maker, self.evaluator
        pruned = self._theirs(percent, together)
        cut = remove_channels(evaluator.structures.base, pruned.removed)
        difference = self._difference(cut, pruned)
        if difference > SAME_FUNCTION:
            raise ValueError(f"the cut model and Torch-Pruning's own module differ by {difference:.2g}: the figures would not be its own")
        view, data = torch_view(cut), maker.material.calibration
        rows = min(len(data), EVIDENCE_ROWS)
        recalibrate_norms(view, (data.batch(np.arange(i, min(i + EVIDENCE_BATCH, rows))) for i in range(0, rows, EVIDENCE_BATCH)))
        before = view.write_back()
        plan = CompressionPlan(seed=SEED, steps=(self.recover,))
        after, _, notes, seconds = Restructurer(before, maker.material, maker.folder).make(plan, lambda _done, _total: None)
        files = [serialize(prepare(model).proto) for model in (before, after)]
        return self._measured(files[0], files[1]) | {"training": seconds, "notes": notes, "difference": difference}

    def widths(self, how: str, percent: int) -> dict[str, str]:
        """{group: option}: the mildest of its kind that removes at least the share of the MACs."""
        ways: dict[str, Callable[[int], dict[str, str]]] = {
            "measured": partial(self._searched_widths, "latency"),
            "for-macs": partial(self._searched_widths, "macs"),
            "uniform": self._uniform_widths,
            "its-widths": self._their_widths,
        }
        return dict(self.keep(f"widths/{how}/{percent}", lambda: ways[how](percent)))

    def _searched_widths(self, objective: str, percent: int) -> dict[str, str]:
        """What a job with this objective knows before its first trial: of widths that save what it asks for, those of least harm."""
        space, findings = self.evaluator.space, survey(self.evaluator)
        if objective != "latency":  # Only there does the clock forbid widths.
            findings = findings.model_copy(update={"dominated": {}})
        problem = build_problem(space, findings, (objective,), SEED)
        for assignment in reversed(front(problem, LEVELS)):  # The least harm first.
            layers = {name: str(option) for name, option in plan_of(space, assignment, SEED).layers(CHANNELS).items()}
            if self._saved(layers) >= percent / 100:
                return layers
        raise ValueError(f"no widths that a job for {objective} would take remove {percent} % of the MACs; ask for less")

    def _uniform_widths(self, percent: int) -> dict[str, str]:
        groups = self.evaluator.structures.maker.groups.values()

        def layers(share: int) -> dict[str, str]:
            kept = {group.name: max(1, round(group.size * (1 - share / 100))) for group in groups}
            return {group.name: ChannelScheme(keep=kept[group.name]).name for group in groups if kept[group.name] < group.size}

        shares = range(1, MOST_UNIFORM)
        return layers(shares[bisect_left(shares, percent / 100, key=lambda share: self._saved(layers(share)))])

    def _their_widths(self, percent: int) -> dict[str, str]:
        groups = self.evaluator.structures.maker.groups
        removed = self._theirs(percent, together=False).removed
        return {name: ChannelScheme(keep=groups[name].size - len(gone)).name for name, gone in removed.items()}

    def _saved(self, layers: Mapping[str, str]) -> float:
        """Share of the MACs that widths remove."""
        if not layers:
            return 0.0
        step = Step(name=CHANNELS, layers=dict(layers), options={"criterion": "l1", "recalibrate": False})
        return self._less_macs(self.evaluator.structures.get(CompressionPlan(steps=(step,)))[0])

    def _less_macs(self, model: Model) -> float:
        return 1 - total_macs(layer_table(prepare(model), self.evaluator.row_shapes)) / self.evaluator.macs

    def _theirs(self, percent: int, together: bool) -> magnitude_pruner.Pruned:
        base, key = self.evaluator.structures.base, (percent, together)

        def enough(pruned: magnitude_pruner.Pruned) -> bool:
            return bool(pruned.removed) and self._less_macs(remove_channels(base, pruned.removed)) >= percent / 100

        if key not in self._pruned:
            self._pruned[key] = magnitude_pruner.prune_until(base, self._tensors(1), together, enough)
        return self._pruned[key]

    def _difference(self, cut: Model, pruned: magnitude_pruner.Pruned) -> float:
        feed = self._tensors(EXACT_ROWS)
        own = Session(serialize(prepare(cut).proto), self.evaluator.threads).run({name: tensor.numpy() for name, tensor in feed.items()})[0]
        return float(np.abs(own - pruned.outputs(feed).numpy()).max())

    def _tensors(self, rows: int) -> dict[str, torch.Tensor]:
        batch = self.evaluator.roles.calibration.batch(np.arange(rows))
        return {value.name: torch.from_numpy(batch[value.name]) for value in self.evaluator.model.inputs}

    def _row(self, step: Step, before: bool = True) -> Numbers:
        """The numbers of one change: at once, and after the training."""
        timings: dict[str, float] = {}
        plan = CompressionPlan(seed=SEED, steps=(step, self.recover))
        first = self.evaluator.build(CompressionPlan(seed=SEED, steps=(step,)), {})[1] if before else None
        data = self.evaluator.build(plan, timings)[1]
        notes = self.evaluator.variants.of(plan).notes
        return self._measured(first, data) | {"training": timings.get(RECOVER, 0.0), "notes": list(notes)}

    def _measured(self, before: bytes | None, after: bytes) -> Numbers:
        threads, target = self.evaluator.threads, self.evaluator.job.target.threads
        latency = self.evaluator.time(Session(after, target), seconds=1.0, least_blocks=21, precision=0.01)
        found = self._costs(after) | {"right": self._right(Session(after, threads))}
        found["right_before"] = None if before is None else self._right(Session(before, threads))
        return found | {"latency": [latency.ratio.value, latency.ratio.lower, latency.ratio.upper]}

    def _costs(self, data: bytes) -> Numbers:
        model = prepare(seal(onnx.ModelProto.FromString(data)))
        infos = layer_table(model, self.evaluator.row_shapes)
        weights = sum(int(np.count_nonzero(model.array(info.weight))) for info in infos if info.weight)
        return {"macs": total_macs(infos), "params": model.parameters, "weights": weights, "packed": compressed_size(data)}

    @cached_property
    def splits(self) -> tuple[Split, Split]:
        """The two halves of the test rows: what is chosen among rows is chosen on the first and told of the second."""
        holdout = self.evaluator.roles.holdout
        assert holdout is not None
        return self.evaluator.validation, self.evaluator.split("holdout", holdout)

    def _right(self, session: Session) -> str:
        """One bit for each test row, in hexadecimal: is the model right?"""
        found = []
        for split in self.splits:
            scored = score(split, first_output(session), [self.evaluator.leading])
            right = np.zeros(len(split), bool)
            right[scored.rows] = scored.scores[self.evaluator.leading.name] > 0.5
            found.append(right)
        return np.packbits(np.concatenate(found)).tobytes().hex()


def exactness(case: Case, seeds: int) -> Numbers:
    """The largest difference between what the cut and the masked model give, over random choices of channels."""
    base = unfold(Model.load(str(case.model)))
    groups = [group for group in find_groups(base).groups if int(EXACT_SHARE * group.size)]
    feed, _ = case.rows("test", 0, EXACT_ROWS)

    def run(model: Model) -> list[NDArray[Any]]:
        return Session(model.data, 1).run(feed)

    differences, parameters = [], []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        removed = {g.name: random.choice(g.size, int(EXACT_SHARE * g.size), replace=False).tolist() for g in groups}
        cut = remove_channels(base, removed)
        differences.append(prove(mask_channels(base, removed), cut, run))
        parameters.append(cut.parameters / base.parameters)
    scale = max(float(np.abs(array).max()) for array in run(base))
    return {"groups": len(groups), "difference": max(differences), "scale": scale, "parameters": float(np.mean(parameters))}


def _channel_criteria() -> list[str]:
    return [name for name in CRITERIA if CRITERIA[name].kind == "channel"]


def _job(case: Case, settings: Settings, threads: int | None) -> Any:
    train, test, half = str(case.file("train")), str(case.file("test")), settings.test_rows // 2
    training_rows = min(case.length("train"), settings.rows)
    return parse_job(
        {
            "model": str(case.model),
            "data": {
                "calibration": {"file": train, "rows": [0, settings.calibration_rows]},
                "training": {"file": train, "rows": [0, training_rows]},
                "validation": {"file": test, "rows": [0, half]},
                "holdout": {"file": test, "rows": [half, settings.test_rows]},
            },
            "metrics": ["top1"],
            "constraints": [{"metric": "top1", "max_drop": 0.01}],
            "space": "channels",
            "budget": {"threads": threads, "trial_seconds": 1e7},
            "target": {"batch": 1, "threads": 1},
            "seed": SEED,
        }
    )
