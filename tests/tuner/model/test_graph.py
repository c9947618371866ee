from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Net, run, small_cnn
from onnx import TensorProto, helper, numpy_helper

from tuner.errors import ModelError
from tuner.model.graph import Model, TensorInfo, attribute, inner_reads, seal, serialize


def test_a_model_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    data = small_cnn().data
    path.write_bytes(data)
    model = Model.load(path)
    assert model.data == data and model.size_bytes == len(data)
    assert model.sha256 == hashlib.sha256(data).hexdigest()
    assert small_cnn(0).sha256 == model.sha256 != small_cnn(1).sha256


def test_inputs_outputs_and_opset() -> None:
    net = Net(opset=16)
    x = net.input("image", ("batch", 3, None, 8))
    ids = net.input("ids", (2, -1), TensorProto.INT64)
    model = net.output(net.op("Relu", x, name="relu")).output(net.op("Identity", ids, name="same"), TensorProto.INT64).model()
    assert model.inputs == (TensorInfo("image", "float32", (None, 3, None, 8)), TensorInfo("ids", "int64", (2, None)))
    assert model.outputs[0] == TensorInfo("relu_out", "float32", (None, 3, None, 8))
    assert model.opset == 16


def test_an_initializer_that_is_an_input_too_is_no_input() -> None:
    net = Net()
    net.output(net.op("Mul", net.input(), net.constant("scale", [2.0]), name="mul"))
    net.input("scale", (1,))
    model = net.model()
    assert [value.name for value in model.inputs] == ["x"]


def test_an_input_that_is_no_tensor_is_named() -> None:
    net = Net()
    net.output(net.op("SequenceAt", "many", net.constant("i", 0, np.int64)))
    net.inputs.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, ["n"]))
    proto = net.proto()
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("sequenceat0_out", TensorProto.FLOAT, ["n"]))
    model = Model.parse(serialize(proto))
    with pytest.raises(ModelError, match="'many' of the model is not a tensor; only tensors can be fed and compared"):
        _ = model.inputs


def test_who_writes_and_who_reads() -> None:
    model = small_cnn()
    assert model.producers["relu1_out"].name == "relu1"
    assert [node.name for node in model.consumers["relu1_out"]] == ["conv2", "add"]
    assert list(model.nodes) == ["conv1", "relu1", "conv2", "add", "relu2", "pool", "flatten", "fc"]
    assert "x" not in model.producers and model.outputs[0].name not in model.consumers


def test_a_node_that_reads_a_tensor_twice_is_one_reader() -> None:
    net = Net()
    x = net.op("Relu", net.input())
    model = net.output(net.op("Add", x, x, name="double")).model()
    assert [node.name for node in model.consumers[x]] == ["double"]


def test_parameters_are_trained_floating_point_numbers() -> None:
    net = Net()
    y = net.norm(net.conv(net.input(shape=(2, 3, 8, 8)), 3, 4, "conv", bias=False), 4, "bn")
    y = net.op("Reshape", y, net.constant("shape", [0, -1], np.int64))
    model = net.output(net.op("Add", y, net.constant("half", np.ones((2, 256)), np.float32))).model()
    # Weight, gamma and beta, the added constant; not the running mean and variance, nor the shape.
    assert model.parameters == 4 * 3 * 9 + 2 * 4 + 512


def test_names_that_are_there_stay_and_all_become_unique() -> None:
    net = Net()
    y = net.op("Relu", net.input(), name="", out="a")
    y = net.op("Relu", y, name="Relu_0", out="b")
    y = net.op("Relu", y, name="twice", out="c")
    y = net.op("Relu", y, name="twice", out="d")
    model = net.output(net.op("Relu", y, name="", out="e")).model()
    names = list(model.nodes)
    assert len(names) == len(set(names)) == 5
    assert names[1:3] == ["Relu_0", "twice"]
    assert names == list(net.model().nodes)


def test_shapes_follow_from_the_inputs() -> None:
    shapes = small_cnn().shapes({"x": (7, 3, 8, 8)})
    assert shapes["x"] == (7, 3, 8, 8)
    assert shapes["conv1_out"] == shapes["add_out"] == (7, 8, 8, 8)
    assert shapes["flatten_out"] == (7, 128) and shapes["fc_out"] == (7, 5)
    assert shapes["conv1.w"] == (8, 3, 3, 3)
    assert small_cnn().shapes({})["fc_out"] == (None, 5)


def test_shapes_follow_through_shape_constants_and_big_weights() -> None:
    net = Net()
    x = net.input("x", ("batch", "length", 64))
    y = net.matmul(x, 64, 128, "mm")
    y = net.op("Reshape", y, net.constant("heads", [0, 0, 4, 32], np.int64), name="split")
    model = net.output(net.op("Transpose", y, name="turn", perm=[0, 2, 1, 3])).model()
    assert model.shapes({"x": (2, 10, 64)})["turn_out"] == (2, 4, 10, 32)


def test_inferring_shapes_leaves_the_model_alone() -> None:
    model = small_cnn()
    before = serialize(model.proto)
    model.shapes({"x": (1, 3, 8, 8)})
    model.copy().graph.node[0].name = "changed"
    assert serialize(model.proto) == before


def test_sealing_gives_the_same_bytes_for_the_same_graph() -> None:
    model = small_cnn()
    one, other = seal(model.copy()), seal(model.copy())
    assert one.data == other.data
    np.testing.assert_array_equal(one.array("conv1.w"), numpy_helper.to_array(model.initializers["conv1.w"]))


def test_attributes_have_a_default() -> None:
    node = small_cnn().nodes["pool"]
    assert attribute(node, "kernel_shape") == [2, 2]
    assert attribute(node, "ceil_mode") is None and attribute(node, "ceil_mode", 0) == 0


def branching() -> Net:
    """If(flag) then x · outer else inner If(flag) then x + deep else x."""
    shape: list[str | int | None] = ["batch", 3]

    def graph(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape)])

    net = Net()
    net.input("x", shape)
    net.input("flag", (), TensorProto.BOOL)
    net.constant("outer", [[2.0, 2.0, 2.0]])
    net.constant("deep", [[5.0, 5.0, 5.0]])
    y = net.op("Relu", "x", name="relu", out="r")
    innermost = (graph("t2", helper.make_node("Add", [y, "deep"], ["d"])), graph("e2", helper.make_node("Identity", [y], ["i"])))
    inner = helper.make_node("If", ["flag"], ["n"], then_branch=innermost[0], else_branch=innermost[1])
    branches = (graph("t1", helper.make_node("Mul", [y, "outer"], ["m"])), graph("e1", inner))
    return net.output(net.op("If", "flag", name="if", then_branch=branches[0], else_branch=branches[1]))


def test_what_nested_graphs_read_is_known() -> None:
    model = branching().model()
    assert {"r", "outer", "deep", "flag"} <= inner_reads(model.proto.graph)
    x = np.ones((1, 3), np.float32)
    assert run(model, {"x": x, "flag": np.array(True)})[0].tolist() == [[2, 2, 2]]
