from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from builders import resnet20, small_cnn
from channel_networks import (
    Wired,
    attention,
    flattened,
    grouped,
    inverted_residual,
    joined,
    merged_heads,
    plain_chain,
    shared_constants,
    shuffled,
)
from onnx import TensorProto, helper

from tuner.compress.pruning.channels import ChannelGroup, ChannelGroups, Slot, dependency_csv, find_groups
from tuner.model.graph import Model


def by_name(model: Model) -> dict[str, ChannelGroup]:
    return {group.name: group for group in find_groups(model).groups}


def single(size: int, start: int = 0) -> tuple[tuple[int, ...], ...]:
    """Channel c lies at one index."""
    return tuple((start + channel,) for channel in range(size))


def test_a_chain_has_a_group_for_every_layer_but_the_last() -> None:
    found = find_groups(plain_chain())
    first, second = found.groups
    assert (first.name, first.kind, first.size, first.nodes) == ("conv1", "channels", 8, ("conv1", "norm1", "conv2"))
    assert first.slots == (
        Slot("conv1.w", 0, single(8), "out", "conv1"),
        *(Slot(f"norm1.{part}", 0, single(8), "tied", "norm1") for part in "bgmv"),
        Slot("conv2.w", 1, single(8), "in", "conv2"),
    )
    assert second.nodes == ("conv2", "norm2", "prelu5", "fc")
    assert Slot("slope", 0, single(6), "tied", "prelu5") in second.slots
    assert Slot("fc.w", 0, single(6), "in", "fc") in second.slots
    assert found.notes == ("channels that stay: 5 of 'fc', because they are in the output 'fc_out'",)


def test_a_residual_ties_what_is_added() -> None:
    (group,) = find_groups(small_cnn()).groups
    assert [(slot.initializer, slot.axis, slot.role) for slot in group.slots] == [
        ("conv1.w", 0, "out"),
        ("conv1.b", 0, "tied"),
        ("conv2.w", 0, "out"),
        ("conv2.b", 0, "tied"),
        ("conv2.w", 1, "in"),
        ("fc.w", 1, "in"),
    ]


def test_behind_flatten_a_channel_is_a_block() -> None:
    slot = next(slot for slot in by_name(flattened())["conv"].slots if slot.initializer == "fc1.w")
    assert slot.positions == tuple(tuple(range(16 * channel, 16 * channel + 16)) for channel in range(8))


def test_padded_shortcuts_put_the_narrow_channels_amid_the_wide() -> None:
    """Stage 1 has 32 channels, of which 8 to 23 are the 16 of stage 0 (He et al., 2016, arXiv:1512.03385, option A)."""
    groups = by_name(resnet20())
    assert {name: groups[name].size for name in ("stem", "s1b0c2", "s2b0c2")} == {"stem": 16, "s1b0c2": 16, "s2b0c2": 32}
    trunk = {(slot.initializer, slot.role): slot.positions for slot in groups["stem"].slots}
    assert trunk["s1b0c2.w", "out"] == single(16, start=8)
    assert trunk["s2b0c2.w", "out"] == trunk["fc.w", "in"] == single(16, start=24)
    wide = {(slot.initializer, slot.role): slot.positions for slot in groups["s1b0c2"].slots}
    assert wide["s1b0c2.w", "out"] == (*single(8), *single(8, start=24))
    assert "stem.w" not in {slot.initializer for slot in groups["s1b0c2"].slots}
    assert len(groups) == 3 + 9


def test_a_depthwise_convolution_and_its_gate_belong_to_the_channels_they_scale() -> None:
    groups = by_name(inverted_residual())
    assert groups["expand"].nodes == ("expand", "expand_norm", "depthwise", "squeeze", "excite", "project")
    roles = {(slot.initializer, slot.axis): slot.role for slot in groups["expand"].slots}
    assert roles["depthwise.w", 0] == "tied"
    assert roles["excite.w", 0] == "out"
    assert roles["squeeze.w", 1] == roles["project.w", 1] == "in"
    assert (groups["squeeze"].size, groups["squeeze"].nodes) == (4, ("squeeze", "excite"))
    twice = next(slot for slot in groups["stem"].slots if slot.initializer == "twice.w")
    assert twice.positions == tuple((2 * channel, 2 * channel + 1) for channel in range(8))
    assert twice.role == "tied"


def test_groups_of_a_convolution_lose_the_same_channels() -> None:
    groups = by_name(grouped())
    assert (groups["stem"].size, groups["grouped"].size, groups["up"].size) == (4, 6, 5)
    stem = {slot.initializer: slot.positions for slot in groups["stem"].slots}
    assert stem["stem.w"] == tuple(tuple(range(channel, 16, 4)) for channel in range(4))
    assert stem["grouped.w"] == single(4)


def test_a_shuffle_ties_the_same_channel_of_every_group() -> None:
    groups = by_name(shuffled())
    first = {slot.initializer: slot.positions for slot in groups["first"].slots}
    assert first["first.w"] == tuple((channel, channel + 4, channel + 8) for channel in range(4))
    assert first["second.w"] == tuple(tuple(range(3 * channel, 3 * channel + 3)) for channel in range(4))
    third = next(slot for slot in groups["second"].slots if slot.initializer == "third.w")
    assert third.positions == ((1, 10), (3,), (5,), (7,), (9,), (8,), (6,), (4,), (2,), (0,))


def test_concat_split_and_slice_move_channels() -> None:
    groups = by_name(joined())
    last = {name: next((s.positions for s in group.slots if s.initializer == "last.w"), ()) for name, group in groups.items()}
    assert last["left.2"] == ((7, 13), (8, 14), (9, 15))
    assert last["right"] == single(4, start=3)


@pytest.mark.parametrize("build", [attention, lambda: attention("arithmetic"), lambda: attention(fused=True), merged_heads])
def test_a_head_is_one_channel(build: Callable[[], Model]) -> None:
    heads, *others = find_groups(build()).groups
    assert heads.kind == "heads"
    width = 4 if heads.size == 3 else 6
    project = next(slot for slot in heads.slots if slot.role == "in")
    assert project.initializer == "project.w"
    assert project.positions == tuple(tuple(range(width * head, width * head + width)) for head in range(heads.size))
    assert all(group.kind == "channels" for group in others)


def test_rows_of_a_head_in_a_fused_product() -> None:
    heads = find_groups(attention(fused=True)).groups[0]
    weight = next(slot for slot in heads.slots if slot.initializer == "qkv.w")
    assert weight.positions[1] == (*range(6, 12), *range(30, 36), *range(54, 60))


def test_a_normalization_over_channels_keeps_them_and_says_so() -> None:
    assert (
        "channels that stay: 24 of 'embed', 24 of 'project', because 'ln' (LayerNormalization) normalizes over them"
        in find_groups(attention()).notes
    )


def test_one_weight_in_two_places_is_one_and_a_vector_of_zeros_ties_nothing() -> None:
    groups = by_name(shared_constants())
    assert set(groups) == {"c1", "c4"}
    assert groups["c1"].nodes == ("c1", "c2", "c3", "c4")
    assert [slot.role for slot in groups["c1"].slots if slot.initializer == "w2"] == ["out", "in"]


def test_positions_never_overlap() -> None:
    for group in find_groups(resnet20()).groups:
        for slot in group.slots:
            places = [index for channel in slot.positions for index in channel]
            assert len(places) == len(set(places))
            assert len(slot.positions) == group.size


def around(build: Callable[[Wired, str], str], opset: int = 17) -> Model:
    """conv (8 channels) → what `build` adds → output."""
    net = Wired(opset=opset)
    return net.output(build(net, net.conv(net.input(), 3, 8, "conv"))).model()


def channel_wise(net: Wired, x: str, **norm: int) -> str:
    return net.conv(net.op("LpNormalization", x, name="norm", **norm), 8, 4, "next")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (channel_wise, None),
        (lambda net, x: channel_wise(net, x, axis=1), "'norm' (LpNormalization) takes all of them into account"),
        (lambda net, x: net.op("ReduceMean", x, name="mean", axes=[1]), "'mean' (ReduceMean) reduces over them"),
        (lambda net, x: net.op("Softmax", x, name="soft", axis=-3), "'soft' (Softmax) takes all of them into account"),
        (
            lambda net, x: net.op("Cast", net.op("ArgMax", x, name="best"), to=TensorProto.FLOAT),
            "'best' (ArgMax) is an operator through which channels are not followed",
        ),
        (lambda net, x: net.op("MatMul", x, x, name="product"), "they are in the output 'product_out'"),
        (
            lambda net, x: net.op("Gather", x, net.ints("third", 3), name="pick", axis=1),
            "'pick' (Gather) takes one of them alone",
        ),
        (
            lambda net, x: net.op("Pad", x, net.ints("pads", [0, 2, 0, 0, 0, 0, 0, 0]), name="mirror", mode="reflect"),
            "'mirror' (Pad) repeats or takes away some of them",
        ),
        (
            lambda net, x: net.op("Slice", x, *(net.ints(n, [v]) for n, v in (("s", 0), ("e", 8), ("a", 1), ("t", 2))), name="every"),
            "'every' (Slice) takes places of them that are computed or do not lie side by side",
        ),
        (
            lambda net, x: net.op("Add", x, net.op("RandomNormal", shape=[8, 1, 1]), name="noise"),
            "'noise' (Add) combines them with a tensor that is not made of channels",
        ),
        (
            lambda net, x: net.op(
                "Conv", x, net.op("Mul", net.weight("w", (4, 8, 1, 1), 8), net.weight("v", (4, 8, 1, 1), 8)), name="made"
            ),
            "'made' (Conv) has a weight that is computed",
        ),
        (
            lambda net, x: net.op("Mul", x, net.op("Cast", net.op("Size", x), to=TensorProto.FLOAT), name="sized"),
            "'size1' (Size) is an operator through which channels are not followed",
        ),
        (
            lambda net, x: net.op("Expand", net.constant("one", [1.0]), net.op("Mul", net.op("Shape", x), net.ints("m", 1), name="times")),
            "'times' (Mul) computes with their number",
        ),
    ],
)
def test_what_cannot_go_is_told_with_the_reason(build: Callable[[Wired, str], str], reason: str | None) -> None:
    found = find_groups(around(build))
    if reason is None:
        assert [group.name for group in found.groups] == ["conv"]
        return
    assert found.groups == ()
    told = [note for note in found.notes if "of 'conv'" in note]
    assert any(note.endswith(f"because {reason}") for note in told), found.notes


def test_only_the_channels_that_are_given_out_stay() -> None:
    """The first 3 of 8 channels are an output of their own; any of the other 5 may go."""

    def build(net: Wired, x: str) -> str:
        net.output(net.op("Slice", x, *(net.ints(name, [value]) for name, value in (("s", 0), ("e", 3), ("a", 1))), out="head"))
        return net.conv(x, 8, 4, "next")

    found = find_groups(around(build))
    (group,) = found.groups
    assert (group.size, group.slots[0].positions) == (5, single(5, start=3))
    assert "channels that stay: 3 of 'conv', because they are in the output 'head'" in found.notes


def test_a_graph_within_a_node_keeps_what_it_reads() -> None:
    def build(net: Wired, x: str) -> str:
        value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        branch = helper.make_graph([helper.make_node("Relu", [x], ["inner"])], "branch", [], [value])
        chosen = net.op("If", net.constant("yes", True, bool), name="choice", then_branch=branch, else_branch=branch)
        net.output(chosen, shape=["batch", 8, 8, 8])
        return net.conv(x, 8, 4, "next")

    found = find_groups(around(build))
    assert found.groups == ()
    assert "channels that stay: 8 of 'conv', because a graph within a node reads 'conv_out'" in found.notes


def test_channels_that_hang_together_are_no_group() -> None:
    def build(net: Wired, x: str) -> str:
        turned = net.op("Gather", x, net.ints("turn", [1, 2, 3, 4, 5, 6, 7, 0]), axis=1)
        return net.conv(net.op("Add", x, turned), 8, 4, "next")

    found = find_groups(around(build))
    assert found.groups == ()
    assert "channels that stay: 8 of 'conv', because they can only go together" in found.notes


def test_older_operator_sets_normalize_over_all_axes_behind_the_first() -> None:
    def build(net: Wired, x: str) -> str:
        return net.conv(net.op("Softmax", x, name="soft", axis=1), 8, 4, "next")

    assert find_groups(around(build, opset=11)).groups == ()


def test_the_table_of_dependencies() -> None:
    assert dependency_csv(find_groups(plain_chain())) == (
        "Dependency Set,Layers\nconv1,conv1; norm1; conv2\nconv2,conv2; norm2; prelu5; fc\n"
    )
    odd = ChannelGroups((ChannelGroup('a,"b"', "channels", 2, (), ("x",)),), ())
    assert dependency_csv(odd) == 'Dependency Set,Layers\n"a,""b""",x\n'


def test_nothing_to_remove() -> None:
    net = Wired()
    found = find_groups(net.output(net.gemm(net.input(shape=("batch", 4)), 4, 3, "fc")).model())
    assert found.groups == ()
    assert found.notes == ("channels that stay: 3 of 'fc', because they are in the output 'fc_out'",)


def test_the_model_is_not_changed() -> None:
    model = shared_constants()
    before = model.proto.SerializeToString(deterministic=True)
    find_groups(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert isinstance(model.proto, onnx.ModelProto)
    assert np.array_equal(model.array("zeros"), np.linspace(-1, 1, 8, dtype=np.float32))
