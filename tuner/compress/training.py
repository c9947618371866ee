"""The steps of a training: forward, backward, change, and now and then a look at the rows held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from search_spaces.recovery import RecoverySpec
from tuner.compress.checkpoints import load_checkpoint, save_checkpoint
from tuner.compress.hooks import TrainingHook, round_length
from tuner.compress.optimizer import learning_rate, make_optimizer, set_rate, trained
from tuner.compress.sampling import Sampler
from tuner.data.dataset import Indices
from tuner.errors import TrainingError

if TYPE_CHECKING:
    from tuner.model.torch_view import TorchView

Stopped = Literal["finished", "early", "time", "diverged"]

SAVE_SECONDS = 60.0
"""A checkpoint is written so often, and where `between` ends a run."""


class OutOfTime(Exception):
    """The time limit was reached between two steps."""


class Diverged(Exception):
    """A loss or a gradient is NaN or infinite."""


@dataclass
class Best:
    """The state that training would return now. settled: no hook's schedule had further to go."""

    loss: float
    step: int
    settled: bool
    view: dict[str, Tensor]
    hooks: list[dict[str, Tensor]]


@dataclass
class State:
    """How far a training is, beside the weights. step: steps done; evaluated: the step last looked at; misses: looks since the best;
    before: the loss of the rows held back when the hooks had begun and nothing was trained."""

    step: int = 0
    seconds: float = 0.0
    evaluated: int = -1
    misses: int = 0
    before: float | None = None
    best: Best | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)


@dataclass(eq=False)
class Training:
    """One run. loss: the loss of the rows at some positions, in the mode the view is in; `between` is called where the run may be cut off.

    key: what a checkpoint must have been written for to be taken up."""

    view: TorchView
    spec: RecoverySpec
    sampler: Sampler
    rate: float
    loss: Callable[[Indices], Tensor]
    hooks: Sequence[TrainingHook]
    file: Path | None
    key: str
    device: str
    clock: Callable[[], float]
    progress: Callable[[int, int], None]
    between: Callable[[], None]
    state: State = field(default_factory=State)
    notes: list[str] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self._started = self._saved_at = self.clock()
        self._timed = False
        self._round = round_length(self.sampler.steps, max((hook.rounds for hook in self.hooks), default=1))
        self._interval = -(-self.sampler.steps // self.spec.evaluations)

    def run(self) -> Stopped:
        """Train, and leave the best state in the view. TrainingError where there is no usable one."""
        saved = self._saved()
        for hook in self.hooks:
            hook.begin(self.view, self.sampler.steps)
        self.optimizer = self._fresh()
        if saved is not None:
            self._take_up(saved)
        stopped = self._train()
        self._finish()
        return stopped

    def tick(self) -> None:
        """Where a run may be cut off: what is done so far is kept."""
        try:
            self.between()
        except BaseException:
            self._save()
            raise
        if self._timed and self.spec.seconds is not None and self.seconds >= self.spec.seconds:
            raise OutOfTime

    @property
    def seconds(self) -> float:
        """Time spent, that of earlier parts of the run included."""
        return self.state.seconds + self.clock() - self._started

    def _train(self) -> Stopped:
        try:
            self._timed = True
            return self._steps()
        except OutOfTime:
            self._timed = False
            return self._end_by_time()
        except Diverged as error:
            self._explain(str(error))
            return "diverged"
        finally:
            self._timed = False

    def _end_by_time(self) -> Stopped:
        self.notes.append(f"the time limit of {self.spec.seconds:g} s ended training after {self.state.step} of {self.sampler.steps} steps")
        try:
            self._judge()
        except Diverged as error:
            self._explain(str(error))
        return "time"

    def _steps(self) -> Stopped:
        state, steps = self.state, self.sampler.steps
        while True:
            if state.step % self._interval == 0 or state.step == steps:
                self._judge()
            if state.step == steps:
                return "finished"
            if self.spec.patience is not None and state.misses >= self.spec.patience:
                return "early"
            self.tick()
            self._step(state.step)
            state.step += 1
            self.progress(state.step * self.sampler.batch, steps * self.sampler.batch)
            if self.clock() - self._saved_at >= SAVE_SECONDS:
                self._save()

    def _step(self, step: int) -> None:
        if step % self._round == 0:
            self.optimizer = self._fresh()
        assert self.optimizer is not None
        self.view.train()
        self.optimizer.zero_grad(set_to_none=True)
        with _reproducible(self.view, self.sampler.seed, step):
            loss = self.loss(self.sampler.positions(step))
        for hook in self.hooks:
            penalty = hook.penalty(self.view)
            loss = loss if penalty is None else loss + penalty
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss became {loss.item()} in step {step}")
        loss.backward()  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.after_backward(self.view, step)
        self._clip(step)
        set_rate(self.optimizer, self._rate(step))
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step(self.view, step)

    def _rate(self, step: int) -> float:
        first = step - step % self._round
        return learning_rate(step - first, min(self._round, self.sampler.steps - first), self.rate, self.spec.warmup)

    def _clip(self, step: int) -> None:
        length = nn.utils.clip_grad_norm_(trained(self.view), self.spec.clip if self.spec.clip is not None else math.inf)
        if not math.isfinite(length.item()):
            raise Diverged(f"the gradient became {length.item()} in step {step}")

    def _fresh(self) -> torch.optim.Optimizer:
        return make_optimizer(self.view, self.spec, self.rate)

    def _judge(self) -> None:
        """Look at the rows held back, once for a step, and keep the state if it is the best."""
        state = self.state
        if state.evaluated == state.step:
            return
        loss = self._held_back_loss()
        if loss is not None:
            if not math.isfinite(loss):
                raise self._no_number(loss)
            if state.step == 0:
                state.before = loss
            state.trace.append((state.step * self.sampler.batch, loss))
            self._compare(loss)
        state.evaluated = state.step

    def _compare(self, loss: float) -> None:
        state, settled = self.state, all(hook.settled(self.state.step) for hook in self.hooks)
        best = state.best
        if best is not None and best.settled and not (settled and loss < best.loss):
            state.misses += 1
            return
        hooks = [_copy(hook.state()) for hook in self.hooks]
        state.best = Best(loss, state.step, settled, _copy(self.view.state_dict()), hooks)
        state.misses = 0

    def _held_back_loss(self) -> float | None:
        """Mean loss of the rows held back; None where there are none."""
        if not self.sampler.held:
            return None
        self.view.eval()
        total = 0.0
        with torch.no_grad():
            for positions in self.sampler.held_back():
                self.tick()
                total += self.loss(positions).item() * len(positions)
        return total / self.sampler.held

    def _no_number(self, loss: float) -> Exception:
        if self.state.step:
            return Diverged(f"the loss of the rows held back became {loss} after {self.state.step} steps")
        return TrainingError(
            f"the loss of the rows held back is {loss} before any training, and has to be finite. "
            "Change the network less before it is trained, or choose other losses."
        )

    def _explain(self, why: str) -> None:
        """Note that training diverged. TrainingError where no finite state was kept."""
        best = self.state.best
        if best is None:
            raise TrainingError(
                f"training diverged: {why}, and no earlier state was kept. "
                f"Choose a learning_rate below {self.rate:g}, or a hold_back above 0 to keep the best state."
            )
        kept = f"the state after {best.step} of {self.sampler.steps} steps was taken"
        self.notes.append(f"training diverged: {why}; {kept}. A learning_rate below {self.rate:g} may help")

    def _finish(self) -> None:
        best = self.state.best
        if best is not None and self.hooks:
            self._save()  # The last look at the rows held back may be cut off too.
        self.optimizer = None
        if best is not None:
            self.view.load_state_dict(best.view)
            for hook, state in zip(self.hooks, best.hooks, strict=True):
                hook.load(state)
        if best is not None and not best.settled:
            self.notes.append("training ended before the schedule of pruning did, so the last weights were never trained")
        for hook in self.hooks:
            hook.end(self.view)
        if best is not None and self.hooks:
            best.loss = self._held_back_loss() or 0.0
        if best is not None and not math.isfinite(best.loss):
            raise TrainingError(f"the loss of the rows held back is {best.loss} after training. Prune less, or train on more rows.")
        self.view.eval()
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        """Write a checkpoint. Before the first step and after the last there is nothing to go on with."""
        self._saved_at = self.clock()
        if self.file is None or self.optimizer is None:
            return
        best = vars(self.state.best) if self.state.best else None
        state = vars(self.state) | {"seconds": self.seconds, "best": best}
        hooks = [hook.state() for hook in self.hooks]
        rest = {"view": self.view.state_dict(), "optimizer": self.optimizer.state_dict(), "hooks": hooks, "notes": self.notes}
        save_checkpoint(self.file, {"key": self.key, "state": state, **rest})

    def _saved(self) -> dict[str, Any] | None:
        if self.file is None or not self.file.exists():
            return None
        saved = load_checkpoint(self.file)
        if saved is None or saved.get("key") != self.key:
            what = "could not be read" if saved is None else "belongs to another training"
            self.notes.append(f"a checkpoint {what}, so training began anew")
            return None
        return saved

    def _take_up(self, saved: dict[str, Any]) -> None:
        assert self.optimizer is not None
        state, best = saved["state"], saved["state"]["best"]
        self.state = State(**state | {"best": Best(**best) if best else None, "trace": [tuple(pair) for pair in state["trace"]]})
        self.view.load_state_dict(saved["view"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for hook, kept in zip(self.hooks, saved["hooks"], strict=True):
            hook.load(kept)
        self.notes.append(f"training went on from a checkpoint after {self.state.step} of {self.sampler.steps} steps")


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@contextmanager
def _reproducible(view: TorchView, seed: int, step: int) -> Iterator[None]:
    """Draw dropout from the seed and the step. It takes torch's own generators, which are given back as they were."""
    if not any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in view.modules()):
        yield
        return
    device = next(view.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) % 2**63)
        yield
