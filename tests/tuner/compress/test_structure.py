"""A structured model again from its record and its weights, and the whole plan from that: the same bytes, without data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import TARGET, U8_CHANNEL, rows, run
from spare_networks import restructurer, spare_cnn, spare_dense

from tuner.compress.fusion import prepare, unfold
from tuner.compress.pipeline import Compressor, replay
from tuner.compress.quantization.collect import collect, exposing
from tuner.compress.quantization.placement import observed_tensors
from tuner.compress.restructure import Restructurer
from tuner.compress.structure import changed_tensors, restored, shaped
from tuner.errors import PlanError
from tuner.model.graph import Model
from tuner.plan import AppliedPlan, CompressionPlan, Split, Step, Structure
from tuner.tensors import load_tensors, save_tensors

CHANNELS = Step(name="channels", layers={"conv1": "keep-5", "conv2": "keep-6"}, options={"criterion": "l1"})
SPLIT = Step(name="factorize", layers={"conv2": "spatial-svd-0.25"})
SPARSE = Step(name="sparsify", layers={"fc": "0.5-any", "conv2": "0.5-any"})
RECOVER = Step(name="recover", options={"rows": 128, "batch": 32})
QUANTIZE = Step(name="quantize", layers={"conv1": U8_CHANNEL, "conv2": U8_CHANNEL, "fc": U8_CHANNEL})


def made_by(maker: Restructurer, *steps: Step) -> tuple[Model, Structure]:
    return maker.make(CompressionPlan(steps=steps), lambda _done, _total: None)[:2]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Restructurer:
    return restructurer(tmp_path_factory.mktemp("cnn"), spare_cnn())


@pytest.fixture(scope="module")
def made(maker: Restructurer) -> tuple[Model, Structure]:
    return made_by(maker, CHANNELS, SPLIT, SPARSE, RECOVER)


@pytest.mark.parametrize(
    "steps",
    [(CHANNELS,), (SPLIT,), (SPARSE,), (CHANNELS, SPLIT), (CHANNELS, RECOVER), (SPLIT, SPARSE)],
    ids=lambda s: "+".join(x.name for x in s),
)
def test_record_and_weights_give_the_same_model(maker: Restructurer, steps: tuple[Step, ...]) -> None:
    model, record = made_by(maker, *steps)
    record = Structure.model_validate_json(record.model_dump_json())
    assert restored(maker.base, record, changed_tensors(maker.base, record, model)).data == model.data


def test_all_steps_at_once_go_through_a_file(maker: Restructurer, made: tuple[Model, Structure], tmp_path: Path) -> None:
    model, record = made
    path = tmp_path / "sub" / "best.tensors.safetensors"
    save_tensors(path, changed_tensors(maker.base, record, model))
    first = path.read_bytes()
    tensors = load_tensors(path)
    assert restored(maker.base, record, tensors).data == model.data
    save_tensors(path, dict(reversed(tensors.items())))
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_what_changed_is_kept(maker: Restructurer) -> None:
    model, record = made_by(maker, CHANNELS.model_copy(update={"options": {"criterion": "l1", "recalibrate": False}}))
    assert changed_tensors(maker.base, record, model) == {}
    model, record = made_by(maker, CHANNELS)
    assert set(changed_tensors(maker.base, record, model)) == {"norm1.m", "norm1.v", "norm2.m", "norm2.v"}
    model, record = made_by(maker, SPARSE)
    assert set(changed_tensors(maker.base, record, model)) == {"conv2.w", "fc.w"}


def test_the_shape_of_a_structure_has_no_values_yet(maker: Restructurer, made: tuple[Model, Structure]) -> None:
    model, record = made
    plain = shaped(maker.base, record)
    assert [node.name for node in plain.proto.graph.node] == [node.name for node in model.proto.graph.node]
    assert {n: list(t.dims) for n, t in plain.initializers.items()} == {n: list(t.dims) for n, t in model.initializers.items()}
    assert shaped(maker.base, Structure()) is maker.base


def test_weights_that_do_not_fit_are_refused(maker: Restructurer, made: tuple[Model, Structure]) -> None:
    model, record = made
    tensors = changed_tensors(maker.base, record, model)
    with pytest.raises(PlanError) as error:
        restored(maker.base, record, tensors | {"fc.w": np.zeros((5, 7), np.float32)})
    assert str(error.value) == "the trained weight 'fc.w' has shape [5, 7], the plan makes [5, 6]; do both belong together?"
    with pytest.raises(PlanError) as error:
        restored(maker.base, record, tensors | {"fc9.w": np.zeros(3, np.float32)})
    assert str(error.value) == (
        "the trained weights name 'fc9.w', which the model does not have; do plan, weights and model belong together?"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_weights_of_another_type_are_refused(maker: Restructurer, made: tuple[Model, Structure], dtype: Any) -> None:
    model, record = made
    tensors = changed_tensors(maker.base, record, model)
    with pytest.raises(
        PlanError, match=f"the trained weight 'fc.w' holds {np.dtype(dtype)}, the model has float32; do both belong together"
    ):
        restored(maker.base, record, tensors | {"fc.w": tensors["fc.w"].astype(dtype)})


def test_weights_that_are_missing_are_named(maker: Restructurer, made: tuple[Model, Structure]) -> None:
    """What a split made has no values but these."""
    model, record = made
    tensors = changed_tensors(maker.base, record, model)
    with pytest.raises(
        PlanError, match=r"the trained weights lack 'conv2\.w\.1', which the plan made; do plan and weights belong together"
    ):
        restored(maker.base, record, {name: array for name, array in tensors.items() if name != "conv2.w.1"})


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Structure(removed={"conv9": (1,)}), "conv9"),
        (Structure(removed={"conv1": tuple(range(8))}), "conv1"),
        (Structure(removed={"conv1": (99,)}), "conv1"),
        (Structure(splits={"fc9": Split(method="svd", rank=(2,))}), "fc9"),
        (Structure(splits={"conv2": Split(method="halving", rank=(2,))}), "halving"),
        (Structure(splits={"conv2": Split(method="spatial-svd", rank=(900,))}), "900"),
    ],
)
def test_a_record_that_does_not_fit_the_model_is_refused(maker: Restructurer, record: Structure, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        restored(maker.base, record, {})


def applied_of(maker: Restructurer, original: Model, *steps: Step) -> tuple[AppliedPlan, bytes, dict[str, Any]]:
    """What a job does with a plan, on one batch for calibration."""
    plan = CompressionPlan(steps=steps)
    model, record = made_by(maker, *plan.structure.steps)
    prepared, feed = prepare(model), rows(original, 64)
    names = observed_tensors(prepared, TARGET)
    exposed = exposing(prepared, names)
    statistics = collect(prepared, names, [feed], lambda batch, asked: run(exposed, batch, asked, optimize=False))
    compressor = Compressor(original, prepared, statistics, TARGET, structure=record)
    applied = compressor.resolve(plan)
    data = compressor.build(applied)
    applied = applied.model_copy(update={"result_sha256": hashlib.sha256(data).hexdigest()})
    return AppliedPlan.model_validate_json(applied.model_dump_json()), data, changed_tensors(maker.base, record, model)


@pytest.mark.parametrize(
    "steps",
    [(CHANNELS,), (CHANNELS, QUANTIZE), (SPLIT, QUANTIZE), (CHANNELS, SPLIT, SPARSE, RECOVER, QUANTIZE)],
    ids=lambda s: "+".join(x.name for x in s),
)
def test_a_plan_replays_to_the_same_bytes(maker: Restructurer, steps: tuple[Step, ...]) -> None:
    applied, data, tensors = applied_of(maker, spare_cnn(), *steps)
    assert replay(spare_cnn(), applied, tensors) == data
    assert len(data) < len(spare_cnn().data) + 4000 * (QUANTIZE in steps)
    assert run(data, rows(spare_cnn()))[0].shape == (32, 5)


def test_the_factors_of_a_layer_are_quantized_as_it_was_to_be(maker: Restructurer) -> None:
    applied, _, _ = applied_of(maker, spare_cnn(), SPLIT, QUANTIZE)
    assert {"conv1", "conv2.0", "conv2.1", "fc"} <= set(applied.layers)
    assert applied.layers["conv2.1"].scheme == U8_CHANNEL


def test_a_plan_without_its_weights_says_what_to_give(made: tuple[Model, Structure]) -> None:
    applied = AppliedPlan(plan=CompressionPlan(steps=(CHANNELS,)), model_sha256=spare_cnn().sha256, structure=made[1])
    with pytest.raises(PlanError) as error:
        replay(spare_cnn(), applied)
    assert str(error.value) == "the plan changed weights, which lie in a file beside it; give its .tensors.safetensors too"


def test_edited_weights_are_noticed(maker: Restructurer) -> None:
    applied, _, tensors = applied_of(maker, spare_cnn(), SPARSE)
    with pytest.raises(PlanError, match=r"applying the plan gave SHA-256 .+; was it edited\?"):
        replay(spare_cnn(), applied, tensors | {"fc.w": tensors["fc.w"] + 1})


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    for content in (None, b"", b"\x08\x00\x00\x00\x00\x00\x00\x00[1, 2]!!", b"\xff" * 64):
        path = tmp_path / "best.tensors.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PlanError, match=r"the trained weights best\.tensors\.safetensors cannot be read \(.+\); put the .tensors"):
            load_tensors(path)


def test_unfolding_keeps_what_training_needs_apart() -> None:
    assert unfold(spare_cnn()).nodes.keys() >= {"norm1", "norm2"}
    assert not prepare(spare_cnn()).nodes.keys() & {"norm1", "norm2"}
    assert unfold(spare_dense()).nodes.keys() == prepare(spare_dense()).nodes.keys()
