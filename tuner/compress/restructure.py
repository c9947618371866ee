"""From a plan to a model with fewer channels, split layers and zeros, trained back: everything that looks at data or needs gradients.

The order is that of the plan: channels go first, what is left is split, zeros come last and may come while the rest is trained. What was
done is returned as a record from which, with the weights, `structure.restored` makes the same model again."""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.recovery import RecoverySpec
from search_spaces.schemes import ChannelScheme, RankScheme, SparsityScheme
from search_spaces.structure import CHANNELS, EVERY_LAYER, FACTORIZE, RECOVER, SPARSIFY
from tuner.compress.decomposition import Evidence as FactorEvidence
from tuner.compress.decomposition import Factors, chosen_ranks, factorize, nodes_of
from tuner.compress.distillation import Term, label_loss, needs_tensors, output_kind
from tuner.compress.factors import METHODS
from tuner.compress.hooks import TrainingHook
from tuner.compress.pruning.allocation import Mode, choose, distribute, group_scores, keep_counts, units_of
from tuner.compress.pruning.channels import ChannelGroup, find_groups
from tuner.compress.pruning.criteria import CRITERIA, Criterion
from tuner.compress.pruning.evidence import Batch, Evidence, collect, parts_within
from tuner.compress.pruning.layout import canonical, restore, site_of
from tuner.compress.pruning.norms import recalibrate_norms
from tuner.compress.pruning.pruners import PRUNERS, make_pruner
from tuner.compress.pruning.reconstruction import sparsegpt, wanda_mask
from tuner.compress.pruning.removal import remove_channels
from tuner.compress.recovery import RecoveryReport, recover
from tuner.compress.teacher import Teacher
from tuner.data.dataset import Dataset
from tuner.errors import PlanError
from tuner.model.graph import Model
from tuner.model.layers import prunable_layers
from tuner.model.torch_view import TorchView, UnsupportedOperators, missing_operators, torch_view
from tuner.plan import CompressionPlan, Split, Step, Structure

EVIDENCE_ROWS = 512
"""Calibration rows that rate channels and weights."""
RECALIBRATION_ROWS = 256
"""Calibration rows from which the statistics of BatchNormalization are computed anew."""
EVIDENCE_BATCH = 32
TAUGHT_TENSORS = 4
"""Tensors inside the network that are compared where a loss looks inside and the job names none."""
LEVEL = "level"
"""The criterion of weights that every pruner has by itself, and the pruner that has no schedule."""
SPARSEGPT = "sparsegpt"
"""In place of a criterion: weights are chosen and the others repaired by layer-wise reconstruction."""
REPAIRS = (SPARSEGPT, "wanda")
"""Criteria that choose among the weights of an output, and have set them to zero before a pruner begins."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Material:
    """What there is to learn from. teacher: names of tensors -> the original, giving its outputs and these. seconds: the longest that one
    training may take."""

    calibration: Dataset
    training: Dataset
    fixed_batch: int | None
    teacher: Callable[[Sequence[str]], Teacher]
    seconds: float
    threads: int = 1


class Restructurer:
    """Makes the structured models of one job. base: the original with BatchNormalization apart; folder: for checkpoints and what the
    teacher said; between: called between steps of work, may raise to end it."""

    def __init__(self, base: Model, material: Material, folder: Path, between: Callable[[], None] = lambda: None) -> None:
        self.base, self.material, self.folder = base, material, folder
        self._between = between
        self.turn: Callable[[], None] = lambda: None
        """Called between steps of work too: lets other work have its turn."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._ratings: dict[tuple[str, str, int, bool], dict[str, Tensor]] = {}
        self._slim: Model | None = None
        torch.set_num_threads(material.threads)

    def between(self) -> None:
        self.turn()
        self._between()

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in find_groups(self.base).groups}

    def make(self, plan: CompressionPlan, progress: Progress) -> tuple[Model, Structure, list[str], float]:
        """(the structured model, the record of what was done, notes, the seconds of training)."""
        model, record, notes = self.base, Structure(), list[str]()
        channels, split = plan.step(CHANNELS), plan.step(FACTORIZE)
        seconds = 0.0
        if channels is not None:
            model, seconds = self._slimmed(channels, plan, progress)
            removed = self._removed(model, channels, plan.seed)
            kept = {name: self.groups[name].size - len(gone) for name, gone in removed.items()}
            record = record.model_copy(update={"removed": removed, "kept": kept})
            model = remove_channels(model, removed)
        if split is not None:
            model, splits = self._split(model, split, notes if record.removed else None)
            record = record.model_copy(update={"splits": splits})
        sparse, training = plan.step(SPARSIFY), plan.step(RECOVER)
        recalibrate = channels is not None and bool(channels.options.get("recalibrate", True)) and _normalizes(model)
        if not (sparse or training or recalibrate):
            return model, record, notes, seconds
        view = torch_view(model)
        if recalibrate:
            recalibrate_norms(view, (feed for feed, _ in self._batches(RECALIBRATION_ROWS)), between=self.between)
            model = view.write_back()
        zeros = self._sparse_layers(model, sparse) if sparse is not None else {}
        hooks = [self._pruner(view, model, sparse, zeros, plan.seed)] if sparse is not None else []
        if training is not None:
            report = self._recover(view, training, plan, hooks, progress)
            notes += _told(report)
            seconds += report.seconds
        else:
            for hook in hooks:
                hook.begin(view, 1)
                hook.end(view)
        model = view.write_back()
        if sparse is not None:
            record = record.model_copy(update={"zeros": {layer: _zeros(model, layer) for layer in zeros}})
            notes.append("zeros make the packed file smaller; the runtime multiplies them like other numbers")
        return model, record, notes, seconds

    def _slimmed(self, step: Step, plan: CompressionPlan, progress: Progress) -> tuple[Model, float]:
        """The model that channels are taken from, and the seconds that were spent on training it for that."""
        training = plan.step(RECOVER)
        if step.options.get("slimming") is None or training is None:
            return self.base, 0.0
        if self._slim is not None:
            return self._slim, 0.0
        view = torch_view(self.base)
        hooks = [make_pruner("slim", {}, strength=float(step.options["slimming"]))]
        report = self._recover(view, training, plan.model_copy(update={"steps": (training,)}), hooks, progress)
        self._slim = view.write_back()
        return self._slim, report.seconds

    def _removed(self, model: Model, step: Step, seed: int) -> dict[str, tuple[int, ...]]:
        """{group: the channels that go}: those with the lowest scores."""
        criterion = _channel_criterion(str(step.options.get("criterion", "taylor-activation")))
        scores = self._group_scores(model, criterion, str(step.options.get("mode", "dependency")), seed)
        kept = self._kept(step, scores)
        found: dict[str, tuple[int, ...]] = {}
        for name, keep in kept.items():
            stay = set(choose(scores[name], keep))
            found[name] = tuple(channel for channel in range(self.groups[name].size) if channel not in stay)
        return found

    def _kept(self, step: Step, scores: Mapping[str, Tensor]) -> dict[str, int]:
        """{group: how many channels stay}."""
        choices = {name: ChannelScheme.parse(str(choice)) for name, choice in step.layers.items()}
        every = choices.get(EVERY_LAYER)
        if every is not None:
            how = str(step.options.get("distribution", "global"))
            rated = {name: score for name, score in scores.items() if not self._left_alone(name, step)}
            found = keep_counts(float(every.cut or 0), rated, "uniform" if how == "per-layer" else how)
            align = int(step.options.get("align") or 1)
            return {n: min(-(-keep // align) * align, self.groups[n].size) for n, keep in found.items()}
        unknown = [name for name in choices if name not in self.groups]
        if unknown:
            raise PlanError(
                f"the plan removes channels of '{unknown[0]}', which is no group of this model; see `tuner inspect --dependencies`"
            )
        return {name: min(choice.keep or 1, self.groups[name].size) for name, choice in choices.items()}

    def _group_scores(self, model: Model, criterion: Criterion, mode: str, seed: int) -> dict[str, Tensor]:
        """{group: one score per channel} on the model before anything is taken away, computed once for all plans."""
        key = (criterion.name, mode, seed, model is self.base)
        if key not in self._ratings:
            groups = list(self.groups.values())
            layers = {slot.node for group in groups for slot in group.slots if slot.role == criterion.side}
            units = units_of(groups) if criterion.side == "in" else None
            evidence = self._evidence(model, [name for name in prunable_layers(model) if name in layers], criterion.needs, units)
            generator = torch.Generator().manual_seed(seed)
            scores = {name: criterion.score(name, seen, generator) for name, seen in evidence.items()}
            plain: Mode = "plain" if mode == "plain" else "dependency"
            self._ratings[key] = {group.name: group_scores(group, scores, plain, side=criterion.side) for group in groups}
        return self._ratings[key]

    def _split(self, model: Model, step: Step, notes: list[str] | None) -> tuple[Model, dict[str, Split]]:
        """notes: where a layer that has lost channels may have become too small for its split, a note says that it stays whole."""
        choices = {layer: RankScheme.parse(str(choice)) for layer, choice in step.layers.items()}
        evidence: dict[str, FactorEvidence] = {}
        for method in sorted({choice.method for choice in choices.values()}):
            kinds = METHODS[method].evidence
            layers = [name for name, choice in choices.items() if choice.method == method]
            for part in parts_within(model, layers) if kinds else ():
                seen = self._evidence(model, part, set(kinds))
                evidence |= {name: {kind: found[kind].numpy() for kind in kinds} for name, found in seen.items()}
        factors: dict[str, Factors] = {}
        for layer, choice in choices.items():
            try:
                factors |= chosen_ranks(model, {layer: choice}, evidence)
            except PlanError as error:
                if notes is None:
                    raise
                notes.append(f"{layer} stays whole: {error}")
        splits = {n: Split(method=f.method, rank=(f.rank,) if isinstance(f.rank, int) else tuple(f.rank)) for n, f in factors.items()}
        return factorize(model, factors, evidence), splits

    def _sparse_layers(self, model: Model, step: Step) -> dict[str, SparsityScheme]:
        """{node: the zeros that it shall have}; a layer that was split passes its choice on to its factors."""
        choices = {name: SparsityScheme.parse(str(choice)) for name, choice in step.layers.items()}
        every = choices.get(EVERY_LAYER)
        if every is not None:
            layers = [name for name in prunable_layers(model) if not self._left_alone(name, step)]
            if every.kept is not None:
                return dict.fromkeys(layers, every)
            weights = {name: self._weight(model, name).abs() for name in layers}
            how = str(step.options.get("distribution", "uniform"))
            curves = {name: {1.0: float(weight.square().sum())} for name, weight in weights.items()}
            shares = distribute(every.ratio, weights, "uniform" if how == "per-layer" else how, sensitivity=curves)
            return {name: SparsityScheme(ratio=share, pattern=every.pattern) for name, share in shares.items() if share > 0}
        found: dict[str, SparsityScheme] = {}
        for name, choice in choices.items():
            nodes = nodes_of(model, name)
            if not nodes:
                raise PlanError(f"the plan sets weights of '{name}' to zero, which is no layer of this model; see `tuner inspect`")
            found |= dict.fromkeys(nodes, choice)
        return found

    def _left_alone(self, layer: str, step: Step) -> bool:
        """Whether the job asks to leave a layer, or that which it is a factor of, as it is."""
        name = layer if layer in self.base.nodes else layer.rpartition(".")[0]
        return any(fnmatchcase(name, pattern) for pattern in step.options.get("keep", ()))

    @staticmethod
    def _weight(model: Model, name: str) -> Tensor:
        site = site_of(model, name)
        return canonical(torch.tensor(model.array(site.weight)), site.node)

    def _pruner(self, view: TorchView, model: Model, step: Step, layers: Mapping[str, SparsityScheme], seed: int) -> TrainingHook:
        """What sets weights to zero, at once or while the rest is trained. A criterion that repairs weights has changed the view."""
        criterion, pruner = str(step.options.get("criterion", LEVEL)), str(step.options.get("pruner", LEVEL))
        _check_pruner(criterion, pruner)
        schemes = {site_of(model, name).weight: scheme for name, scheme in layers.items()}
        if criterion in REPAIRS:
            self._reconstruct(view, model, layers, criterion)
        if criterion in (LEVEL, *REPAIRS):
            return make_pruner(pruner, schemes)
        rated = CRITERIA[criterion]
        evidence = self._evidence(model, list(layers), rated.needs)
        generator = torch.Generator().manual_seed(seed)
        scores = {site_of(model, name).weight: rated.score(name, seen, generator) for name, seen in evidence.items()}
        return make_pruner(pruner, schemes, scores=scores)

    def _reconstruct(self, view: TorchView, model: Model, layers: Mapping[str, SparsityScheme], criterion: str) -> None:
        """Zeros by SparseGPT or Wanda, layer by layer; a few Hessians at a time."""
        kind = "hessian" if criterion == SPARSEGPT else "input_norm"
        for part in parts_within(model, list(layers)):
            for name, seen in self._evidence(model, part, {kind}).items():
                site, scheme = site_of(model, name), layers[name]
                weight = canonical(view.value(site.weight), site.node)
                if criterion == SPARSEGPT:
                    changed = sparsegpt(weight, seen[kind].to(weight.device), scheme)
                else:
                    changed = weight * wanda_mask(weight, seen[kind].to(weight.device), scheme)
                view.value(site.weight).copy_(restore(changed, site.node))

    def _evidence(
        self, model: Model, nodes: Sequence[str], needs: Any, units: Mapping[str, Sequence[Sequence[int]]] | None = None
    ) -> dict[str, Evidence]:
        view = torch_view(model).to(self.device)
        first = model.outputs[0].name
        found = collect(
            view,
            model,
            nodes,
            needs,
            self._batches(),
            lambda outputs, labels: importance_loss(outputs[first], labels),
            units=units,
            between=lambda _: self.between(),
        )
        return {name: {kind: tensor.cpu() for kind, tensor in seen.items()} for name, seen in found.items()}

    def _batches(self, most: int = EVIDENCE_ROWS) -> Iterator[Batch]:
        data = self.material.calibration
        fixed, rows = self.material.fixed_batch, min(len(data), most)
        size = fixed or EVIDENCE_BATCH
        for first in range(0, rows, size):
            indices = np.arange(first, first + size if fixed else min(first + size, rows)) % len(data)
            yield data.batch(indices), data.labels(indices)

    def _recover(
        self, view: TorchView, step: Step, plan: CompressionPlan, hooks: Sequence[TrainingHook], progress: Progress
    ) -> RecoveryReport:
        spec = RecoverySpec.model_validate(step.options)
        limit = self.material.seconds if spec.seconds is None else min(spec.seconds, self.material.seconds)
        spec = spec.model_copy(update={"seconds": limit})
        tensors = (spec.tensors or self._taught(view.model)) if needs_tensors(spec) else ()
        folder = self.folder / plan.structure.digest()
        report = recover(
            view,
            self.material.teacher(tensors),
            self.material.training,
            spec,
            seed=plan.seed,
            hooks=hooks,
            tensors=tensors,
            folder=folder,
            cache=self.folder / "teacher",
            device=self.device,
            clock=time.monotonic,
            progress=progress,
            between=self.between,
        )
        shutil.rmtree(folder, ignore_errors=True)
        return report

    def _taught(self, model: Model) -> tuple[str, ...]:
        """Some activations of layers, spread over the depth of the network, that the original has too."""
        names = [*dict.fromkeys(site_of(model, name).activated for name in prunable_layers(model)[:-1])]
        names = [name for name in names if name in self.base.producers]
        places = np.linspace(0, len(names) - 1, min(TAUGHT_TENSORS, len(names))).round().astype(int)
        return tuple(names[place] for place in dict.fromkeys(places.tolist()))


def check_operators(base: Model) -> None:
    """UnsupportedOperators where no plan could be made, because some operators have no gradient here."""
    if lacking := missing_operators(base):
        raise UnsupportedOperators(lacking)


def _channel_criterion(name: str) -> Criterion:
    criterion = CRITERIA[name]
    if criterion.kind != "channel":
        raise PlanError(f"criterion '{name}' rates single weights; to remove channels use one like l1 or taylor")
    return criterion


def _check_pruner(criterion: str, pruner: str) -> None:
    scores = inspect.signature(PRUNERS[pruner]).parameters.get("scores")
    if criterion not in (LEVEL, SPARSEGPT) and CRITERIA[criterion].kind != "element":
        raise PlanError(f"criterion '{criterion}' rates whole channels; to set weights to zero use one like level or snip-element")
    if criterion not in (LEVEL, *REPAIRS) and scores is None:
        raise PlanError(
            f"the pruner '{pruner}' rates weights by itself, so that the criterion '{criterion}' has no say; "
            "leave the criterion out, or use a pruner that takes it, like level or iterative"
        )
    if criterion in (LEVEL, *REPAIRS) and scores is not None and scores.default is scores.empty:
        raise PlanError(f"the pruner '{pruner}' needs a criterion such as snip-element, got '{criterion}'; use the pruner level for that")


def importance_loss(output: Tensor, labels: NDArray[Any] | Tensor | None) -> Tensor:
    """What gradients rate importance by: the task's loss. Without labels the original's own predictions stand for them, since it learned
    them from some; of values their mean square."""
    target = None if labels is None else torch.as_tensor(np.asarray(labels)) if not isinstance(labels, Tensor) else labels
    kind, axis = output_kind(RecoverySpec(), output, target)
    if kind == "values" and target is None:
        return output.square().mean()
    student = output.clamp_min(1e-12).log() if kind == "probabilities" else output
    target = student.detach().argmax(dim=axis) if target is None else target.to(output.device)
    return label_loss(Term(student, target, "values" if kind == "values" else "scores", axis))


def _normalizes(model: Model) -> bool:
    return any(node.op_type == "BatchNormalization" for node in model.nodes.values())


def _zeros(model: Model, layer: str) -> float:
    weight = model.array(site_of(model, layer).weight)
    return float((weight == 0).mean())


def _told(report: RecoveryReport) -> list[str]:
    """One line on the training, then what it had to say."""
    losses = ""
    if report.loss_before is not None and report.loss_after is not None:
        losses = f", loss on rows held back {report.loss_before:.3g} → {report.loss_after:.3g}"
    how = f"{report.steps} steps, learning rate {report.learning_rate:.2g}{losses}"
    line = f"trained on {report.rows:,} rows ({how}); ended: {report.stopped}"
    return [line, *report.notes]
