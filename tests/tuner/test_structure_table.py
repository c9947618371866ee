"""What cuts and splits save, by a clock that counts multiplications and by the layer tables of networks that are really cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from spare_networks import spare_cnn, spare_dense, spare_job

from search_spaces.space import LayerChoices, SpaceSpec
from search_spaces.structure import ChannelSpec, RankSpec, SparsitySpec
from tuner import structure_table as module
from tuner.compress.fusion import prepare
from tuner.evaluator import Evaluator
from tuner.model.graph import Model
from tuner.model.layers import layer_table, total_macs
from tuner.plan import make_plan
from tuner.structure_table import Saved, StructureTable, dominated, structure_models, structure_table

WHOLE_MS = 8.0
BOTH = SpaceSpec(name="both", quantize=False, channels=ChannelSpec(shares=(0.25, 0.5)), rank=RankSpec(shares=(0.25, 0.5)))
Clock = Callable[[Any], float]


def by_macs(info: Any) -> float:
    return float(info.macs) / 1000


def evaluator_of(folder: Path, monkeypatch: pytest.MonkeyPatch, model: Model, space: SpaceSpec = BOTH, clock: Clock = by_macs) -> Evaluator:
    """A job for speed, on a machine whose kernels take what `clock` says and whose activations take 1 ms."""
    monkeypatch.setenv("ACCUTUNE_CACHE", str(folder / "tables"))
    evaluator = Evaluator(spare_job(folder, space, model, objectives=("latency",)), folder / "cache")

    def times(*models_feed_threads_whole: Any) -> tuple[dict[str, float], ...]:
        tables = [layer_table(Model.parse(data), evaluator.row_shapes) for data in models_feed_threads_whole[:2]]
        return tuple({info.name: clock(info) for info in table} | {"relu": 1.0} for table in tables)

    monkeypatch.setattr(Evaluator, "time", lambda *_: SimpleNamespace(baseline_ms=WHOLE_MS))
    monkeypatch.setattr(module, "paired_kernel_times", times)
    return evaluator


@pytest.mark.parametrize("model", [spare_dense, spare_cnn])
def test_savings_in_macs_and_parameters_are_those_of_the_network_that_is_really_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Callable[[], Model]
) -> None:
    evaluator = evaluator_of(tmp_path, monkeypatch, model())
    table = structure_table(evaluator)
    assert table.whole_ms == WHOLE_MS
    assert set(table.saved) == {layer.name for layer in evaluator.space.layers}
    for layer in evaluator.space.layers:
        assert tuple(table.saved[layer.name]) == layer.options[1:]
        for option, saved in table.saved[layer.name].items():
            options = {"channels": {"criterion": "l1", "recalibrate": False}}
            cut = prepare(evaluator.structures.get(make_plan({layer.target: {layer.step: option}}, 0, options))[0])
            infos = layer_table(cut, evaluator.row_shapes)
            assert saved.macs == evaluator.macs - total_macs(infos)
            assert saved.params == sum(info.params for info in evaluator.layers) - sum(info.params for info in infos)
            assert saved.ms > 0


def test_what_belongs_to_no_layer_gets_less_as_the_layers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(tmp_path, monkeypatch, spare_dense(), SpaceSpec(quantize=False, channels=ChannelSpec(shares=(0.5,))))
    table = structure_table(evaluator)
    # fc1 16·16, fc2 16·16, fc3 16·5; with 8 channels of fc2: 16·16, 16·8, 8·5. The activations' millisecond is spread over all three.
    before, after = 0.256 + 0.256 + 0.08, 0.256 + 0.128 + 0.04
    expected = 0.336 * (1 + 1 / before) - 0.168 * (1 + 1 / after)
    assert table.saved["channels:fc2"]["keep-8"].ms == pytest.approx(expected)
    assert table.saved["channels:fc2"]["keep-8"].macs == 16 * 8 + 8 * 5


def test_a_split_that_is_slower_than_its_layer_has_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(tmp_path, monkeypatch, spare_dense(), clock=lambda _: 1.0)
    table = structure_table(evaluator)
    splits = {name: options for name, options in table.saved.items() if name.startswith("factorize:")}
    assert splits and all(saved.ms < 0 < saved.macs for options in splits.values() for saved in options.values())
    # A kernel that takes a millisecond whatever its width: nothing is worth taking away.
    gone = dominated(table)
    assert gone.keys() == table.saved.keys()
    assert all(gone[layer.name] == layer.options[1:] for layer in evaluator.space.layers)


def test_a_share_of_the_whole_model_is_measured_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SpaceSpec(quantize=False, channels=ChannelSpec(shares=(0.25, 0.5), distribution="uniform"))
    evaluator = evaluator_of(tmp_path, monkeypatch, spare_dense(), space)
    table = structure_table(evaluator)
    assert list(table.saved) == ["channels:*"]
    mild, harsh = table.saved["channels:*"].values()
    assert 0 < mild.macs < harsh.macs < evaluator.macs and 0 < mild.ms < harsh.ms < WHOLE_MS
    # Half of both groups: 16·8 + 8·8 + 8·5 are left of 16·16 + 16·16 + 16·5.
    assert harsh.macs == 592 - 232


def test_a_table_is_measured_once_for_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = structure_table(evaluator_of(tmp_path, monkeypatch, spare_dense()))
    again = evaluator_of(tmp_path, monkeypatch, spare_dense())
    monkeypatch.setattr(module, "_Measurement", lambda *_: pytest.fail("measured again"))
    assert structure_table(again) == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        structure_table(evaluator_of(tmp_path, monkeypatch, spare_dense(seed=1)))


def test_without_a_clock_sizes_are_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(tmp_path, monkeypatch, spare_dense())
    evaluator.job = evaluator.job.model_copy(update={"objectives": ("params",)})
    monkeypatch.setattr(Evaluator, "time", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(module, "paired_kernel_times", lambda *_: pytest.fail("timed"))
    table = structure_table(evaluator)
    assert all(saved.ms == 0 and saved.params > 0 for options in table.saved.values() for saved in options.values())


def test_zeros_and_number_types_are_not_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(tmp_path, monkeypatch, spare_dense(), SpaceSpec(sparsity=SparsitySpec(shares=(0.5,))))
    monkeypatch.setattr(module, "_Measurement", lambda *_: pytest.fail("measured"))
    assert structure_table(evaluator) == StructureTable(saved={}, whole_ms=0.0)
    assert structure_models(evaluator.space.layers) == 0


def of_ms(**saved: dict[str, float]) -> StructureTable:
    tables = {name.replace("_", ":"): {option: Saved(ms=ms) for option, ms in options.items()} for name, options in saved.items()}
    return StructureTable(saved=tables, whole_ms=10.0)


def test_a_width_that_saves_nothing_beyond_a_milder_one_is_dominated() -> None:
    """The least that counts is 0.05 ms of 10."""
    table = of_ms(channels_a={"keep-12": 0.04, "keep-10": 0.5, "keep-8": 0.52, "keep-6": 0.4, "keep-4": 0.56, "keep-2": 3.0})
    assert dominated(table) == {"channels:a": ("keep-12", "keep-8", "keep-6")}
    assert dominated(of_ms(channels_a={"keep-8": 1.0, "keep-4": 2.0})) == {}


def test_splits_are_compared_with_the_whole_layer_alone() -> None:
    """Which of two is better says the harm too."""
    table = of_ms(factorize_a={"svd-0.25": 0.05, "svd-0.5": 0.4, "tucker2-0.25": 0.3, "tucker2-0.5": -1.0})
    assert dominated(table) == {"factorize:a": ("svd-0.25", "tucker2-0.5")}


def test_how_many_models_a_table_takes() -> None:
    def layer(step: str, options: int) -> LayerChoices:
        names = ("whole", *(f"o{index}" for index in range(options)))
        return LayerChoices(name=f"{step}:{options}", op="", input="", options=names, step=step, layer="a")

    assert structure_models([]) == 0
    assert structure_models([layer("channels", 3), layer("channels", 7), layer("factorize", 2), layer("sparsify", 9)]) == 2 * 7 + 2 * 2
