from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import U8_CHANNEL, Net, agreement, quantize, resnet20, rows, run
from onnx import TensorProto, helper

from tuner.compress.fusion import prepare
from tuner.errors import ModelError
from tuner.model.graph import Model, seal, serialize


def kinds(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes.values()]


def check_equal(model: Model, prepared: Model, tolerance: float = 1e-5) -> None:
    feed = rows(model, 4)
    for ours, theirs in zip(run(prepared, feed), run(model, feed, optimize=False), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1.0, float(np.abs(theirs).max())), rtol=0)


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 18])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_norm_leaves_outputs_equal(opset: int, bias: bool) -> None:
    net = Net(opset=opset)
    model = net.output(net.norm(net.conv(net.input(), 3, 6, "conv", bias=bias), 6, "bn")).model()
    prepared = prepare(model)
    assert kinds(prepared) == ["Conv"]
    check_equal(model, prepared)
    assert [output.name for output in prepared.outputs] == [output.name for output in model.outputs]
    # conv.b is overwritten in place, or a bias made.
    assert set(prepared.initializers) == {"conv.w", "conv.b" if bias else "conv.bias"}


def test_epsilon_counts() -> None:
    net = Net()
    y = net.conv(net.input(), 3, 2, "conv")
    parameters = [net.constant(name, values) for name, values in (("g", [1, 2]), ("b", [0, 1]), ("m", [0, 0]), ("v", [0, 1e-4]))]
    model = net.output(net.op("BatchNormalization", y, *parameters, epsilon=0.01)).model()
    check_equal(model, prepare(model))


def test_a_whole_resnet() -> None:
    model = resnet20()
    prepared = prepare(model)
    assert "BatchNormalization" not in kinds(prepared)
    check_equal(model, prepared)


def test_a_weight_that_two_convs_share_gets_a_copy_where_it_is_changed() -> None:
    net = Net()
    first = net.conv(net.input(shape=("batch", 4, 6, 6)), 4, 4, "one")
    second = net.op("Conv", first, "one.w", "one.b", name="two", pads=[1] * 4)
    model = net.output(net.norm(first, 4, "n1")).output(net.norm(second, 4, "n2")).model()
    prepared = prepare(model)
    # one's output has two readers, so only n2 is folded, and one keeps its weight.
    assert kinds(prepared) == ["Conv", "Conv", "BatchNormalization"]
    np.testing.assert_array_equal(prepared.array("one.w"), model.array("one.w"))
    assert list(prepared.nodes["two"].input) == ["one_out", "two.weight", "two.bias"]
    check_equal(model, prepared)


def test_copies_get_a_name_that_is_free() -> None:
    net = Net()
    x = net.input(shape=("batch", 4, 6, 6))
    net.weight("two.weight", (4, 4, 3, 3), 36)
    net.constant("two.bias", np.ones(4))
    first = net.op("Conv", x, "two.weight", "two.bias", name="one", pads=[1] * 4)
    second = net.op("Conv", x, "two.weight", "two.bias", name="two", pads=[1] * 4)
    model = net.output(first).output(net.norm(second, 4, "n2")).model()
    prepared = prepare(model)
    assert list(prepared.nodes["two"].input)[1:] == ["two.weight_", "two.bias_"]
    check_equal(model, prepared)


@pytest.mark.parametrize("reader", ["node", "output", "branch"])
def test_a_conv_whose_output_has_another_reader_is_not_folded(reader: str) -> None:
    net = Net()
    y = net.conv(net.input(), 3, 4, "conv")
    net.output(net.norm(y, 4, "bn"))
    if reader == "node":
        net.output(net.op("Relu", y))
    elif reader == "output":
        net.output(y)
    else:
        info = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
        branches = [helper.make_graph([helper.make_node(kind, [y], ["b"])], kind, [], [info]) for kind in ("Relu", "Neg")]
        flag = net.constant("flag", True, np.bool_)
        net.outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4, 8, 8]))
        net.op("If", flag, out="z", then_branch=branches[0], else_branch=branches[1])
    model = Model.parse(with_branch_shapes(net.proto()))
    prepared = prepare(model)
    assert "BatchNormalization" in kinds(prepared)
    check_equal(model, prepared)


def with_branch_shapes(proto: onnx.ModelProto) -> bytes:
    for node in proto.graph.node:
        for item in node.attribute:
            for value in item.g.output:
                value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["batch", 4, 8, 8]))
    return serialize(proto)


def test_a_norm_in_training_or_without_a_conv_stays() -> None:
    net = Net(opset=15)
    y = net.conv(net.input(), 3, 4, "conv")
    parameters = [net.constant(f"p{i}", np.ones(4)) for i in range(4)]
    net.output(net.op("BatchNormalization", y, *parameters, training_mode=1, name="training"))
    net.nodes[-1].output.extend(["mean", "variance"])
    net.output(net.norm(net.op("Relu", net.input("z", (2, 4, 8, 8))), 4, "lonely"))
    assert kinds(prepare(net.model())).count("BatchNormalization") == 2


def test_constants_become_initializers() -> None:
    net = Net()
    x = net.input()
    values: dict[str, dict[str, Any]] = {
        "tensor": {"value": helper.make_tensor("t", TensorProto.FLOAT, [3, 1, 1], [1, 2, 3])},
        "number": {"value_float": 2.5},
        "numbers": {"value_floats": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]},
    }
    for name, attributes in values.items():
        x = net.op("Mul", x, net.op("Constant", **attributes, out=name), name=f"mul_{name}")
    x = net.op("Reshape", x, net.op("Constant", value_ints=[0, -1], out="shape"))
    x = net.op("Gather", x, net.op("Constant", value_int=3, out="index"), axis=1)
    model = net.output(x).model()
    prepared = prepare(model)
    assert "Constant" not in kinds(prepared)
    assert {name: prepared.array(name).dtype.name for name in ("number", "numbers", "shape", "index")} == {
        "number": "float32",
        "numbers": "float32",
        "shape": "int64",
        "index": "int64",
    }
    assert prepared.array("index").shape == () and prepared.array("shape").tolist() == [0, -1]
    check_equal(model, prepared)


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    net = Net()
    net.output(net.op("Relu", net.input()))
    model = net.output(net.op("Constant", value_floats=[1.0, 2.0], out="fixed")).model()
    prepared = prepare(model)
    assert kinds(prepared) == ["Relu", "Constant"]
    check_equal(model, prepared)


def test_what_nothing_reads_is_dropped_but_not_what_a_branch_reads() -> None:
    net = Net()
    x = net.input(shape=("batch", 4, 8, 8))
    net.constant("unread", np.ones(1000))
    net.constant("deep", np.full((1, 4, 1, 1), 2.0))
    info = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branches = [helper.make_graph([helper.make_node(kind, [x, "deep"], ["b"])], kind, [], [info]) for kind in ("Mul", "Add")]
    net.outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4, 8, 8]))
    net.op("If", net.constant("flag", True, np.bool_), out="z", then_branch=branches[0], else_branch=branches[1])
    model = Model.parse(with_branch_shapes(net.proto()))
    prepared = prepare(model)
    assert set(prepared.initializers) == {"deep", "flag"}
    check_equal(model, prepared)


def test_initializers_that_are_inputs_too_become_constants() -> None:
    net = Net(opset=13)
    model = net.output(net.norm(net.conv(net.input(), 3, 4, "conv"), 4, "bn")).proto()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model.ir_version = 3
    old = Model.parse(serialize(model))
    prepared = prepare(old)
    assert [value.name for value in prepared.proto.graph.input] == ["x"] and prepared.proto.ir_version == 4
    check_equal(old, prepared)
    applied, data = quantize(old, {"conv": U8_CHANNEL})
    assert agreement(old, data) > 0.999 and set(applied.layers) == {"conv"}


@pytest.mark.parametrize("opset", [11, 12])
def test_older_opsets_are_raised_so_that_scales_per_channel_can_be_written(opset: int) -> None:
    net = Net(opset=opset)
    y = net.op("Relu", net.norm(net.conv(net.input(), 3, 4, "conv"), 4, "bn"))
    y = net.op("Squeeze", net.op("Unsqueeze", y, axes=[0], name="more"), axes=[0], name="less")
    y = net.op("Softmax", net.gemm(net.op("Flatten", y), 256, 5, "fc"), name="softmax")
    model = net.output(y).model()
    prepared = prepare(model)
    assert prepared.opset == 13 and "Constant" not in kinds(prepared) and all(prepared.nodes)
    assert prepared.data == prepare(model).data
    check_equal(model, prepared)
    _, data = quantize(model, {"conv": U8_CHANNEL, "fc": U8_CHANNEL})
    assert agreement(model, data) > 0.999
    assert agreement(model, quantize(model, {})[1]) == pytest.approx(1)


def test_newer_opsets_stay() -> None:
    net = Net(opset=14)
    assert prepare(net.output(net.op("Relu", net.input())).model()).opset == 14


def test_a_model_that_cannot_be_raised_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_version(_proto: onnx.ModelProto, _opset: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter\nfor Upsample")

    monkeypatch.setattr("tuner.compress.fusion.version_converter.convert_version", convert_version)
    net = Net(opset=12)
    with pytest.raises(ModelError) as error:
        prepare(net.output(net.op("Relu", net.input())).model())
    assert str(error.value) == (
        "the model has opset 12; a scale per channel needs 13 or more, and raising it failed: no adapter for Upsample. "
        "Export it with opset 13 or later"
    )


def test_preparing_is_deterministic_changes_nothing_given_and_is_done_once() -> None:
    model = resnet20()
    before = serialize(model.proto)
    prepared = prepare(model)
    assert prepared.data == prepare(resnet20()).data
    assert serialize(model.proto) == before
    assert prepare(seal(prepared.copy())).data == prepared.data
