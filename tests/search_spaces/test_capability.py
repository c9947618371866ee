from __future__ import annotations

import pytest

from search_spaces.capability import LayerCapability, Rule, known_targets, load_target
from search_spaces.schemes import QuantScheme

TARGET = load_target("onnxruntime-cpu")


@pytest.mark.parametrize(
    ("op", "scheme"),
    [
        ("Conv", "u8-asym-minmax/s8-sym-channel"),
        ("Conv", "s16-sym-mse/u8-asym-tensor"),
        ("Gemm", "u16-asym-kl/s8-sym-tensor"),
        ("Gather", "float/u8-asym-channel"),
        ("Add", "s8-asym-minmax"),
        ("MatMul", "u8-asym-minmax"),
    ],
)
def test_what_the_runtime_takes_is_not_refused(op: str, scheme: str) -> None:
    assert TARGET.refusal(op, QuantScheme.parse(scheme)) is None


@pytest.mark.parametrize(
    ("op", "scheme", "why"),
    [
        ("Erf", "u8-asym-minmax", "onnxruntime-cpu has no quantized Erf"),
        ("Add", "u8-asym-minmax/s8-sym-tensor", "onnxruntime-cpu has no quantized Add"),
        ("Conv", "u8-asym-minmax", "onnxruntime-cpu has no quantized Conv"),
        ("Conv", "float/s8-sym-tensor", "Conv takes u8 or s8 or u16 or s16 activations, not float"),
        ("Gather", "u8-asym-minmax/s8-sym-tensor", "Gather takes float activations, not u8"),
        ("Add", "u16-asym-minmax", "Add takes u8 or s8 activations, not u16"),
        ("Conv", "u16-sym-minmax/s8-sym-tensor", "a symmetric range on unsigned 16 bits wastes half of its codes and no kernel uses it"),
        ("Conv", "u8-asym-mse/s8-asym-tensor", "integer kernels take signed weights with zero point 0 only; use u8 for asymmetric weights"),
        ("Gemm", "u8-asym-mse/u8-sym-channel", "integer kernels take unsigned weights with one scale per tensor only"),
    ],
)
def test_every_refusal_says_why(op: str, scheme: str, why: str) -> None:
    assert TARGET.refusal(op, QuantScheme.parse(scheme)) == why


def test_weights_that_an_operator_does_not_take_are_refused() -> None:
    conv = LayerCapability(activation=("u8",), weight=("s8",), kernel=("u8/s8",), writes="quantized")
    target = TARGET.model_copy(update={"layers": {"Conv": conv}})
    assert target.refusal("Conv", QuantScheme.parse("u8-asym-minmax/u8-asym-tensor")) == "Conv takes s8 weights, not u8"


@pytest.mark.parametrize(
    ("rule", "matched"),
    [
        (Rule(why=""), {"u8-asym-minmax/s8-sym-channel", "s8-sym-minmax/u8-asym-tensor", "u8-asym-minmax"}),
        (Rule(why="", activation="u8"), {"u8-asym-minmax/s8-sym-channel", "u8-asym-minmax"}),
        (Rule(why="", activation="u8", weight="s8"), {"u8-asym-minmax/s8-sym-channel"}),
        (Rule(why="", activation="s8", weight="s8"), set()),
        (Rule(why="", symmetric=True), {"u8-asym-minmax/s8-sym-channel"}),
        (Rule(why="", activation="s8", symmetric=True), {"s8-sym-minmax/u8-asym-tensor"}),
        (Rule(why="", granularity="tensor"), {"s8-sym-minmax/u8-asym-tensor"}),
        (Rule(why="", activation="u8", granularity="channel"), {"u8-asym-minmax/s8-sym-channel"}),
        (Rule(why="", operators=("Gemm",)), set()),
    ],
)
def test_a_field_that_a_rule_leaves_out_matches_everything(rule: Rule, matched: set[str]) -> None:
    names = ("u8-asym-minmax/s8-sym-channel", "s8-sym-minmax/u8-asym-tensor", "u8-asym-minmax")
    assert {name for name in names if rule.forbids("Conv", QuantScheme.parse(name))} == matched


@pytest.mark.parametrize(
    ("features", "name", "accelerated"),
    [
        (("avx2", "avx512f", "avx512_vnni"), "x86 with VNNI", ("u8/s8",)),
        (("avx2", "avx_vnni"), "x86 with VNNI", ("u8/s8",)),
        (("sse4_1", "avx2"), "x86 without VNNI", ("u8/u8", "u8/s8")),
        (("asimd", "asimddp"), "ARM with dot product", ("u8/s8", "s8/s8", "u8/u8")),
        ((), "unknown processor", ("u8/s8", "u8/u8", "s8/s8")),
    ],
)
def test_a_processor_is_known_by_its_features(features: tuple[str, ...], name: str, accelerated: tuple[str, ...]) -> None:
    processor = TARGET.processor(features)
    assert (processor.name, processor.accelerated) == (name, accelerated)
    assert (processor.warning is not None) == (name == "x86 without VNNI")


@pytest.mark.parametrize(
    ("op", "scheme", "has"),
    [
        ("Conv", "u8-asym-minmax/s8-sym-channel", True),
        ("Conv", "u16-asym-minmax/s8-sym-channel", False),
        ("Conv", "s8-asym-minmax/u8-asym-tensor", False),
        ("ConvTranspose", "u8-asym-minmax/s8-sym-channel", False),
        ("Gather", "float/s8-sym-tensor", True),
        ("Erf", "u8-asym-minmax/s8-sym-channel", False),
        ("Add", "u8-asym-minmax", True),
    ],
)
def test_integer_kernels(op: str, scheme: str, has: bool) -> None:
    assert TARGET.has_kernel(op, QuantScheme.parse(scheme)) is has


def test_an_unknown_runtime_names_the_known_ones() -> None:
    assert "onnxruntime-cpu" in known_targets()
    with pytest.raises(KeyError, match="unknown runtime 'tensorrt'; known: onnxruntime-cpu"):
        load_target("tensorrt")
