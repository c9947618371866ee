from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from builders import resnet20, rows, run
from channel_networks import NETWORKS, Wired, attention, flattened, inverted_residual, joined, plain_chain, shared_constants
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.compress.pruning.channels import ChannelGroups, find_groups
from tuner.compress.pruning.removal import Removed, mask_channels, prove, remove_channels
from tuner.errors import PlanError
from tuner.model.graph import Model, attribute

CLOSE = 1e-4


@cache
def network(name: str) -> tuple[Model, ChannelGroups]:
    model = NETWORKS[name]()
    return model, find_groups(model)


def share(found: ChannelGroups, seed: int, most: float = 1.0) -> dict[str, list[int]]:
    """Some channels of every group, chosen by chance; at least one stays."""
    random = np.random.default_rng(seed)
    counts = {group.name: int(random.integers(0, max(1, int(most * group.size)))) for group in found.groups}
    return {group.name: random.choice(group.size, counts[group.name], replace=False).tolist() for group in found.groups}


def difference(model: Model, removed: Removed, batch: int = 3) -> float:
    feed = rows(model, batch)
    return prove(mask_channels(model, removed), remove_channels(model, removed), lambda each: run(each, feed))


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_cutting_equals_masking(name: str, seed: int) -> None:
    model, found = network(name)
    removed = share(found, seed)
    assert difference(model, removed, batch=1 + seed % 3 if model.inputs[0].shape[0] is None else 2) < CLOSE


@pytest.mark.parametrize("name", NETWORKS)
def test_as_much_as_can_go(name: str) -> None:
    model, found = network(name)
    removed = {group.name: range(1, group.size) for group in found.groups}
    assert found.groups
    assert difference(model, removed) < CLOSE
    onnx.checker.check_model(remove_channels(model, removed).proto, full_check=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_model_can_be_cut_again(name: str) -> None:
    model, found = network(name)
    half = remove_channels(model, share(found, 1, most=0.5))
    assert difference(half, share(find_groups(half), 2)) < CLOSE


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_do_change(name: str) -> None:
    """The proof would hold for channels that nothing reads; these are read."""
    model, found = network(name)
    feed = rows(model, 2)
    for group in found.groups:
        cut = remove_channels(model, {group.name: range(1, group.size)})
        assert max(float(np.abs(a - b).max()) for a, b in zip(run(model, feed), run(cut, feed), strict=True)) > 1e-6, group.name


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_shrink_by_what_the_slots_say(name: str) -> None:
    model, found = network(name)
    removed = share(found, 3)
    cut = remove_channels(model, removed)
    expected = {tensor: list(proto.dims) for tensor, proto in model.initializers.items()}
    for group in found.groups:
        for slot in group.slots:
            if slot.role != "tied" and slot.initializer in expected:
                expected[slot.initializer][slot.axis] -= sum(len(slot.positions[channel]) for channel in removed[group.name])
    weights = {slot.initializer for group in found.groups for slot in group.slots if slot.role != "tied"}
    assert {weight: list(cut.initializers[weight].dims) for weight in weights} == {weight: expected[weight] for weight in weights}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_interface_stay_and_bytes_are_the_same_every_time(name: str) -> None:
    model, found = network(name)
    removed = share(found, 5)
    cut = remove_channels(model, removed)
    assert remove_channels(NETWORKS[name](), removed).data == cut.data
    assert (cut.inputs, cut.outputs) == (model.inputs, model.outputs)
    parametric = [node.name for node in model.nodes.values() if any(input in model.initializers for input in node.input)]
    shapes = {node for node in parametric if model.nodes[node].op_type in ("Unsqueeze", "Concat", "Gather")}
    assert {node for node in parametric if node not in cut.nodes} <= shapes
    assert len(cut.proto.graph.value_info) == 0


def test_removing_nothing_gives_the_same_bytes() -> None:
    model = resnet20()
    assert remove_channels(model, {}).data == model.data
    assert remove_channels(model, {"stem": []}).data == model.data
    assert mask_channels(model, {"stem": []}).data == model.data


def test_a_chain_is_sliced() -> None:
    model = plain_chain()
    cut = remove_channels(model, {"conv1": [0, 5]})
    kept = [1, 2, 3, 4, 6, 7]
    assert np.array_equal(cut.array("conv1.w"), model.array("conv1.w")[kept])
    assert np.array_equal(cut.array("norm1.v"), model.array("norm1.v")[kept])
    assert np.array_equal(cut.array("conv2.w"), model.array("conv2.w")[:, kept])
    assert np.array_equal(cut.array("conv2.b"), model.array("conv2.b"))


def test_a_mask_is_zero_where_channels_are_read_and_nowhere_else() -> None:
    model = plain_chain()
    masked = mask_channels(model, {"conv1": [0, 5]})
    expected = model.array("conv2.w").copy()
    expected[:, [0, 5]] = 0
    assert np.array_equal(masked.array("conv2.w"), expected)
    others = [name for name in model.initializers if name != "conv2.w"]
    assert all(np.array_equal(masked.array(name), model.array(name)) for name in others)


def test_channels_that_nothing_weighs_leave_the_outputs_as_they_are() -> None:
    """The identity without masks: where the weights that read channels are zero, cutting them changes nothing."""
    model, found = network("inverted residual")
    removed = {"expand": [1, 2, 9], "squeeze": [3], "stem": [0]}
    silent = mask_channels(model, removed)
    feed = rows(model, 4)
    assert np.allclose(run(silent, feed)[0], run(remove_channels(silent, removed), feed)[0], atol=1e-5)
    assert found.groups


def test_a_depthwise_convolution_has_fewer_groups() -> None:
    cut = remove_channels(inverted_residual(), {"expand": [0, 1, 2], "stem": [4]})
    assert attribute(cut.nodes["depthwise"], "group") == 13
    assert attribute(cut.nodes["twice"], "group") == 7
    assert tuple(cut.initializers["twice.w"].dims) == (14, 1, 3, 3)


def test_pads_shrink_where_the_shortcut_is_cut() -> None:
    """Channels 0 to 7 and 24 to 31 of stage 1 are added to padding; the group counts them 0 to 15."""
    cut = remove_channels(resnet20(), {"s1b0c2": [0, 1, 2, 8], "stem": [0]})
    assert cut.array("s1b0pads").tolist() == [0, 5, 0, 0, 0, 7, 0, 0]
    assert cut.array("s2b0pads").tolist() == [0, 16, 0, 0, 0, 16, 0, 0]


def test_sizes_of_parts_and_places_of_slices_follow() -> None:
    cut = remove_channels(joined(), {"left": [0], "left.2": [1]})
    assert cut.array("sizes").tolist() == [3, 7]
    assert (cut.array("from").tolist(), cut.array("to").tolist()) == ([1], [4])


def test_blocks_behind_a_reshape() -> None:
    cut = remove_channels(flattened(), {"conv": [0, 7]})
    assert cut.array("shape").tolist() == [-1, 96]
    assert tuple(cut.initializers["fc1.w"].dims) == (12, 96)


def test_a_shape_that_several_share_is_copied_for_those_that_shrink() -> None:
    model = attention("arithmetic")
    cut = remove_channels(model, {"query": [2]})
    made = {tuple(cut.nodes[node.name].input[1:]) for node in cut.nodes.values() if node.op_type == "Reshape"}
    assert len(made) == 2
    assert "concat10" not in cut.nodes
    assert tuple(cut.initializers["query.w"].dims) == (24, 18)


def test_a_vector_that_two_share_is_copied_where_they_differ() -> None:
    model = shared_constants()
    cut = remove_channels(model, {"c1": [0, 1]})
    assert cut.nodes["c1"].input[2] == cut.nodes["c2"].input[2] == "zeros"
    assert cut.nodes["c4"].input[2] == cut.nodes["norm"].input[1] == "zeros.c4"
    assert np.array_equal(cut.array("zeros"), model.array("zeros")[2:])
    assert np.array_equal(cut.array("zeros.c4"), model.array("zeros"))


def test_initializers_that_are_inputs_too_keep_agreeing() -> None:
    proto = plain_chain().copy()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("conv1.w", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))
    cut = remove_channels(Model.parse(proto.SerializeToString(deterministic=True)), {"conv1": [3]})
    assert [dim.dim_value for dim in cut.proto.graph.input[1].type.tensor_type.shape.dim] == [7, 3, 3, 3]
    onnx.checker.check_model(cut.proto, full_check=True)


def test_batch_and_length_stay_dynamic() -> None:
    model = attention()
    removed = {"query": [1, 3], "up": range(0, 32, 2)}
    cut, masked = remove_channels(model, removed), mask_channels(model, removed)
    for batch, length in ((1, 1), (2, 9), (5, 30)):
        feed = {"x": np.random.default_rng(batch).normal(size=(batch, length, 10)).astype(np.float32)}
        assert prove(masked, cut, lambda each, feed=feed: run(each, feed)) < CLOSE  # type: ignore[misc]


def test_the_proof_finds_a_difference() -> None:
    model = plain_chain()
    feed = rows(model, 2)
    cut, masked = remove_channels(model, {"conv1": [0]}), mask_channels(model, {"conv1": [1]})
    expected = float(np.abs(run(masked, feed)[0] - run(cut, feed)[0]).max())
    assert prove(masked, cut, lambda each: run(each, feed)) == pytest.approx(expected, rel=1e-6)
    assert expected > CLOSE


def through_identity() -> Model:
    """Parameters that reach their nodes by way of Identity, Transpose and Unsqueeze, as some exporters write them."""
    net = Wired()
    x = net.op("Conv", net.input(), net.weight("w", (8, 3, 3, 3), 27), net.op("Identity", net.constant("b", np.ones(8))), name="conv")
    scale = net.op("Unsqueeze", net.constant("scale", net.random.normal(size=8)), net.ints("axes", [1, 2]))
    x = net.op("GlobalMaxPool", net.op("Mul", x, scale))
    weight = net.op("Transpose", net.weight("fc.w", (5, 8), 8), perm=[1, 0])
    return net.output(net.op("MatMul", net.op("Squeeze", x, net.ints("tail", [2, 3])), weight, name="fc")).model()


def tokens() -> Model:
    """An embedding table that makes channels, a class token before the others, and positions."""
    net = Wired()
    table = net.weight("table", (11, 8), 1)
    x = net.op("Gather", table, net.input("ids", ("batch", 6), kind=onnx.TensorProto.INT64), name="embed")
    shape = net.op("Concat", net.op("Shape", "ids", start=0, end=1), net.ints("rest", [1, 8]), axis=0)
    x = net.op("Concat", net.op("Expand", net.constant("token", net.random.normal(size=(1, 1, 8))), shape), x, axis=1)
    x = net.op("Add", x, net.constant("places", net.random.normal(size=(7, 8))))
    return net.output(net.op("ReduceMax", net.matmul(x, 8, 5, "fc"), axes=[1], keepdims=0)).model()


def short_sequences() -> Model:
    """Positions for at most 20 tokens, cut to the length of what comes in."""
    net = Wired()
    x = net.linear(net.input(shape=("batch", "length", 4)), 4, 8, "embed")
    length = net.op("Shape", "x", start=1, end=2)
    table = net.constant("places", net.random.normal(size=(20, 8)))
    places = net.op("Slice", table, net.ints("zero", [0]), length, net.ints("axis", [0]))
    return net.output(net.matmul(net.op("Add", x, places), 8, 5, "fc"), shape=["batch", "length", 5]).model()


def three_dimensions() -> Model:
    """Conv on one and three dimensions, and a Gemm with its weight transposed, in an older operator set."""
    net = Wired(opset=12)
    x = net.op("Conv", net.input(shape=("batch", 2, 4, 4, 4)), net.weight("w3", (6, 2, 3, 3, 3), 54), name="c3", pads=[1] * 6)
    x = net.op("Squeeze", net.op("ReduceMean", net.op("Elu", x), axes=[3, 4]), axes=[3, 4])
    x = net.op("Conv", x, net.weight("w1", (8, 6, 3), 18), name="c1", pads=[1, 1])
    x = net.op("Flatten", net.op("Tile", x, net.ints("twice", [1, 2, 1])))
    return net.output(net.gemm(x, 64, 5, "fc", transposed=False)).model()


@pytest.mark.parametrize(
    ("build", "names"), [(through_identity, ["conv"]), (tokens, ["embed"]), (short_sequences, ["embed"]), (three_dimensions, ["c3", "c1"])]
)
def test_other_ways_to_write_it(build: Callable[[], Model], names: list[str]) -> None:
    model = build()
    found = find_groups(model)
    assert [group.name for group in found.groups] == names
    for seed in range(4):
        assert difference(model, share(found, seed)) < CLOSE


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"conv3": [0]}, "unknown channel group 'conv3'. Did you mean 'conv2'? Known: conv1, conv2."),
        ({"conv1": [2, 8]}, "the channels of 'conv1' are numbered 0 to 7, got 8. Take them from that range"),
        ({"conv1": [-1]}, "the channels of 'conv1' are numbered 0 to 7, got -1. Take them from that range"),
        ({"conv2": range(6)}, "'conv2' has 6 channels, of which at least one must stay, got all of them. Keep one"),
    ],
)
@pytest.mark.parametrize("change", [remove_channels, mask_channels])
def test_what_cannot_be_removed_is_refused(change: Callable[[Model, Removed], Model], removed: Removed, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        change(plain_chain(), removed)
    assert str(caught.value) == message
