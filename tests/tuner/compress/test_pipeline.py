from __future__ import annotations

import hashlib

import numpy as np
import pytest
from builders import TARGET, U8, U8_CHANNEL, U8_TENSOR, Net, agreement, compressor, plan_of, quantize, rows, run, small_cnn
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.presets import load_preset
from search_spaces.schemes import ActivationScheme
from search_spaces.space import resolve
from tuner.compress.pipeline import replay
from tuner.compress.quantization.affine import choose_scale
from tuner.compress.quantization.placement import candidates
from tuner.errors import PlanError
from tuner.model.graph import Model
from tuner.plan import AppliedPlan, CompressionPlan, Step, make_plan

MADE = compressor(small_cnn())
SPACE = resolve(load_preset("int8-full"), candidates(MADE.prepared, TARGET), TARGET, TARGET.processor(["avx512_vnni"]))


def quantized(*choices: str) -> CompressionPlan:
    return plan_of(dict(zip(("conv1", "conv2", "fc"), choices, strict=False)))


def test_the_plan_that_leaves_everything_alone_gives_the_original_bytes() -> None:
    for plan in (CompressionPlan(), quantized("float", "float")):
        applied = MADE.resolve(plan)
        assert MADE.build(applied) == MADE.original.data == replay(MADE.original, applied)
        assert applied.tensors == {} and applied.layers == {}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_plan_of_the_space_runs_and_replays(data: st.DataObject) -> None:
    assignment = {layer.name: data.draw(st.sampled_from(layer.options)) for layer in SPACE.layers}
    plan = make_plan(SPACE.decode(assignment), seed=0)
    applied = MADE.resolve(plan)
    made = MADE.build(applied)
    applied = applied.model_copy(update={"result_sha256": hashlib.sha256(made).hexdigest()})
    assert replay(small_cnn(), AppliedPlan.model_validate_json(applied.model_dump_json())) == made
    assert agreement(MADE.original, made) > 0.999
    feed = rows(MADE.original)
    np.testing.assert_allclose(run(made, feed)[0], run(made, feed, optimize=False)[0], atol=0.05 * np.abs(run(made, feed)[0]).max())


def test_numbers_come_from_the_statistics() -> None:
    applied = MADE.resolve(quantized("u8-asym-mse/s8-sym-channel", U8_TENSOR))
    low, high = MADE.range_of("x", ActivationScheme(calibration="mse"))
    scale, zero_point = choose_scale(low, high, "u8", False)
    assert (applied.tensors["x"].scale, applied.tensors["x"].zero_point) == (float(scale), int(zero_point))
    x = rows(MADE.original)["x"]
    assert MADE.range_of("x", ActivationScheme()) == (float(x.min()), float(x.max()))
    assert x.min() < low < 0 < high < x.max()
    # What a Relu writes starts at zero.
    assert applied.tensors["relu1_out"].zero_point == 0
    assert (applied.layers["conv1"].weight, applied.layers["conv2"].weight) != (None, None)
    assert [layer.weight.axis for layer in applied.layers.values() if layer.weight] == [0, None]
    assert applied.model_sha256 == MADE.original.sha256


def test_a_range_is_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compressor(small_cnn())
    made.resolve(quantized(U8_CHANNEL, U8_CHANNEL))

    def fail(*_given: object) -> tuple[float, float]:
        raise AssertionError("a known range was estimated again")

    monkeypatch.setattr("tuner.compress.pipeline.estimate_range", fail)
    made.resolve(quantized(U8_TENSOR, U8_TENSOR))
    with pytest.raises(AssertionError):
        made.resolve(quantized("u8-asym-kl/s8-sym-channel"))


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"conv9": U8_CHANNEL}, "the plan quantizes 'conv9', which is no quantizable layer of this model; see `tuner inspect`"),
        ({"relu1": U8_CHANNEL}, "the plan quantizes 'relu1', which is no quantizable layer of this model; see `tuner inspect`"),
        (
            {"conv1": "int8"},
            "the plan's choice for 'conv1' cannot be read: 'int8' is no quantization scheme; "
            "write one like 'u8-asym-minmax/s8-sym-channel', or 'float'",
        ),
        ({"conv1": U8}, "the plan makes 'conv1' u8-asym-minmax, which is not possible: onnxruntime-cpu has no quantized Conv"),
        ({"op:Erf": U8}, "the plan makes 'op:Erf' u8-asym-minmax, which is not possible: onnxruntime-cpu has no quantized Erf"),
        (
            {"op:Add": U8_CHANNEL},
            "the plan makes 'op:Add' u8-asym-minmax/s8-sym-channel, which is not possible: onnxruntime-cpu has no quantized Add",
        ),
        (
            {"conv1": "float/s8-sym-channel"},
            "the plan makes 'conv1' float/s8-sym-channel, which is not possible: Conv takes u8 or s8 or u16 or s16 activations, not float",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(choices: dict[str, str], text: str) -> None:
    with pytest.raises(PlanError) as error:
        MADE.resolve(plan_of(choices))
    assert str(error.value) == text


def test_an_operator_type_that_has_nothing_to_join_does_no_harm() -> None:
    applied = MADE.resolve(plan_of({"conv1": U8_CHANNEL, "op:Mul": U8}))
    assert list(applied.layers) == ["conv1"]


def test_an_unknown_step_is_named() -> None:
    plan = CompressionPlan(steps=(Step(name="prune"),))
    text = "the plan has the step 'prune', which this version does not know; known: channels, factorize, sparsify, recover, quantize"
    with pytest.raises(PlanError, match=text):
        MADE.resolve(plan)
    with pytest.raises(PlanError, match=text):
        replay(MADE.original, AppliedPlan(plan=plan, model_sha256=MADE.original.sha256))


def test_a_tensor_that_was_not_observed_is_named() -> None:
    with pytest.raises(PlanError) as error:
        MADE.range_of("nowhere", ActivationScheme())
    assert str(error.value) == "tensor 'nowhere' was not observed during calibration, so it has no range; calibrate again"


def test_replaying_on_another_model_is_refused() -> None:
    applied = MADE.resolve(quantized(U8_CHANNEL))
    other = small_cnn(seed=1)
    ours, theirs = MADE.original.sha256[:12], other.sha256[:12]
    with pytest.raises(PlanError) as error:
        replay(other, applied)
    assert str(error.value) == f"the plan was made for the model with SHA-256 {ours}…, got one with {theirs}…; give the original file"


def test_replaying_an_edited_plan_is_noticed() -> None:
    applied, data = quantize(small_cnn(), {"conv1": U8_CHANNEL})
    promised = hashlib.sha256(data).hexdigest()
    edited = applied.tensors["x"].model_copy(update={"scale": applied.tensors["x"].scale * 2})
    changed = applied.model_copy(update={"result_sha256": promised, "tensors": applied.tensors | {"x": edited}})
    with pytest.raises(PlanError, match=rf"gave SHA-256 [0-9a-f]{{12}}…, the plan promises {promised[:12]}…; was it edited\?"):
        replay(small_cnn(), changed)


@pytest.mark.parametrize("change", [{"dtype": "u9"}, {"scale": "wide"}, {"zero_point": 300}])
def test_a_value_that_cannot_be_applied_is_told(change: dict[str, object]) -> None:
    applied, _ = quantize(small_cnn(), {"conv1": U8_CHANNEL})
    edited = applied.tensors["x"].model_copy(update=change)
    with pytest.raises(PlanError, match=r"holds a value that cannot be applied \(.+\); was it edited\? Give the file as the job left it"):
        replay(small_cnn(), applied.model_copy(update={"tensors": applied.tensors | {"x": edited}}))


def test_layers_that_share_a_range_through_moving_operators_say_what_was_really_done() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input(), 3, 4, "one"), name="relu")
    net.output(net.conv(y, 4, 4, "two"))
    model = net.output(net.gemm(net.op("Flatten", y), 256, 5, "fc")).model()
    applied, _ = quantize(model, {"one": U8_CHANNEL, "two": "u8-asym-mse/s8-sym-channel", "fc": "s8-asym-kl/s8-sym-tensor"})
    assert {quant.dtype for quant in applied.tensors.values()} == {"u8"}
    assert applied.layers["fc"].scheme == "u8-asym-mse/s8-sym-tensor"


def test_a_compressed_model_is_smaller() -> None:
    model = Model.parse(MADE.build(MADE.resolve(quantized(U8_TENSOR, U8_TENSOR, U8_TENSOR))))
    weights = sum(MADE.original.array(f"{name}.w").size for name in ("conv1", "conv2", "fc"))
    assert MADE.original.size_bytes - model.size_bytes > 3 * weights - 4000
    assert all(tensor.data_type != 1 or not tensor.name.endswith(".w") for tensor in model.proto.graph.initializer)
