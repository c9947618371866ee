from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import Net, resnet20, rows, run
from split_models import (
    CONVOLUTION_METHODS,
    PRODUCT_METHODS,
    PRODUCTS,
    WINDOWS,
    at_full_rank,
    check_equal,
    convolution,
    evidence,
    linear,
    model_for,
)

from search_spaces.schemes import RankScheme
from tuner.compress.decomposition import Factors, chosen_ranks, factorize, full_rank, methods_for, skeleton
from tuner.compress.factors import METHODS
from tuner.model.graph import Model, attribute, inner_reads, seal
from tuner.model.layers import layer_table


@pytest.mark.parametrize("method", CONVOLUTION_METHODS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("window", list(WINDOWS))
def test_convolutions_of_full_rank_compute_the_same(method: str, window: str, bias: bool) -> None:
    model = convolution(bias=bias, **WINDOWS[window])
    check_equal(model, at_full_rank(model, method))


@pytest.mark.parametrize("kernel", [(5, 3), (1, 3), (3, 1), (2, 2), (1, 1)])
def test_every_kernel_of_full_rank_computes_the_same(kernel: tuple[int, int]) -> None:
    model = convolution(kernel, pads=[1, 0, 0, 1], strides=[2, 1])
    methods = methods_for(model, "layer")
    assert methods == {1: ("channel-svd",), 3: ("channel-svd", "tucker2")}.get(kernel[0] * kernel[1], CONVOLUTION_METHODS)
    for method in methods:
        check_equal(model, at_full_rank(model, method))


@pytest.mark.parametrize("method", PRODUCT_METHODS)
@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_of_full_rank_compute_the_same(method: str, kind: str) -> None:
    model = linear(kind)
    check_equal(model, at_full_rank(model, method))


@pytest.mark.parametrize("method", list(METHODS))
class TestEveryMethod:
    """The contract of all methods."""

    def test_names_and_places(self, method: str) -> None:
        model = model_for(method)
        split = factorize(model, {"layer": RankScheme(method=method, ratio=0.3)}, evidence())
        count = 3 if method == "tucker2" else 2
        assert list(split.nodes)[:count] == [f"layer.{index}" for index in range(count)]
        assert list(split.nodes)[count:] == list(model.nodes)[1:]
        weight = model.nodes["layer"].input[1]
        assert set(split.initializers) - set(model.initializers) == {f"{weight}.{index}" for index in range(count)}
        assert set(model.initializers) - set(split.initializers) == {weight}
        nodes = list(split.nodes.values())
        assert (nodes[0].input[0], nodes[count - 1].output[0]) == (model.nodes["layer"].input[0], model.nodes["layer"].output[0])
        # The bias is the last factor's alone.
        assert [list(node.input[2:]) for node in nodes[:count]] == [*[[]] * (count - 1), list(model.nodes["layer"].input[2:])]
        onnx.checker.check_model(split.proto, full_check=True)
        assert [value.shape for value in split.outputs] == [value.shape for value in model.outputs]

    def test_everything_else_is_left_as_it_is(self, method: str) -> None:
        model = model_for(method)
        split = factorize(model, {"layer": RankScheme(method=method, ratio=0.3)}, evidence())
        for name, tensor in model.initializers.items():
            assert name not in split.initializers or split.initializers[name] == tensor
        assert all(split.nodes[name] == node for name, node in model.nodes.items() if name != "layer")
        assert (split.proto.graph.input, split.proto.graph.output) == (model.proto.graph.input, model.proto.graph.output)
        assert factorize(model, {}) is model

    def test_the_same_bytes_each_time(self, method: str) -> None:
        choices = {"layer": RankScheme(method=method, ratio=0.3)}
        first, second = (factorize(model_for(method), choices, evidence()) for _ in range(2))
        assert first.data == second.data

    def test_the_skeleton_is_the_same_graph_without_values(self, method: str) -> None:
        model = model_for(method)
        choices = {"layer": RankScheme(method=method, ratio=0.3)}
        split = factorize(model, choices, evidence())
        bare = skeleton(model, chosen_ranks(model, choices))
        assert bare.proto.graph.node == split.proto.graph.node
        sizes = {name: (tensor.dims, tensor.data_type) for name, tensor in split.initializers.items()}
        assert {name: (tensor.dims, tensor.data_type) for name, tensor in bare.initializers.items()} == sizes
        proto = bare.copy()
        for tensor in proto.graph.initializer:
            tensor.CopyFrom(split.initializers[tensor.name])
        assert seal(proto).data == split.data
        assert not any(bare.array(name).any() for name in set(bare.initializers) - set(model.initializers))


def test_asvd_is_nearer_on_its_calibration_data_than_svd() -> None:
    model = linear("matmul 3-D")
    feed = {"x": rows(model)["x"] * np.geomspace(0.05, 5, 7).astype(np.float32)}
    x = feed["x"].reshape(-1, 7).astype(np.float64)
    [wanted] = run(model, feed)
    errors = {}
    for method in ("svd-llm", "svd"):
        split = factorize(model, {"layer": Factors(method, 3)}, {"layer": {"hessian": x.T @ x}})
        errors[method] = float(np.square(run(split, feed)[0] - wanted).sum())
    assert errors["svd-llm"] < 0.9 * errors["svd"]


def test_a_leading_axis_of_one_group_is_taken_off_the_evidence() -> None:
    model, seen = linear("gemm"), evidence()["layer"]
    grouped = {"layer": {"hessian": seen["hessian"][None]}}
    choices = {"layer": RankScheme(method="svd-llm", ratio=0.2)}
    assert factorize(model, choices, grouped).data == factorize(model, choices, {"layer": seen}).data


def test_a_whole_network() -> None:
    model = resnet20()
    layers = [layer.name for layer in layer_table(model) if "tucker2" in methods_for(model, layer.name)]
    assert len(layers) == 19
    split = factorize(model, {name: RankScheme(method="tucker2", ratio=0.3) for name in reversed(layers)})
    assert [node.op_type for node in split.nodes.values()].count("BatchNormalization") == 19
    before, after = ({e.name: e.macs or 0 for e in layer_table(m)} for m in (model, split))
    for name in layers:
        assert sum(after[f"{name}.{index}"] for index in range(3)) <= 0.7 * before[name]
    assert run(split, rows(model, 2))[0].shape == (2, 10)


def shared(second: bool) -> Model:
    """Two convolutions with the same weight; `second`: what else reads it is the graph's output."""
    net = Net()
    x = net.conv(net.input(shape=("batch", 4, 6, 6)), 4, 4, "one")
    y = net.op("Conv", x, "one.w", name="two", pads=[1] * 4)
    net.output(y)
    return (net.output(net.op("Identity", "one.w", name="id")) if second else net).model()


def test_a_weight_that_others_read_stays() -> None:
    model = shared(second=True)
    split = factorize(model, {"two": Factors("channel-svd", 4)})
    assert set(split.initializers) - set(model.initializers) == {"one.w.0", "one.w.1"} and "one.w" in split.initializers
    check_equal(model, split)


def test_layers_that_share_a_weight_get_factors_of_their_own() -> None:
    model = shared(second=False)
    split = factorize(model, {"two": Factors("channel-svd", 4), "one": Factors("spatial-svd", 12)})
    assert {name: list(node.input)[1] for name, node in split.nodes.items()} == {
        "one.0": "one.w.0",
        "one.1": "one.w.1",
        "two.0": "one.w.0_",
        "two.1": "one.w.1_",
    }
    assert "one.w" not in split.initializers
    check_equal(model, split)


def test_names_that_are_taken_are_left_alone() -> None:
    net = Net()
    x = net.op("Relu", net.input(shape=("batch", 7)), name="layer.0", out="layer_out.0")
    y = net.gemm(x, 7, 9, "layer")
    model = net.output(net.op("Add", y, net.constant("layer.w.1", np.ones(9)))).model()
    split = at_full_rank(model, "svd")
    assert list(split.nodes) == ["layer.0", "layer.0_", "layer.1", "add2"]
    assert list(split.nodes["layer.1"].input) == ["layer_out.0_", "layer.w.1_", "layer.b"]
    check_equal(model, split)


def test_a_weight_that_a_branch_reads_stays() -> None:
    net = Net()
    y = net.gemm(net.input(shape=("batch", 4)), 4, 4, "layer")
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", [y, "layer.w"], ["branch_out"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("branch_out", onnx.TensorProto.FLOAT, None)],
    )
    chosen = net.constant("chosen", True, np.bool_)
    model = net.output(net.op("If", chosen, name="if", then_branch=branch, else_branch=branch), shape=("batch", 4)).model()
    assert "layer.w" in inner_reads(model.proto.graph)
    split = at_full_rank_without_evidence(model)
    assert "layer.w" in split.initializers
    check_equal(model, split)


def at_full_rank_without_evidence(model: Model) -> Model:
    return factorize(model, {"layer": Factors("svd", full_rank(model, "layer", "svd"))})


def test_a_weight_that_is_an_input_too_ends_as_both() -> None:
    """As files of the first IR versions have it."""
    proto = linear("gemm").copy()
    for name, shape in (("layer.w", (9, 7)), ("layer.b", (9,))):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    proto.ir_version = 3
    model = seal(proto)
    split = at_full_rank_without_evidence(model)
    assert [value.name for value in split.proto.graph.input] == ["x", "layer.b"]
    assert split.proto.ir_version == 4
    check_equal(model, split)


def test_a_split_layer_can_be_split_again() -> None:
    model = convolution(i=12, o=16, pads=[1] * 4)
    once = factorize(model, {"layer": RankScheme(method="tucker2", ratio=0.3)})
    twice = factorize(once, {"layer.1": RankScheme(method="spatial-svd", ratio=0.3)})
    assert [node.name for node in twice.nodes.values()] == ["layer.0", "layer.1.0", "layer.1.1", "layer.2", "bn"]
    assert attribute(twice.nodes["layer.1.0"], "kernel_shape") == [3, 1]
