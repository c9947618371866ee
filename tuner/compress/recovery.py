"""The one training loop: whatever trains a changed network back goes through `recover`.

Rows, steps and learning rates are functions of the settings and the seed. A run that was cut off goes on from its checkpoint and, on
the processor it started on, ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from search_spaces.recovery import RecoverySpec
from search_spaces.schemes import Frozen
from tuner.compress.distillation import Objective, Probe, needs_teacher, needs_tensors, settle
from tuner.compress.hooks import TrainingHook
from tuner.compress.optimizer import peak_rate, trained
from tuner.compress.sampling import Sampler, fixed_batch, make_sampler
from tuner.compress.teacher import Teacher, TeacherOutputs
from tuner.compress.training import Stopped, Training
from tuner.data.dataset import Dataset, Indices, check_labels
from tuner.errors import JobError, ModelError

if TYPE_CHECKING:
    from tuner.model.torch_view import TorchView

CACHE_BYTES = 2 << 30
"""The most that the teacher's kept tensors may take for one training."""


class RecoveryReport(Frozen):
    """What a training did. Losses are those of the rows held back, None where there were none; `loss_before` has what hooks did at once."""

    steps: int
    planned_steps: int
    rows: int
    """Rows seen, each pass over the data counted."""
    seconds: float
    loss_before: float | None
    loss_after: float | None
    best_step: int
    """After how many steps the returned state was reached."""
    learning_rate: float
    stopped: Stopped
    trace: tuple[tuple[int, float], ...] = ()
    """(rows seen, loss of the rows held back) at each evaluation."""
    notes: tuple[str, ...] = ()


def recover(
    view: TorchView,
    teacher: Teacher | None,
    data: Dataset,
    spec: RecoverySpec,
    *,
    seed: int,
    hooks: Sequence[TrainingHook] = (),
    tensors: Sequence[str] = (),
    folder: Path | None = None,
    cache: Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    device: str = "cpu",
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    between: Callable[[], None] = lambda: None,
) -> RecoveryReport:
    """Train the view in place; the state with the least loss on the rows held back is what it ends with, on the device it came from.

    teacher: the original, asked for the graph's outputs and for `spec.tensors` (or `tensors`, where the job names none).
    folder: this training's own, for its checkpoint. cache: shared by trainings with this teacher, data and seed, for what the teacher
    says; left out: within `folder`. progress is told rows done and rows in all; what `between` raises ends the training, which goes on
    from there when it is called again. TrainingError where the losses leave no finite state."""
    if not trained(view):
        raise ModelError("the network has no weight that could be trained; leave the step 'recover' out of the plan")
    home = next(view.parameters()).device
    view.to(device)
    try:
        sampler = make_sampler(data, spec, seed)
        source = _Source(view, data, sampler, torch.device(device), spec.precision)
        teaching = _teaching(teacher, data, spec, sampler, cache or (folder / "teacher" if folder else None))
        asked = (spec.tensors or tuple(tensors)) if needs_tensors(spec) else ()
        objective, kept = _objective(source, teaching, spec, asked, cache_bytes, between)
        _check_class_labels(objective, source)
        rate, whence = peak_rate(view, spec)
        file = folder / "checkpoint.pt" if folder else None
        key = _key(view, data, spec, sampler, objective, hooks) if file else ""
        training = Training(
            view, spec, sampler, rate, source.losses(objective, teaching), hooks, file, key, device, clock, progress, between
        )
        if teaching is not None:
            teaching.between = training.tick
        stopped = training.run()
        notes = (whence, *sampler.notes, *source.notes, *kept, *objective.notes, *training.notes)
        return _report(training, stopped, notes)
    finally:
        view.to(home)


class _Source:
    """Rows as the networks see them: from the data to the device, a batch at a time."""

    def __init__(self, view: TorchView, data: Dataset, sampler: Sampler, device: torch.device, precision: str) -> None:
        self.data, self.sampler = data, sampler
        self._view, self._device = view, device
        self._mixed = precision == "bf16" and has_bfloat16(device)
        refused = precision == "bf16" and not self._mixed
        self.notes = ["the processor has no bfloat16 arithmetic, so training ran in float32"] if refused else []

    def student(self, positions: Indices, observed: Sequence[str] = ()) -> dict[str, Tensor]:
        batch = self.data.batch(self.sampler.order[positions])
        feed = {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            found: dict[str, Tensor] = self._view(feed, observed)
        return found

    def labels(self, positions: Indices) -> Tensor | None:
        labels = self.data.labels(self.sampler.order[positions])
        return None if labels is None else torch.from_numpy(labels).to(self._device)

    def move(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def losses(self, objective: Objective, teaching: TeacherOutputs | None) -> Callable[[Indices], Tensor]:
        """The loss of the rows at some positions."""

        def loss(positions: Indices) -> Tensor:
            # First, because what is done between its rows may end the training: nothing is changed by then.
            taught = self.move(teaching.rows(positions)) if teaching is not None else {}
            labels = self.labels(positions) if objective.labelled else None
            return objective(self.student(positions, objective.observed), taught, labels)

        return loss


def has_bfloat16(device: torch.device) -> bool:
    """Does the processor compute in bfloat16 by itself?"""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _teaching(teacher: Teacher | None, data: Dataset, spec: RecoverySpec, sampler: Sampler, folder: Path | None) -> TeacherOutputs | None:
    if not needs_teacher(spec):
        return None
    if teacher is None:
        raise JobError(f"the losses {', '.join(spec.active)} need the original network as a teacher, and there is none; use 'labels' alone")
    return TeacherOutputs(teacher, data, sampler.order, folder=folder, order_key=str(sampler.seed), fixed=fixed_batch(data))


def _objective(
    source: _Source, teaching: TeacherOutputs | None, spec: RecoverySpec, tensors: Sequence[str], limit: int, between: Callable[[], None]
) -> tuple[Objective, list[str]]:
    """The losses, settled on a first batch, and how the teacher's tensors are kept."""
    sampler = source.sampler
    first, notes = np.arange(min(sampler.batch, len(sampler.order))), []
    with torch.no_grad():
        student = source.student(first)
        outputs = tuple(student)
        student |= source.student(first, tensors) if tensors else {}
    taught: dict[str, Tensor] = {}
    if teaching is not None:
        teaching.between = between
        teaching.only([name for name in dict.fromkeys((*outputs, *tensors)) if student[name].is_floating_point()])
        notes = teaching.keep(sampler.held + sampler.pool, limit)
        taught = source.move(teaching.rows(first))
    objective = settle(spec, tensors, Probe(outputs, student, taught, source.labels(first)))
    if teaching is not None:
        teaching.only(objective.taught)
    return objective, notes


def _check_class_labels(objective: Objective, source: _Source) -> None:
    """DataError where a label is no class of the output that learns from it."""
    part = objective.labelled
    if part is not None and part.classes and source.data.target is not None and len(source.data.target.shape) == 1:
        check_labels(source.data, part.classes)


def _key(view: TorchView, data: Dataset, spec: RecoverySpec, sampler: Sampler, objective: Objective, hooks: Sequence[TrainingHook]) -> str:
    """SHA-256 of all that decides a training but its rows: a checkpoint goes on with the training that it was written for."""
    names = [f"{type(hook).__module__}.{type(hook).__qualname__}" for hook in hooks]
    facts = (spec.model_dump_json(), sampler.seed, len(data), sampler.steps, sampler.batch, objective.parts, names)
    sha = hashlib.sha256(repr(facts).encode())
    for name, tensor in view.state_dict().items():
        sha.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _report(training: Training, stopped: Stopped, notes: Sequence[str]) -> RecoveryReport:
    state = training.state
    return RecoveryReport(
        steps=state.step,
        planned_steps=training.sampler.steps,
        rows=state.step * training.sampler.batch,
        seconds=training.seconds,
        loss_before=state.before,
        loss_after=state.best.loss if state.best else None,
        best_step=state.best.step if state.best else state.step,
        learning_rate=training.rate,
        stopped=stopped,
        trace=tuple(state.trace),
        notes=tuple(dict.fromkeys(notes)),
    )
