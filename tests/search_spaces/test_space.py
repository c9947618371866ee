from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.capability import load_target
from search_spaces.domains import Choice
from search_spaces.presets import load_preset
from search_spaces.schemes import QuantScheme
from search_spaces.space import Candidate, LayerChoices, SearchSpace, SpaceSpec, resolve

TARGET = load_target("onnxruntime-cpu")
VNNI = TARGET.processor(["avx2", "avx512_vnni"])
ARM = TARGET.processor(["asimddp"])
CONV = Candidate(name="conv", op="Conv", has_weight=True, input="x")
SIDE = Candidate(name="side", op="Conv", has_weight=True, input="x")
TABLE = Candidate(name="table", op="Gather", has_weight=True)
UP = Candidate(name="up", op="ConvTranspose", has_weight=True, input="y")
ADD = Candidate(name="op:Add", op="Add", has_weight=False)
ALL = (CONV, SIDE, TABLE, UP, ADD)


def space_of(preset: str, processor: str = "x86") -> SearchSpace:
    return resolve(load_preset(preset), ALL, TARGET, VNNI if processor == "x86" else ARM)


@pytest.mark.parametrize(
    ("preset", "processor", "sizes"),
    [
        # 6 calibrations × 2 granularities, and float.
        ("int8", "x86", {"conv": 13, "side": 13, "table": 3, "up": 13, "op:Add": 7}),
        # (u8 asym) × 3 calibrations × s8 sym per channel and per tensor.
        ("int8-fast", "x86", {"conv": 7, "side": 7, "table": 7, "op:Add": 4}),
        # (u8/s8, s8/s8: 2 × 3 × 2) + (u8/u8, per tensor, both symmetries: 3 × 2); Add: u8 and s8.
        ("int8-fast", "arm", {"conv": 19, "side": 19, "table": 7, "op:Add": 7}),
        # 7 activations (u16-sym is none) × 6 calibrations × (s8-sym-channel, s8-sym-tensor, u8-sym-tensor, u8-asym-tensor).
        ("int8-full", "x86", {"conv": 169, "side": 169, "table": 7, "up": 169, "op:Add": 25}),
    ],
)
def test_presets_resolve_to_so_many_options(preset: str, processor: str, sizes: dict[str, int]) -> None:
    space = space_of(preset, processor)
    found = {layer.name: layer.domain.size for layer in space.layers}
    assert found == sizes
    product = 1
    for size in sizes.values():
        product *= size
    assert space.size == product
    assert all(layer.options[0] == "float" for layer in space.layers)


def test_every_option_left_out_is_counted_with_its_reason() -> None:
    space = resolve(load_preset("int8-full"), [CONV], TARGET, VNNI)
    left_out = {refusal.why: refusal.options for refusal in space.refused}
    # 8 activations × 6 calibrations × 8 weights = 384 = 168 taken + 216.
    assert sum(left_out.values()) == 216
    assert left_out["a symmetric range on unsigned 16 bits wastes half of its codes and no kernel uses it"] == 6 * 8
    assert left_out["integer kernels take signed weights with zero point 0 only; use u8 for asymmetric weights"] == 7 * 6 * 2
    assert left_out["integer kernels take unsigned weights with one scale per tensor only"] == 7 * 6 * 2


def test_what_the_processor_does_not_accelerate_is_left_out_with_the_reason() -> None:
    whys = {(refusal.op, refusal.why) for refusal in space_of("int8-fast").refused}
    assert ("Conv", "x86 with VNNI does not accelerate s8/s8") in whys
    assert ("Conv", "onnxruntime-cpu has no integer kernel for Conv with s8/u8") in whys
    assert ("ConvTranspose", "onnxruntime-cpu has no integer kernel for ConvTranspose with u8/s8") in whys
    assert ("Add", "x86 with VNNI does not accelerate s8") in whys


def test_operators_can_be_left_out() -> None:
    space = resolve(SpaceSpec(operators=False), ALL, TARGET, VNNI)
    assert "op:Add" not in space.by_name and not any(refusal.op == "Add" for refusal in space.refused)


def test_layers_that_read_one_tensor_get_the_activation_of_the_first() -> None:
    space = space_of("int8")
    mixed = space.decode({"conv": "u8-asym-mse/s8-sym-channel", "side": "u8-asym-kl/s8-sym-tensor", "up": "u8-asym-kl/s8-sym-tensor"})
    assert mixed == {
        "conv": {"quantize": "u8-asym-mse/s8-sym-channel"},
        "side": {"quantize": "u8-asym-mse/s8-sym-tensor"},
        "up": {"quantize": "u8-asym-kl/s8-sym-tensor"},
    }
    alone = space.decode({"conv": "float", "side": "u8-asym-kl/s8-sym-tensor"})
    assert alone == {"side": {"quantize": "u8-asym-kl/s8-sym-tensor"}}


def test_a_weight_that_does_not_go_with_the_shared_activation_gives_way() -> None:
    space = space_of("int8-fast", "arm")
    first, second = "s8-asym-mse/s8-sym-channel", "u8-asym-mse/u8-asym-tensor"
    assert "s8-asym-mse/u8-asym-tensor" not in space.by_name["side"].options
    assert space.decode({"conv": first, "side": second})["side"] == {"quantize": "s8-asym-mse/s8-sym-channel"}
    only = LayerChoices(name="side", op="Conv", input="x", options=("float", second))
    narrow = space.model_copy(update={"layers": (space.layers[0], only)})
    assert "side" not in narrow.decode({"conv": first, "side": second})


@settings(deadline=None)
@given(st.data())
@pytest.mark.parametrize(("preset", "processor"), [("int8", "x86"), ("int8-fast", "arm"), ("int8-full", "x86")])
def test_decoding_is_canonical_and_encoding_inverts_it(preset: str, processor: str, data: st.DataObject) -> None:
    space = space_of(preset, processor)
    assignment = {layer.name: data.draw(st.sampled_from(layer.options)) for layer in space.layers}
    choices = space.decode(assignment)
    encoded = space.encode(choices)
    assert encoded.keys() == space.by_name.keys()
    assert all(value in space.by_name[name].domain for name, value in encoded.items())
    assert space.decode(encoded) == choices
    sharing = [QuantScheme.parse(str(choices[name]["quantize"])) for name in ("conv", "side") if name in choices]
    assert len({scheme.activation for scheme in sharing}) <= 1


def test_leaving_everything_alone_is_in_every_space() -> None:
    space = space_of("int8")
    assert space.decode({}) == space.decode(space.encode({})) == {}
    assert space.encode({}) == dict.fromkeys(space.by_name, "float")
    assert isinstance(space.layers[0].domain, Choice)


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ({"cnov": "float"}, "the space 'int8' has no layer 'cnov'; it has 5, see `tuner spaces --model`"),
        ({"table": "u8"}, "layer 'table' may not be 'u8'; it may be float, float/s8-sym-tensor, float/s8-sym-channel"),
        ({"table": 1}, "layer 'table' may not be '1'; it may be float, float/s8-sym-tensor, float/s8-sym-channel"),
    ],
)
def test_what_is_not_in_the_space_is_refused(assignment: dict[str, str | int], text: str) -> None:
    with pytest.raises(ValueError) as error:
        space_of("int8").decode(assignment)
    assert str(error.value) == text


@pytest.mark.parametrize("change", [{"activations": []}, {"calibrations": ["p999"]}, {"weights": ["s4"]}, {"bits": [4]}])
def test_a_space_that_makes_no_sense_is_refused(change: dict[str, list[object]]) -> None:
    with pytest.raises(ValidationError):
        SpaceSpec.model_validate(change)


def test_spaces_survive_json() -> None:
    space = space_of("int8")
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space
