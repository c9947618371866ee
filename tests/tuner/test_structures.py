"""A structure is made once for all plans that share it, kept for the next process, and goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spare_networks import restructurer, spare_dense, spare_job

from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec
from tuner.compress.restructure import Restructurer
from tuner.evaluator import Evaluator
from tuner.files import structure_file, tensors_file
from tuner.job import Budget
from tuner.model.graph import Model
from tuner.plan import CompressionPlan, make_plan
from tuner.structures import KEPT, LEAST_RECOVERY_ROWS, MOST_PASSES, Made, Structures, recovery_rows

TRAINED: dict[str, Any] = {"channels": {"criterion": "l1"}, "recover": {"rows": 256, "batch": 32}}
SCHEMES = ("u8-asym-minmax/s8-sym-channel", "u8-asym-mse/s8-sym-tensor", "float")


def cut_to(keep: int, scheme: str = "float", options: dict[str, Any] = TRAINED) -> CompressionPlan:
    return make_plan({"fc1": {"channels": f"keep-{keep}"}, "fc2": {"quantize": scheme}}, 0, options)


class Counted:
    """Structures of a small network, and how often one was really made."""

    def __init__(self, folder: Path, between: Callable[[], None] = lambda: None) -> None:
        self.folder, self.between, self.made = folder, between, list[CompressionPlan]()
        self.structures = Structures(spare_dense(), folder / "cache", self._maker)

    def _maker(self, base: Model) -> Restructurer:
        maker = restructurer(self.folder, spare_dense(), between=self.between)
        assert maker.base.data == base.data
        make = maker.make

        def counted(plan: CompressionPlan, progress: Callable[[int, int], None]) -> Any:
            self.made.append(plan)
            return make(plan, progress)

        maker.make = counted  # type: ignore[method-assign]
        return maker


def test_plans_that_differ_in_quantization_share_one_training(tmp_path: Path) -> None:
    counted = Counted(tmp_path)
    found = [counted.structures.get(cut_to(10, scheme)) for scheme in SCHEMES]
    assert len(counted.made) == 1
    assert counted.made[0] == cut_to(10).structure
    assert len({id(model) for model, _ in found}) == 1
    assert found[0][1].structure.kept == {"fc1": 10}
    assert found[0][1].trained_seconds > 0
    assert found[0][1].notes[0].startswith("trained on ")


def test_another_process_reads_what_was_trained(tmp_path: Path) -> None:
    first, second = Counted(tmp_path), Counted(tmp_path)
    (model, made), (again, read) = first.structures.get(cut_to(10)), second.structures.get(cut_to(10, SCHEMES[0]))
    assert again.data == model.data and read == made
    assert (len(first.made), len(second.made)) == (1, 0)
    assert Made.model_validate_json(made.model_dump_json()) == made


def test_what_was_not_trained_is_made_again_and_not_kept_on_disk(tmp_path: Path) -> None:
    plan = cut_to(10, options={"channels": {"criterion": "l1"}})
    first, second = Counted(tmp_path), Counted(tmp_path)
    assert first.structures.get(plan)[0].data == second.structures.get(plan)[0].data
    assert (len(first.made), len(second.made)) == (1, 1)
    assert not (tmp_path / "cache").exists()
    path = first.structures.tensors(plan)
    assert path.is_file() and structure_file(tmp_path / "cache", plan.structure.digest()).is_file()
    assert len(first.made) == 1


def test_only_so_many_models_stay_in_memory(tmp_path: Path) -> None:
    counted = Counted(tmp_path)
    plans = [cut_to(keep, options={"channels": {"criterion": "l1"}}) for keep in (12, 11, 10)]
    assert len(plans) == KEPT + 1
    for plan in (*plans[:2], plans[0], plans[2], plans[0]):
        counted.structures.get(plan)
    # The one that was used last stayed; the other went when the third came.
    assert counted.made == [plan.structure for plan in plans]
    counted.structures.get(plans[1])
    assert len(counted.made) == 4


def test_weights_lie_where_the_cache_says(tmp_path: Path) -> None:
    counted = Counted(tmp_path)
    path = counted.structures.tensors(cut_to(10, SCHEMES[0]))
    assert path == tensors_file(tmp_path / "cache", cut_to(10).structure.digest())
    before = path.read_bytes()
    assert counted.structures.tensors(cut_to(10)).read_bytes() == before
    assert len(counted.made) == 1


class Cut(Exception):
    """Ends a training in its middle."""


def test_a_training_that_was_cut_off_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1

    whole = Counted(tmp_path / "whole", between)
    expected = whole.structures.get(cut_to(10))
    total, calls, told = calls, 0, list[tuple[int, int]]()

    def cut() -> None:
        between()
        if calls == total - 3:
            raise Cut

    stopped = Counted(tmp_path / "cut", cut)
    with pytest.raises(Cut):
        stopped.structures.get(cut_to(10))
    assert list((tmp_path / "cut" / "training").glob("*/checkpoint.pt"))
    assert not structure_file(tmp_path / "cut" / "cache", cut_to(10).structure.digest()).is_file()
    resumed = Counted(tmp_path / "cut")
    found = resumed.structures.get(cut_to(10), lambda done, rows: told.append((done, rows)))
    assert found[0].data == expected[0].data
    assert found[1].structure == expected[1].structure
    # It did not begin anew, and what it no longer needs is gone.
    assert told[0][0] > told[0][1] / 2 and told[-1][0] == told[-1][1]
    assert not list((tmp_path / "cut" / "training").glob("*/checkpoint.pt"))


def test_rows_to_train_on_follow_from_the_budget_and_not_from_the_machine() -> None:
    budget = Budget(trials=12, seconds=1200, parallel=1)
    # 0.6 · 100 s at 1.5e10 / 3 multiply-accumulates per second, of 1e6 for each row.
    assert recovery_rows(budget, 1_000_000, 10**9) == 300_000
    assert recovery_rows(budget.model_copy(update={"parallel": 2}), 1_000_000, 10**9) == 600_000
    # Many trials are not what trains: each of at most twelve gets its share.
    assert recovery_rows(budget.model_copy(update={"trials": 500}), 1_000_000, 10**9) == 300_000
    assert recovery_rows(budget.model_copy(update={"trial_seconds": 10.0}), 1_000_000, 10**9) == 30_000
    assert recovery_rows(budget, 1_000_000, 1000) == MOST_PASSES * 1000
    assert recovery_rows(budget, 10**12, 10**9) == LEAST_RECOVERY_ROWS
    assert recovery_rows(budget, 0, 1000) == MOST_PASSES * 1000


def test_variants_are_quantized_on_statistics_of_their_own(tmp_path: Path) -> None:
    space = SpaceSpec(name="both", channels=ChannelSpec(shares=(0.25,), criterion="l1"), recovery=None, calibrations=("minmax",))
    evaluator = Evaluator(spare_job(tmp_path, space), tmp_path / "cache")
    plan = make_plan({"fc1": {"channels": "keep-12"}, "fc2": {"quantize": SCHEMES[0]}}, 0, evaluator.space.steps)
    timings: dict[str, float] = {}
    applied, _ = evaluator.build(plan, timings)
    assert {"structure", "resolve", "build"} == set(timings)
    assert applied.structure is not None and applied.structure.kept == {"fc1": 12}
    assert (tmp_path / "cache" / "structures" / f"{plan.structure.digest()}.statistics.npz").is_file()
    variant, whole = evaluator.variants.of(plan), evaluator.variants.of(CompressionPlan())
    assert whole.macs - variant.macs == 4 * (16 + 16)
    assert whole.params - variant.params == 4 * (16 + 16 + 1)
    assert variant.compressor.prepared.array("fc2.w").shape == (16, 12)
    assert evaluator.variants.of(plan) is variant
    costs = evaluator.costs(b"12345", variant)
    assert {name: costs[name].value for name in ("size_bytes", "macs", "params")} == {
        "size_bytes": 5.0,
        "macs": variant.macs,
        "params": variant.params,
    }
