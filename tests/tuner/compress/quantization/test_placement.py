from __future__ import annotations

import numpy as np
import pytest
from builders import S8_CHANNEL, TARGET, U8, U8_CHANNEL, U8_TENSOR, Net, agreement, compressor, plan_of, resnet20, run, schemes, small_cnn
from onnx import TensorProto

from tuner.compress.fusion import prepare
from tuner.compress.quantization.placement import Placement, candidates, links, observed_tensors, place
from tuner.model.graph import Model

MSE, KL = "u8-asym-mse/s8-sym-channel", "u8-asym-kl/s8-sym-channel"
S8 = "s8-sym-minmax"
S8_ASYM = "s8-asym-minmax/s8-sym-channel"

Readers = dict[str, tuple[str, ...]]


def placed(model: Model, choices: dict[str, str], least: float = 0.999) -> Placement:
    """Where the choices put quantization, after checking that the graph they give loads, runs and says much the same."""
    made = compressor(model)
    data = made.build(made.resolve(plan_of(choices)))
    assert agreement(model, data) > least
    placement = place(made.prepared, schemes(choices), TARGET)
    assert set(placement.tensors) == set(made.resolve(plan_of(choices)).tensors)
    return placement


def readers(placement: Placement) -> Readers:
    return {name: tensor.readers for name, tensor in placement.tensors.items()}


def names(placement: Placement) -> dict[str, str]:
    return {name: tensor.scheme.name for name, tensor in placement.tensors.items()}


def roots(placement: Placement) -> dict[str, str]:
    return {name: tensor.root for name, tensor in placement.tensors.items() if tensor.root != name}


def two_convs(activation: str = "Relu", seed: int = 0) -> Net:
    """x → one → activation → two → y."""
    net = Net(seed)
    first = net.conv(net.input(), 3, 8, "one")
    bounds = [net.constant("low", 0.0), net.constant("high", 6.0)] if activation == "Clip" else []
    return net.output(net.conv(net.op(activation, first, *bounds, name="act"), 8, 4, "two"))


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_an_activation_between_two_convs_disappears_into_the_range(activation: str) -> None:
    both = placed(two_convs(activation).model(), {"one": U8_CHANNEL, "two": U8_CHANNEL})
    assert list(both.nodes) == ["one", "two"]
    assert readers(both) == {"x": ("one",), "act_out": (), "two_out": ()}


@pytest.mark.parametrize(
    ("quantized", "expected"),
    [
        ("one", {"x": ("one",), "act_out": ()}),
        ("two", {"act_out": ("two",), "two_out": ()}),
    ],
)
def test_a_float_neighbour_reads_what_a_conv_wrote_quantized_and_writes_float(quantized: str, expected: Readers) -> None:
    assert readers(placed(two_convs().model(), {quantized: U8_CHANNEL})) == expected


def test_a_conv_between_float_convs() -> None:
    net = Net()
    y = net.conv(net.conv(net.conv(net.input(), 3, 4, "one"), 4, 4, "two"), 4, 4, "three")
    placement = placed(net.output(y).model(), {"two": U8_CHANNEL})
    assert readers(placement) == {"one_out": ("two",), "two_out": ()}


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_symmetric_range_leaves_the_activation_in_place(activation: str) -> None:
    placement = placed(two_convs(activation).model(), {"one": S8_CHANNEL, "two": S8_CHANNEL})
    assert readers(placement) == {"x": ("one",), "one_out": (), "act_out": ("two",), "two_out": ()}


def test_a_symmetric_writer_and_an_asymmetric_reader_agree_on_the_readers_scheme() -> None:
    placement = placed(two_convs().model(), {"one": S8_CHANNEL, "two": MSE})
    assert names(placement) == {"x": S8, "act_out": "u8-asym-mse", "two_out": "u8-asym-mse"}


def test_a_clip_that_does_not_start_at_zero_stays() -> None:
    net = Net()
    y = net.op("Clip", net.conv(net.input(), 3, 8, "one"), net.constant("low", -1.0), net.constant("high", 1.0), name="act")
    y = net.op("Clip", net.conv(y, 8, 4, "two"), "", "high", name="open")
    placement = placed(net.output(net.conv(y, 4, 4, "three")).model(), dict.fromkeys(("one", "two", "three"), U8_CHANNEL))
    assert readers(placement) == {
        "x": ("one",),
        "one_out": (),
        "act_out": ("two",),
        "two_out": (),
        "open_out": ("three",),
        "three_out": (),
    }


def test_a_relu_that_is_not_alone_stays() -> None:
    net = Net()
    first = net.conv(net.input(), 3, 8, "one")
    net.output(net.conv(net.op("Relu", first, name="relu"), 8, 4, "two")).output(first)
    placement = placed(net.model(), {"one": U8_CHANNEL, "two": U8_CHANNEL})
    assert readers(placement) == {"x": ("one",), "one_out": (), "relu_out": ("two",), "two_out": ()}


def test_the_first_layer_that_reads_a_tensor_gives_its_scheme() -> None:
    net = Net()
    first = net.conv(net.input(), 3, 8, "one")
    net.output(net.conv(first, 8, 4, "two")).output(net.conv(first, 8, 4, "three"))
    choices = {"one": U8_CHANNEL, "two": MSE, "three": KL}
    assert names(placed(net.model(), choices)) == {
        "x": U8,
        "one_out": "u8-asym-mse",
        "two_out": "u8-asym-mse",
        "three_out": "u8-asym-kl",
    }
    assert names(placed(net.model(), {"one": U8_CHANNEL, "three": KL}))["one_out"] == "u8-asym-kl"
    assert names(placed(net.model(), {"one": U8_CHANNEL}))["one_out"] == U8


def test_layers_that_share_a_float_input_share_one_range() -> None:
    net = Net()
    x = net.input()
    net.output(net.conv(x, 3, 4, "one")).output(net.conv(x, 3, 4, "two")).output(net.conv(x, 3, 4, "three"))
    placement = placed(net.model(), {"one": MSE, "three": KL})
    assert readers(placement) == {"x": ("one", "three"), "one_out": (), "three_out": ()}
    assert names(placement)["x"] == "u8-asym-mse"


def test_an_add_between_quantized_layers_joins_if_its_type_is_chosen() -> None:
    choices = {"conv1": U8_CHANNEL, "conv2": U8_CHANNEL, "fc": U8_CHANNEL}
    on = placed(small_cnn(), choices | {"op:Add": "u8-asym-kl"})
    assert list(on.nodes) == ["conv1", "conv2", "add", "fc"]
    moved = {"pool_out": (), "flatten_out": ()}
    assert readers(on) == {"x": ("conv1",), "relu1_out": (), "conv2_out": (), "relu2_out": ()} | moved
    assert roots(on) == {"pool_out": "relu2_out", "flatten_out": "relu2_out"}
    # fc reads the sum, moved only: its scheme goes before that of the writer.
    assert names(on)["relu2_out"] == U8 and names(on)["conv2_out"] == U8
    off = placed(small_cnn(), choices)
    assert list(off.nodes) == ["conv1", "conv2", "fc"]
    assert readers(off) == {"x": ("conv1",), "relu1_out": (), "conv2_out": (), "flatten_out": ("fc",)}
    assert roots(off) == {}


def test_an_add_with_a_float_operand_stays_in_float() -> None:
    placement = placed(small_cnn(), {"conv1": U8_CHANNEL, "op:Add": U8})
    assert list(placement.nodes) == ["conv1"]
    placement = placed(small_cnn(), {"conv2": U8_CHANNEL, "op:Add": U8})
    # relu1_out is quantized for conv2, so that the sum joins.
    assert list(placement.nodes) == ["conv2", "add"]
    assert readers(placement)["relu1_out"] == ("conv2", "add")


def test_an_operator_gives_its_own_scheme_to_what_no_layer_reads() -> None:
    net = Net()
    x = net.input()
    total = net.op("Add", net.conv(x, 3, 4, "one"), net.conv(x, 3, 4, "two"), name="add")
    placement = placed(net.output(net.op("Relu", total, name="relu")).model(), {"one": MSE, "two": KL, "op:Add": "u8-asym-p99.99"})
    assert names(placement) == {"x": "u8-asym-mse", "one_out": "u8-asym-mse", "two_out": "u8-asym-kl", "relu_out": "u8-asym-p99.99"}


CHAIN = ["sliced", "padded", "pooled", "shaped", "turned", "flat"]


def chain() -> Net:
    """one → Relu → Slice → Pad → MaxPool → Reshape → Transpose → Flatten → fc."""
    net = Net()
    y = net.op("Relu", net.conv(net.input(), 3, 8, "one"), name="relu")
    ends = [net.constant(f"c{i}", values, np.int64) for i, values in enumerate(([1, 1], [99, 99], [2, 3], [2, 2]))]
    y = net.op("Slice", y, *ends, out="sliced")
    y = net.op("Pad", y, net.constant("pads", [0, 1, 0, 0, 0, 1, 0, 0], np.int64), out="padded")
    y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], out="pooled")
    y = net.op("Reshape", y, net.constant("shape", [0, 5, 2, 4], np.int64), out="shaped")
    y = net.op("Flatten", net.op("Transpose", y, perm=[0, 2, 1, 3], out="turned"), out="flat")
    return net.output(net.gemm(y, 40, 5, "fc"))


def test_operators_that_move_numbers_keep_the_scale() -> None:
    placement = placed(chain().model(), {"one": U8_CHANNEL, "fc": MSE})
    assert list(placement.nodes) == ["one", "fc"]
    assert readers(placement) == {"x": ("one",), "relu_out": (), **dict.fromkeys(CHAIN, ())}
    assert roots(placement) == dict.fromkeys(CHAIN, "relu_out")
    assert set(names(placement).values()) == {U8, "u8-asym-mse"} and names(placement)["relu_out"] == "u8-asym-mse"
    made = compressor(chain().model())
    applied = made.resolve(plan_of({"one": U8_CHANNEL, "fc": MSE}))
    assert len({(applied.tensors[name].scale, applied.tensors[name].zero_point) for name in ("relu_out", *CHAIN)}) == 1


def test_operators_that_move_numbers_stay_in_float_where_nobody_wants_them() -> None:
    assert readers(placed(chain().model(), {"one": U8_CHANNEL})) == {"x": ("one",), "relu_out": ()}
    assert readers(placed(chain().model(), {"fc": U8_CHANNEL})) == {"flat": ("fc",)}


def test_symmetric_ranges_move_too() -> None:
    placement = placed(chain().model(), {"one": S8_CHANNEL, "fc": S8_CHANNEL})
    assert readers(placement) == {"x": ("one",), "one_out": (), "relu_out": ("slice2",), **dict.fromkeys(CHAIN, ())}
    assert roots(placement) == dict.fromkeys(CHAIN, "relu_out")


@pytest.mark.parametrize(("value", "joins"), [(None, True), (0.0, True), (-100.0, False)])
def test_a_pad_joins_only_with_zeros(value: float | None, joins: bool) -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input(), 3, 8, "one"), name="relu")
    fill = [] if value is None else [net.constant("fill", value)]
    y = net.op("Pad", y, net.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64), *fill, name="pad")
    y = net.op("MaxPool", y, kernel_shape=[3, 3], name="pool")
    placement = placed(net.output(net.conv(y, 8, 4, "two")).model(), {"one": U8_CHANNEL, "two": U8_CHANNEL})
    assert roots(placement) == ({"pad_out": "relu_out", "pool_out": "relu_out"} if joins else {})


def test_products_with_a_weight_write_float() -> None:
    net = Net()
    y = net.op("Relu", net.matmul(net.input("x", ("batch", 6, 16)), 16, 16, "one"), name="relu")
    placement = placed(net.output(net.matmul(y, 16, 4, "two")).model(), {"one": U8_CHANNEL, "two": U8_CHANNEL})
    assert readers(placement) == {"x": ("one",), "relu_out": ("two",)}


def attention(projection: str = "Conv") -> Net:
    """softmax(q · k) · v, then a projection; q, k and v from 1×1 convolutions, or from products with a weight."""
    net = Net()
    if projection == "Conv":
        x = net.input("x", ("batch", 8, 4, 4))
        net.constant("shape", [0, 8, 16], np.int64)
        parts = [net.op("Reshape", net.conv(x, 8, 8, name, kernel=1), "shape", out=f"{name}_flat") for name in "qkv"]
        q, k, v = net.op("Transpose", parts[0], perm=[0, 2, 1], out="q_turned"), parts[1], parts[2]
        v = net.op("Transpose", v, perm=[0, 2, 1], out="v_turned")
    else:
        x = net.input("x", ("batch", 16, 8))
        q, k, v = (net.matmul(x, 8, 8, name) for name in "qkv")
        k = net.op("Transpose", k, perm=[0, 2, 1], out="k_turned")
    weights = net.op("Softmax", net.op("MatMul", q, k, name="scores"), name="softmax", axis=-1)
    return net.output(net.matmul(net.op("MatMul", weights, v, name="mix"), 8, 5, "out"))


def test_products_of_two_activations_join_between_quantized_layers() -> None:
    choices = dict.fromkeys("qkv", U8_CHANNEL) | {"out": U8_CHANNEL, "op:MatMul": U8, "op:Softmax": U8}
    placement = placed(attention().model(), choices)
    assert list(placement.nodes) == ["q", "k", "v", "scores", "softmax", "mix", "out"]
    assert readers(placement)["scores_out"] == readers(placement)["softmax_out"] == readers(placement)["mix_out"] == ()
    assert roots(placement) == {"q_flat": "q_out", "q_turned": "q_out", "k_flat": "k_out", "v_flat": "v_out", "v_turned": "v_out"}
    partly = placed(attention().model(), {name: choice for name, choice in choices.items() if name != "op:Softmax"} | {"q": U8_TENSOR})
    assert "mix" not in partly.nodes and "scores" in partly.nodes
    without_v = placed(attention().model(), {name: choice for name, choice in choices.items() if name != "v"})
    assert "mix" not in without_v.nodes and "softmax" in without_v.nodes


def test_products_that_write_float_let_no_operator_join() -> None:
    model = attention("MatMul").model()
    choices = dict.fromkeys(("q", "k", "v", "out"), U8_CHANNEL) | {"op:MatMul": U8, "op:Softmax": U8}
    assert list(placed(model, choices).nodes) == ["q", "k", "v", "out"]
    assert [candidate.name for candidate in candidates(prepare(model), TARGET)] == ["q", "k", "v", "out"]


def test_a_graph_output_that_is_quantized_keeps_its_name_and_type() -> None:
    net = Net()
    first = net.conv(net.input(), 3, 8, "one")
    model = net.output(first).output(net.conv(first, 8, 4, "two")).output(net.op("Sigmoid", first, name="other")).model()
    choices = {"one": U8_CHANNEL, "two": U8_CHANNEL}
    assert readers(placed(model, choices)) == {"x": ("one",), "one_out": (), "two_out": ()}
    made = compressor(model)
    applied = made.resolve(plan_of(choices))
    quantized = Model.parse(made.build(applied))
    assert quantized.outputs == model.outputs
    x = np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype(np.float32)
    one, two, other = run(quantized, {"x": x})
    # What leaves the graph is what the others read: whole steps of the scale.
    steps = one / np.float32(applied.tensors["one_out"].scale)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    np.testing.assert_allclose(other, 1 / (1 + np.exp(-one)), atol=1e-5)
    assert two.shape == (4, 4, 8, 8)


def test_a_float_output_that_a_layer_reads_stays_float() -> None:
    net = Net()
    first = net.conv(net.input(), 3, 8, "one")
    model = net.output(first).output(net.conv(first, 8, 4, "two")).model()
    made = compressor(model)
    applied = made.resolve(plan_of({"two": U8_CHANNEL}))
    assert applied.tensors["one_out"].readers == ("two",)
    x = np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype(np.float32)
    # Bit for bit, but for the order in which fused kernels add.
    np.testing.assert_allclose(run(made.build(applied), {"x": x})[0], run(model, {"x": x})[0], atol=1e-5)


def test_a_graph_input_that_an_operator_reads_is_quantized_only_for_a_layer() -> None:
    net = Net()
    x = net.input(shape=("batch", 4, 8, 8))
    model = net.output(net.op("Add", net.conv(x, 4, 4, "one"), x, name="add")).model()
    placement = placed(model, {"one": U8_CHANNEL, "op:Add": U8})
    assert list(placement.nodes) == ["one", "add"] and readers(placement)["x"] == ("one", "add")


def test_an_input_fed_straight_to_an_output_is_left_alone() -> None:
    net = Net()
    x = net.input()
    model = net.output(net.conv(x, 3, 4, "one")).output(net.op("Identity", x)).model()
    placement = placed(model, {"one": U8_CHANNEL})
    assert readers(placement) == {"x": ("one",), "one_out": ()}


def test_a_table_needs_no_range() -> None:
    net = Net()
    ids = net.input("ids", ("batch", 6), TensorProto.INT64)
    y = net.op("Gather", net.weight("table", (10, 16), 16), ids, name="table_rows")
    model = net.output(net.matmul(y, 16, 5, "out")).model()
    assert readers(placed(model, {"table_rows": "float/s8-sym-channel"})) == {}
    assert readers(placed(model, {"table_rows": "float/s8-sym-tensor", "out": U8_CHANNEL})) == {"table_rows_out": ("out",)}


def odd_layers() -> dict[str, Net]:
    """Layers with a weight that cannot be quantized."""
    nets = {name: Net() for name in ("transA", "alpha", "beta", "axis", "left", "stack", "computed bias", "output", "folded")}
    flat, x = ("batch", 8), nets["transA"].input("x", (8, 4))
    nets["transA"].output(nets["transA"].gemm(x, 8, 5, "layer", transA=1))
    nets["alpha"].output(nets["alpha"].gemm(nets["alpha"].input("x", flat), 8, 5, "layer", alpha=0.5))
    nets["beta"].output(nets["beta"].gemm(nets["beta"].input("x", flat), 8, 5, "layer", beta=2.0))
    net = nets["axis"]
    net.output(net.op("Gather", net.weight("w", (4, 9), 4), net.input("ids", (3,), TensorProto.INT64), axis=1, name="layer"))
    net = nets["left"]
    net.output(net.op("MatMul", net.weight("w", (5, 8), 8), net.input("x", ("batch", 8, 3)), name="layer"))
    net = nets["stack"]
    net.output(net.op("MatMul", net.input("x", ("batch", 3, 4, 8)), net.weight("w", (3, 8, 5), 8), name="layer"))
    net = nets["computed bias"]
    weight = net.weight("w", (4, 3, 1, 1), 3)
    net.output(net.op("Conv", net.input(), weight, net.op("Relu", net.input("b", (4,))), name="layer"))
    net = nets["output"]
    net.output(net.op("Conv", net.input(), net.weight("w", (4, 3, 1, 1), 3), name="layer")).output("w", shape=(4, 3, 1, 1))
    net = nets["folded"]
    net.output(net.op("Relu", net.input("unused", (1,))))
    net.output(net.op("Conv", net.constant("c", np.ones((1, 3, 4, 4))), net.weight("w", (4, 3, 1, 1), 3), name="layer"))
    return nets


@pytest.mark.parametrize("kind", list(odd_layers()))
def test_layers_that_cannot_be_quantized_are_no_candidates_and_stay_in_float(kind: str) -> None:
    prepared = prepare(odd_layers()[kind].model())
    assert "layer" in prepared.nodes
    assert candidates(prepared, TARGET) == []
    assert place(prepared, schemes({"layer": U8_CHANNEL}), TARGET) == Placement({}, {})


def test_candidates_come_layers_first_with_what_they_read() -> None:
    found = [(c.name, c.op, c.has_weight, c.input) for c in candidates(prepare(small_cnn()), TARGET)]
    assert found == [
        ("conv1", "Conv", True, "x"),
        ("conv2", "Conv", True, "relu1_out"),
        ("fc", "Gemm", True, "flatten_out"),
        ("op:Add", "Add", False, ""),
    ]
    layers = [c for c in candidates(prepare(resnet20()), TARGET) if c.has_weight]
    assert len(layers) == 20
    # GlobalAveragePool reads only what an Add wrote: both can join.
    assert {c.name for c in candidates(prepare(resnet20()), TARGET)} - {c.name for c in layers} == {"op:Add", "op:GlobalAveragePool"}


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_range_that_a_placement_needs_is_observed(symmetric: bool) -> None:
    options = [U8_CHANNEL, S8_CHANNEL, S8_ASYM] if symmetric else [U8_CHANNEL, S8_ASYM]
    random = np.random.default_rng(0)
    for model in (small_cnn(), resnet20(), chain().model(), attention().model(), two_convs("Clip").model()):
        prepared = prepare(model)
        observed = observed_tensors(prepared, TARGET, symmetric)
        assert len(observed) == len(set(observed))
        for _ in range(20):
            choices = {}
            for candidate in candidates(prepared, TARGET):
                option = options[random.integers(len(options))]
                choices[candidate.name] = option if candidate.has_weight else option.split("/")[0]
            chosen = {name: option for name, option in choices.items() if random.random() < 0.8}
            for tensor in place(prepared, schemes(chosen), TARGET).tensors.values():
                assert tensor.root in observed


def test_without_symmetric_ranges_less_is_observed() -> None:
    prepared = prepare(two_convs().model())
    assert observed_tensors(prepared, TARGET) == ["x", "one_out", "act_out", "two_out"]
    assert observed_tensors(prepared, TARGET, symmetric=False) == ["x", "act_out", "two_out"]


def test_links_say_who_reads_what_another_wrote_quantized() -> None:
    assert links(prepare(small_cnn()), TARGET) == [
        ("conv1", "conv2", "relu1_out"),
        ("conv2", "op:Add", "conv2_out"),
        ("conv1", "op:Add", "relu1_out"),
        ("op:Add", "fc", "flatten_out"),
    ]
    net = Net()
    y = net.matmul(net.input("x", ("batch", 16)), 16, 16, "one")
    assert links(prepare(net.output(net.matmul(y, 16, 4, "two")).model()), TARGET) == []
