from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.schemes import ActivationScheme, Dtype, Granularity, QuantScheme, WeightDtype, WeightScheme

PERCENTILES = st.builds(lambda whole, rest: f"p{whole}{rest}", st.integers(0, 99), st.sampled_from(["", ".9", ".99", ".125"]))
ACTIVATIONS = st.builds(
    ActivationScheme,
    dtype=st.sampled_from(get_args(Dtype)),
    symmetric=st.booleans(),
    calibration=st.sampled_from(["minmax", "kl", "mse"]) | PERCENTILES,
)
WEIGHTS = st.builds(
    WeightScheme,
    dtype=st.sampled_from(get_args(WeightDtype)),
    symmetric=st.booleans(),
    granularity=st.sampled_from(get_args(Granularity)),
)
SCHEMES = st.tuples(st.none() | ACTIVATIONS, st.none() | WEIGHTS).filter(any).map(lambda p: QuantScheme(activation=p[0], weight=p[1]))


@given(SCHEMES)
def test_parse_and_name_are_inverse(scheme: QuantScheme) -> None:
    assert QuantScheme.parse(scheme.name) == scheme
    assert QuantScheme.model_validate_json(scheme.model_dump_json()) == scheme


@given(SCHEMES, SCHEMES)
def test_different_schemes_have_different_names(one: QuantScheme, other: QuantScheme) -> None:
    assert (one == other) == (one.name == other.name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("u8-asym-mse/s8-sym-channel", "u8-asym/s8-sym-channel"),
        ("s16-sym-p99.99/u8-asym-tensor", "s16-sym/u8-asym-tensor"),
        ("u8-asym-kl", "u8-asym"),
        ("float/s8-sym-tensor", "float/s8-sym-tensor"),
    ],
)
def test_the_kind_leaves_the_calibration_out(name: str, kind: str) -> None:
    assert QuantScheme.parse(name).kind == kind


@pytest.mark.parametrize(
    "name",
    [
        "",
        "float",
        "float/",
        "u8",
        "u8-asym",
        "u8-asym-minmax/",
        "u8-asym-minmax/s8-sym",
        "u8-asym-max/s8-sym-channel",
        "u8-asym-p100/s8-sym-channel",
        "u8-asym-p٩٩/s8-sym-channel",
        "u4-asym-minmax/s8-sym-channel",
        "u8-asym-minmax/s16-sym-channel",
        "u8-asym-minmax/s8-sym-channel\n",
        " u8-asym-minmax",
    ],
)
def test_what_is_no_scheme_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(ValueError) as error:
        QuantScheme.parse(name)
    assert str(error.value) == f"'{name}' is no quantization scheme; write one like 'u8-asym-minmax/s8-sym-channel', or 'float'"


def test_a_scheme_that_quantizes_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="quantizes the activation, the weight or both; to leave a layer alone, write 'float'"):
        QuantScheme()


def test_schemes_cannot_be_changed_and_take_no_unknown_key() -> None:
    scheme = WeightScheme()
    with pytest.raises(ValidationError, match="frozen"):
        scheme.dtype = "u8"
    with pytest.raises(ValidationError, match="extra"):
        WeightScheme.model_validate({"bits": 4})
    with pytest.raises(ValidationError, match="pattern"):
        ActivationScheme(calibration="p99.9\n")
