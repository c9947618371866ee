from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import rows, small_cnn
from builders import run as run_graph
from tiny_training import CLASSES, Teacher, TinyView, damage, same, tiny_data
from torch import Tensor

from search_spaces.recovery import RecoverySpec
from tuner.compress.checkpoints import load_checkpoint
from tuner.compress.hooks import TrainingHook
from tuner.compress.quantization.collect import exposing
from tuner.compress.recovery import RecoveryReport, recover
from tuner.data.dataset import InputInfo, open_dataset
from tuner.errors import DataError, JobCancelled, JobError, ModelError, TrainingError
from tuner.job import DataRef
from tuner.model.torch_view import torch_view

ORIGINAL = TinyView()
QUICK = RecoverySpec(rows=1600, batch=32, learning_rate=0.05)


def run(view: Any, data: Any, spec: RecoverySpec = QUICK, *, seed: int = 0, **given: Any) -> RecoveryReport:
    return recover(view, given.pop("teacher", Teacher(ORIGINAL)), data, spec, seed=seed, **given)


def test_a_graph_is_trained_through_its_view(tmp_path: Path) -> None:
    """The real view of a small convolutional network, with onnxruntime as the teacher and every loss that looks at the original."""
    model, inner = small_cnn(), ("relu1_out", "pool_out")
    names, file, view, random = (model.outputs[0].name, *inner), exposing(model, inner), torch_view(model), np.random.default_rng(0)
    for name in view.trainable:
        values = view.value(name)
        values.add_(torch.from_numpy(random.normal(size=values.shape)) * values.std() / 2)
    broken = view.write_back()
    np.save(tmp_path / "x.npy", rows(model, 200)["x"])
    data = open_dataset(DataRef(file=str(tmp_path)), [InputInfo("x", "float32", (None, 3, 8, 8))], tmp_path / "cache")
    spec = RecoverySpec(
        losses={"logits": 1, "features": 0.1, "cosine": 0.1, "attention": 0.1}, tensors=inner, rows=2000, learning_rate=0.01
    )
    report = recover(view, lambda feed: dict(zip(names, run_graph(file, feed, names), strict=True)), data, spec, seed=0)
    assert report.loss_after is not None and report.loss_before is not None and report.loss_after < report.loss_before / 5
    feed = rows(model, 64, seed=5)
    # Soft targets do not see what is added to all scores of a row.
    scores = [run_graph(each, feed)[0] for each in (model, broken, view.write_back())]
    said, before, after = (each - each.mean(1, keepdims=True) for each in scores)
    assert np.square(after - said).mean() < np.square(before - said).mean() / 10


class Recorder(TrainingHook):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, _view: Any, steps: int) -> None:
        self.calls.append(f"begin {steps}")

    def penalty(self, _view: Any) -> Tensor | None:
        self.calls.append("penalty")
        return None

    def after_backward(self, view: Any, step: int) -> None:
        assert all(parameter.grad is not None for parameter in view.parameters())
        self.calls.append(f"backward {step}")

    def after_step(self, _view: Any, step: int) -> None:
        self.calls.append(f"step {step}")

    def end(self, _view: Any) -> None:
        self.calls.append("end")


class Masked(TrainingHook):
    """Half of the first layer's weights are zero; `count` is what a checkpoint has to keep."""

    def __init__(self, settles_at: int = 0) -> None:
        self.settles_at, self.count = settles_at, 0

    def begin(self, view: Any, _steps: int) -> None:
        weight = view.value("first.weight")
        self.mask = weight.abs() > weight.abs().median()
        weight.mul_(self.mask)

    def after_step(self, view: Any, _step: int) -> None:
        view.value("first.weight").mul_(self.mask)
        self.count += 1

    def settled(self, step: int) -> bool:
        return step >= self.settles_at

    def state(self) -> dict[str, Tensor]:
        return {"mask": self.mask, "count": torch.tensor(self.count)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.mask, self.count = state["mask"].clone(), int(state["count"])


class Cancel:
    """Raises at the nth call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise JobCancelled("stop")


def test_a_damaged_network_is_trained_back(tmp_path: Path) -> None:
    view = damage(ORIGINAL)
    report = run(view, tiny_data(tmp_path))
    assert report.loss_before is not None and report.loss_after is not None
    assert report.loss_after < report.loss_before / 20
    assert (report.steps, report.planned_steps, report.rows, report.stopped) == (50, 50, 1600, "finished")
    assert report.trace[0] == (0, report.loss_before) and report.trace[-1][0] == 1600 and len(report.trace) == 11
    assert report.loss_after == min(loss for _, loss in report.trace)
    assert not view.training and "learning rate 0.05, as given" in report.notes


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("losses", [{"labels": 1}, {"logits": 1, "labels": 0.5}, {"features": 1, "cosine": 1}])
def test_every_loss_and_optimizer_brings_the_network_back(tmp_path: Path, losses: dict[str, float], optimizer: Any) -> None:
    inputs = tiny_data(tmp_path / "inputs")
    with torch.no_grad():
        scores = ORIGINAL({"x": torch.from_numpy(inputs.batch(np.arange(400))["x"])})["scores"].numpy()
    data = tiny_data(tmp_path / "labelled", labels=scores.argmax(1))
    spec = RecoverySpec(losses=losses, rows=3200, batch=32, optimizer=optimizer, learning_rate=0.05, tensors=("hidden",), weight_decay=0)
    report = run(damage(ORIGINAL), data, spec)
    assert report.loss_after is not None and report.loss_before is not None and report.loss_after < report.loss_before / 3


def test_float_labels_are_values(tmp_path: Path) -> None:
    targets = np.random.default_rng(0).normal(size=(400, CLASSES))
    report = run(TinyView(), tiny_data(tmp_path, labels=targets), RecoverySpec(losses={"labels": 1}, rows=640), teacher=None)
    assert "labels were learned by squared distance" in report.notes
    assert report.loss_after is not None and report.loss_before is not None and report.loss_after < report.loss_before


def test_the_seed_decides_the_result(tmp_path: Path) -> None:
    data, views = tiny_data(tmp_path), [damage(ORIGINAL) for _ in range(3)]
    reports = [run(view, data, seed=seed) for view, seed in zip(views, (3, 3, 4), strict=True)]
    assert same(views[0], views[1]) and reports[0].trace == reports[1].trace
    assert not same(views[0], views[2])


def test_dropout_is_drawn_from_the_seed_and_no_global_generator_is_touched(tmp_path: Path) -> None:
    views = [TinyView(dropout=0.5) for _ in range(3)]
    before = torch.random.get_rng_state()
    for view, seed in zip(views, (3, 3, 4), strict=True):
        run(view, tiny_data(tmp_path), QUICK.model_copy(update={"rows": 320, "hold_back": 0}), seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(views[0], views[1]) and not same(views[0], views[2])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("cut", [2, 30, 70])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(tmp_path: Path, cut: int, optimizer: Any) -> None:
    data, spec = tiny_data(tmp_path / "data"), QUICK.model_copy(update={"optimizer": optimizer})
    whole, parts = damage(ORIGINAL), damage(ORIGINAL)
    hook = Masked()
    expected = run(whole, data, spec, hooks=[hook], folder=tmp_path / "whole")
    with pytest.raises(JobCancelled):
        run(parts, data, spec, hooks=[Masked()], folder=tmp_path / "parts", between=Cancel(cut))
    resumed, fresh = Masked(), damage(ORIGINAL)
    report = run(fresh, data, spec, hooks=[resumed], folder=tmp_path / "parts")
    assert same(whole, fresh) and (report.trace, report.steps) == (expected.trace, expected.steps)
    assert resumed.count == hook.count and report.loss_before == expected.loss_before
    assert any("training went on from a checkpoint" in note for note in report.notes) == (cut > 2)
    assert not list((tmp_path / "parts").glob("checkpoint*"))


def test_a_run_that_was_killed_goes_on_from_the_last_minute(tmp_path: Path) -> None:
    def kill(rows: int, _total: int) -> None:
        if rows == 40 * 32:
            raise RuntimeError("killed")

    data, whole, resumed, times = tiny_data(tmp_path / "data"), damage(ORIGINAL), damage(ORIGINAL), iter(range(0, 100_000, 4))
    expected = run(whole, data)
    with pytest.raises(RuntimeError, match="killed"):
        run(damage(ORIGINAL), data, folder=tmp_path, progress=kill, clock=lambda: float(next(times)))
    report = run(resumed, data, folder=tmp_path)
    (note,) = [note for note in report.notes if "checkpoint" in note]
    assert 20 < int(note.removeprefix("training went on from a checkpoint after ").split()[0]) < 40
    assert same(whole, resumed) and report.trace == expected.trace


def test_cancelling_leaves_a_usable_checkpoint(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    with pytest.raises(JobCancelled):
        run(
            damage(ORIGINAL),
            tiny_data(tmp_path / "data"),
            folder=tmp_path,
            between=Cancel(30),
            progress=lambda rows, total: done.append((rows, total)),
        )
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None and 32 * state["state"]["step"] == done[-1][0] and done[-1][1] == 1600
    assert set(state["view"]) == set(ORIGINAL.state_dict())


def test_a_foreign_or_broken_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    data, expected = tiny_data(tmp_path / "data"), damage(ORIGINAL)
    run(expected, data)
    with pytest.raises(JobCancelled):
        run(damage(ORIGINAL, 0.1), data, folder=tmp_path, between=Cancel(30))
    view = damage(ORIGINAL)
    report = run(view, data, folder=tmp_path)
    assert "a checkpoint belongs to another training, so training began anew" in report.notes and same(view, expected)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut off")
    assert "a checkpoint could not be read, so training began anew" in run(damage(ORIGINAL), data, folder=tmp_path).notes


def test_hooks_are_called_in_order(tmp_path: Path) -> None:
    hook = Recorder()
    run(damage(ORIGINAL), tiny_data(tmp_path), QUICK.model_copy(update={"rows": 64}), hooks=[hook])
    steps = [call for step in range(2) for call in ("penalty", f"backward {step}", f"step {step}")]
    assert hook.calls == ["begin 2", *steps, "end"]


def test_a_mask_holds_and_a_penalty_pulls(tmp_path: Path) -> None:
    class Pull(TrainingHook):
        def penalty(self, view: Any) -> Tensor | None:
            return 10 * view.parameter("last.weight").square().sum()

    data, masked, pulled = tiny_data(tmp_path), damage(ORIGINAL), damage(ORIGINAL)
    report = run(masked, data, hooks=[Masked()])
    assert (masked.first.weight == 0).sum() == 48 and report.loss_after is not None and report.loss_before is not None
    assert report.loss_after < report.loss_before / 5
    run(pulled, data, QUICK.model_copy(update={"hold_back": 0}), hooks=[Pull()])
    assert pulled.last.weight.norm() < 0.1 * masked.last.weight.norm()


def test_no_state_is_the_best_before_hooks_are_settled(tmp_path: Path) -> None:
    view = copy.deepcopy(ORIGINAL)  # Its loss is 0 as it is: only the schedule of the hook keeps it from being the best.
    report = run(view, tiny_data(tmp_path), hooks=[Masked(settles_at=20)])
    assert report.best_step >= 20 and (view.first.weight == 0).sum() == 48


def test_training_stops_early_and_the_best_state_is_restored(tmp_path: Path) -> None:
    view = damage(ORIGINAL, 0.02)
    worse = QUICK.model_copy(update={"learning_rate": 1.0, "clip": None, "patience": 3, "warmup": 0})
    report = run(view, tiny_data(tmp_path), worse)
    assert (report.stopped, report.best_step, report.steps) == ("early", 0, 15)
    assert same(view, damage(ORIGINAL, 0.02)) and report.loss_after == report.loss_before


def test_rounds_begin_with_a_fresh_optimizer(tmp_path: Path) -> None:
    """A round that starts from rewound weights repeats the first one, when it sees the same rows."""

    class Rewind(TrainingHook):
        rounds = 2

        def begin(self, view: Any, steps: int) -> None:
            self.half, self.start = steps // 2, copy.deepcopy(view.state_dict())

        def after_step(self, view: Any, step: int) -> None:
            if step == self.half - 1:
                self.first = copy.deepcopy(view.state_dict())
                view.load_state_dict(self.start)
            if step == 2 * self.half - 1:
                self.second = copy.deepcopy(view.state_dict())

    hook = Rewind()
    spec = QUICK.model_copy(update={"rows": 2 * 32, "hold_back": 0, "optimizer": "sgd"})
    run(damage(ORIGINAL), tiny_data(tmp_path, rows=32), spec, hooks=[hook])
    for name, tensor in hook.first.items():
        torch.testing.assert_close(hook.second[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_time_limit_ends_training_by_the_clock_that_is_passed_in(tmp_path: Path) -> None:
    times = iter(range(10_000))
    spec = QUICK.model_copy(update={"seconds": 30})
    report = run(damage(ORIGINAL), tiny_data(tmp_path), spec, clock=lambda: float(next(times)))
    assert report.stopped == "time" and 0 < report.steps < 50
    assert any(note == f"the time limit of 30 s ended training after {report.steps} of 50 steps" for note in report.notes)
    assert report.loss_after is not None and report.loss_before is not None and report.loss_after < report.loss_before


class Poison(TrainingHook):
    """From some step on, weights are not finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, view: Any, step: int) -> None:
        if step == self.step:
            view.value("last.weight").fill_(math.nan)


def test_a_loss_that_is_not_finite_ends_with_the_best_state(tmp_path: Path) -> None:
    view, expected = damage(ORIGINAL), damage(ORIGINAL)
    data = tiny_data(tmp_path)
    report = run(view, data, hooks=[Poison(27)])
    assert (report.stopped, report.steps, report.best_step) == ("diverged", 28, 25)
    note = (
        "training diverged: the loss became nan in step 28; the state after 25 of 50 steps was taken. A learning_rate below 0.05 may help"
    )
    assert note in report.notes and report.loss_after is not None and report.loss_before is not None
    assert report.loss_after < report.loss_before and all(torch.isfinite(tensor).all() for tensor in view.state_dict().values())
    with pytest.raises(TrainingError, match=r"and no earlier state was kept. Choose a learning_rate below 0.05, or a hold_back above 0"):
        run(expected, data, QUICK.model_copy(update={"hold_back": 0}), hooks=[Poison(5)])
    broken = damage(ORIGINAL)
    broken.value("last.bias").fill_(math.inf)
    with pytest.raises(TrainingError, match=r"the loss of the rows held back is (nan|inf) before any training, and has to be finite"):
        run(broken, data)


def test_without_rows_held_back_the_last_state_is_kept(tmp_path: Path) -> None:
    report = run(damage(ORIGINAL), tiny_data(tmp_path), QUICK.model_copy(update={"hold_back": 0}))
    assert (report.loss_before, report.loss_after, report.trace, report.best_step) == (None, None, (), 50)


def test_the_teacher_is_asked_once_for_all_trainings(tmp_path: Path) -> None:
    data, teacher = tiny_data(tmp_path / "data"), Teacher(ORIGINAL)
    first, second = damage(ORIGINAL), damage(ORIGINAL)
    report = run(first, data, teacher=teacher, folder=tmp_path / "1", cache=tmp_path / "teacher")
    asked = teacher.rows
    assert asked <= 400 + 64  # Every row once, and a look at the shapes.
    run(second, data, teacher=teacher, folder=tmp_path / "2", cache=tmp_path / "teacher")
    assert teacher.rows == asked and same(first, second)
    uncached = damage(ORIGINAL)
    plain = run(uncached, data, teacher=teacher, folder=tmp_path / "3", cache_bytes=100)
    assert any("the original ran anew for each batch" in note for note in plain.notes) and teacher.rows > asked + 1600
    assert plain.loss_after == pytest.approx(report.loss_after, rel=1e-3)


def test_a_fixed_batch_is_always_full(tmp_path: Path) -> None:
    sizes: set[int] = set()

    class Fixed(TinyView):
        def forward(self, feed: Any, observe: Any = ()) -> dict[str, Tensor]:
            sizes.add(len(feed["x"]))
            return super().forward(feed, observe)

    teacher = Teacher(Fixed())
    report = run(Fixed(3), tiny_data(tmp_path, rows=100, batch=16), teacher=teacher, folder=tmp_path)
    assert sizes == {16} and report.rows == 1600
    assert "the model takes batches of 16 rows only, so steps see 16 rows instead of 32" in report.notes
    with pytest.raises(DataError, match="training needs at least one batch of 64 rows, got 30"):
        run(TinyView(), tiny_data(tmp_path / "few", rows=30, batch=64))


def test_bfloat16_is_used_or_its_lack_told(tmp_path: Path) -> None:
    report = run(damage(ORIGINAL), tiny_data(tmp_path), QUICK.model_copy(update={"precision": "bf16"}))
    exact = run(damage(ORIGINAL), tiny_data(tmp_path))
    told = "the processor has no bfloat16 arithmetic, so training ran in float32" in report.notes
    assert told == (report.trace == exact.trace)
    assert report.loss_after is not None and report.loss_before is not None and report.loss_after < report.loss_before / 5


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, labels=np.full(400, CLASSES))
    with pytest.raises(JobError, match="the losses logits need the original network as a teacher, and there is none; use 'labels' alone"):
        run(TinyView(), data, teacher=None)
    with pytest.raises(DataError, match=f"label {CLASSES} in row 0"):
        run(TinyView(), data, RecoverySpec(losses={"labels": 1}))
    frozen = TinyView().requires_grad_(False)
    with pytest.raises(ModelError, match="the network has no weight that could be trained; leave the step 'recover' out of the plan"):
        run(frozen, data)
