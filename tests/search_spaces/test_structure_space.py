"""What a space may take away from a model: presets, options of each part, and what an assignment of them means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.capability import load_target
from search_spaces.presets import load_preset, preset_names
from search_spaces.space import Candidate, Part, SearchSpace, SpaceSpec, resolve
from search_spaces.structure import EVERY_LAYER, ChannelSpec, RankSpec, SparsitySpec, rest_of

TARGET = load_target("onnxruntime-cpu")
VNNI = TARGET.processor(["avx2", "avx512_vnni"])
CONV = Candidate(name="conv", op="Conv", has_weight=True, input="x")
GROUP = Part(step="channels", layer="conv", op="channels", size=12)
WEIGHTS = (Part(step="sparsify", layer="conv", op="Conv"), Part(step="sparsify", layer="fc", op="Gemm"))
SPLITS = Part(step="factorize", layer="fc", op="Gemm", options=("svd-0.25", "svd-0.5"))
PARTS = (GROUP, *WEIGHTS, SPLITS)


def space_of(spec: SpaceSpec | str, parts: tuple[Part, ...] = PARTS) -> SearchSpace:
    return resolve(load_preset(spec) if isinstance(spec, str) else spec, [CONV], TARGET, VNNI, parts)


def spec_of(**parts: Any) -> SpaceSpec:
    return SpaceSpec(quantize=False, **parts)


@pytest.mark.parametrize(
    ("preset", "steps", "quantizes"),
    [
        ("channels", {"channels"}, False),
        ("channels+int8", {"channels"}, True),
        ("unstructured", {"sparsify"}, False),
        ("nm-2:4", {"sparsify"}, False),
        ("low-rank", {"factorize"}, False),
        ("low-rank+int8", {"factorize"}, True),
    ],
)
def test_a_preset_asks_for_its_parts_and_no_other(preset: str, steps: set[str], quantizes: bool) -> None:
    assert preset in preset_names()
    space = space_of(preset)
    assert {layer.step for layer in space.layers} == steps | ({"quantize"} if quantizes else set())
    assert all(layer.options[0] == layer.rest == rest_of(layer.name) for layer in space.layers)
    assert "recover" in space.steps
    assert load_preset(preset).structural


def test_presets_of_old_ask_for_nothing_new() -> None:
    for preset in ("int8", "int8-fast", "int8-full"):
        assert not load_preset(preset).structural
        assert space_of(preset).steps == {}


def test_widths_are_shares_of_the_group_widest_first() -> None:
    (group,) = space_of(spec_of(channels=ChannelSpec(shares=(0.75, 0.25, 0.5)))).layers
    assert (group.name, group.target, group.step) == ("channels:conv", "conv", "channels")
    assert group.options == ("whole", "keep-9", "keep-6", "keep-3")


@pytest.mark.parametrize(
    ("align", "options"),
    [(1, ("whole", "keep-9", "keep-6", "keep-3")), (4, ("whole", "keep-8", "keep-4")), (5, ("whole", "keep-10", "keep-5"))],
)
def test_widths_that_are_no_multiple_are_rounded_up_to_one(align: int, options: tuple[str, ...]) -> None:
    (group,) = space_of(spec_of(channels=ChannelSpec(shares=(0.25, 0.5, 0.75), align=align))).layers
    assert group.options == options


def test_a_group_that_no_share_makes_narrower_is_left_out() -> None:
    assert space_of(spec_of(channels=ChannelSpec(align=16))).layers == ()
    assert space_of(spec_of(channels=ChannelSpec(shares=(0.1,))), (GROUP.model_copy(update={"size": 3}),)).layers == ()


def test_the_first_pattern_that_fits_a_layer_sets_its_shares() -> None:
    spec = spec_of(sparsity=SparsitySpec(shares=(0.5,), per_layer={"c*": (0.9, 0.8), "*": (0.6,)}))
    assert {layer.target: layer.options[1:] for layer in space_of(spec).layers} == {"conv": ("0.8-any", "0.9-any"), "fc": ("0.6-any",)}


def test_a_layer_whose_shares_are_none_is_left_alone() -> None:
    spec = spec_of(sparsity=SparsitySpec(patterns=("any", "2:4"), per_layer={"fc": ()}), channels=ChannelSpec(per_layer={"conv": ()}))
    assert [layer.name for layer in space_of(spec).layers] == ["sparsify:conv"]


def test_layers_that_are_kept_have_no_parameter() -> None:
    spec = SpaceSpec(channels=ChannelSpec(), sparsity=SparsitySpec(), rank=RankSpec(), keep=("con*",))
    assert [layer.name for layer in space_of(spec).layers] == ["sparsify:fc", "factorize:fc"]


def test_patterns_bring_their_own_share_and_options_are_in_order() -> None:
    spec = SparsitySpec(shares=(0.8, 0.4), patterns=("any", "2:4", "1:4", "4x1"))
    names = [scheme.name for scheme in spec.schemes("conv")]
    assert names == ["0.4-any", "0.4-4x1", "0.5-2:4", "0.75-1:4", "0.8-any", "0.8-4x1"]


def test_a_share_of_the_whole_model_is_one_parameter() -> None:
    spec = spec_of(channels=ChannelSpec(shares=(0.3, 0.5), distribution="global"), sparsity=SparsitySpec(shares=(0.9,), distribution="erk"))
    parts = (Part(step="channels", layer=EVERY_LAYER, op="model"), Part(step="sparsify", layer=EVERY_LAYER, op="model"))
    space = space_of(spec, parts)
    assert {layer.name: layer.options for layer in space.layers} == {
        "channels:*": ("whole", "cut-0.3", "cut-0.5"),
        "sparsify:*": ("whole", "0.9-any"),
    }
    assert space.decode({"channels:*": "cut-0.5"}) == {"*": {"channels": "cut-0.5"}}


def test_plans_get_the_options_of_their_steps() -> None:
    spec = SpaceSpec(
        channels=ChannelSpec(criterion="l1", align=8), sparsity=SparsitySpec(pruner="agp", distribution="erk"), recovery=None, keep=("fc",)
    )
    assert space_of(spec).steps == {
        "channels": {"criterion": "l1", "mode": "dependency", "distribution": "per-layer", "recalibrate": True, "align": 8},
        # Only a share of the whole model has to be told which layers it may not touch.
        "sparsify": {"criterion": "level", "pruner": "agp", "distribution": "erk", "keep": ["fc"]},
    }
    trained = SpaceSpec.model_validate({"rank": {}, "recovery": {"rows": 100, "losses": {"labels": 1.0}}})
    assert space_of(trained).steps == {"recover": {"rows": 100, "losses": {"labels": 1.0}}}


ALL = SpaceSpec(
    calibrations=("minmax",), channels=ChannelSpec(), sparsity=SparsitySpec(patterns=("any", "2:4")), rank=RankSpec(), operators=False
)


@settings(deadline=None)
@given(st.data())
def test_decoding_is_canonical_and_encoding_inverts_it(data: st.DataObject) -> None:
    space = space_of(ALL)
    assignment = {layer.name: data.draw(st.sampled_from(layer.options)) for layer in space.layers}
    choices = space.decode(assignment)
    assert space.encode(choices) == assignment
    assert space.decode(space.encode(choices)) == choices
    changed = sum(assignment[layer.name] != layer.rest for layer in space.layers)
    assert sum(len(steps) for steps in choices.values()) == changed


def test_steps_of_one_layer_stand_together() -> None:
    choices = space_of(ALL).decode({"channels:conv": "keep-6", "sparsify:conv": "0.5-2:4", "conv": "u8-asym-minmax/s8-sym-channel"})
    assert choices == {"conv": {"channels": "keep-6", "sparsify": "0.5-2:4", "quantize": "u8-asym-minmax/s8-sym-channel"}}
    assert space_of(ALL).decode({}) == {}


def test_options_can_be_taken_out_but_not_the_rest() -> None:
    space = space_of(spec_of(channels=ChannelSpec(shares=(0.25, 0.5)), rank=RankSpec()))
    less = space.without({"channels:conv": ["whole", "keep-9"], "factorize:fc": ["svd-0.25", "svd-0.5"], "nothing": ["x"]})
    assert [(layer.name, layer.options) for layer in less.layers] == [("channels:conv", ("whole", "keep-6"))]
    assert space.without({}) == space


def test_spaces_survive_json() -> None:
    space = space_of(ALL)
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space
    assert SpaceSpec.model_validate_json(ALL.model_dump_json()) == ALL


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sparsity": {"patterns": ["4:2"]}}, "a pattern N:M keeps N of M weights with N < M, got 4:2"),
        ({"sparsity": {"patterns": ["2:0"]}}, "String should match pattern"),
        ({"sparsity": {"patterns": ["half"]}}, "String should match pattern"),
        ({"sparsity": {"patterns": ["x:4"]}}, "String should match pattern"),
        ({"sparsity": {"patterns": ["2:4:1"]}}, "String should match pattern"),
        ({"sparsity": {"shares": [1.0]}}, "Input should be less than 1"),
        ({"sparsity": {"shares": []}}, "at least 1 item"),
        (
            {"sparsity": {"patterns": ["2:4"], "distribution": "erk"}},
            "the pattern 2:4 makes the same share of every layer zero, so 'erk' has nothing to distribute; "
            "use the distribution per-layer or uniform",
        ),
        ({"channels": {"shares": [0.0]}}, "Input should be greater than 0"),
        ({"channels": {"per_layer": {"conv": [1.5]}}}, "Input should be less than 1"),
        ({"channels": {"align": 0}}, "Input should be greater than or equal to 1"),
        ({"channels": {"mode": "both"}}, "Input should be 'plain' or 'dependency'"),
        ({"rank": {"methods": []}}, "at least 1 item"),
        ({"rank": {"distribution": "erk"}}, "Extra inputs are not permitted"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as error:
        SpaceSpec.model_validate(change)
    assert text in str(error.value)


def test_what_is_not_in_the_space_is_refused() -> None:
    space = space_of("channels")
    with pytest.raises(ValueError, match="the space 'channels' has no layer 'conv'; it has 1, see `tuner spaces --model`"):
        space.decode({"conv": "keep-6"})
    with pytest.raises(ValueError, match=r"layer 'channels:conv' may not be 'keep-1'; it may be whole, keep-10, keep-9, "):
        space.decode({"channels:conv": "keep-1"})


def test_how_large_a_structural_space_is() -> None:
    space = space_of(spec_of(channels=ChannelSpec(shares=(0.25, 0.5)), rank=RankSpec()))
    assert space.size == 3 * 3
