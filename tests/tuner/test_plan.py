from __future__ import annotations

import hashlib
from typing import Any

from search_spaces.domains import Scalar
from search_spaces.space import LayerChoices, SearchSpace
from tuner.plan import (
    STRUCTURE,
    AppliedPlan,
    CompressionPlan,
    LayerQuant,
    Split,
    Step,
    Structure,
    TensorQuant,
    WeightQuant,
    make_plan,
    plan_of,
)

CHOICES = {"b": {"quantize": "u8-asym-minmax/s8-sym-channel"}, "a": {"quantize": "float/s8-sym-tensor"}}


def test_equal_plans_have_equal_digests_whatever_the_order() -> None:
    plan = make_plan(CHOICES, seed=3)
    assert plan.digest() == make_plan(dict(reversed(CHOICES.items())), seed=3).digest()
    assert plan.digest() == CompressionPlan.model_validate_json(plan.model_dump_json()).digest()
    others = [make_plan(CHOICES, seed=4), make_plan({"b": CHOICES["b"]}, seed=3), make_plan(CHOICES | {"b": CHOICES["a"]}, seed=3)]
    assert len({plan.digest(), *(other.digest() for other in others)}) == 4
    # Digests are stored: if their definition changed, old records would be useless.
    assert CompressionPlan().digest() == hashlib.sha256(b'{"seed":0,"steps":[]}').hexdigest()


def test_layers_left_alone_are_not_mentioned() -> None:
    plan = make_plan(CHOICES | {"c": {"quantize": "float"}, "d": {}}, seed=0)
    assert plan.layers("quantize") == {"a": "float/s8-sym-tensor", "b": "u8-asym-minmax/s8-sym-channel"}
    assert plan.layers("prune") == {}
    assert not plan.identity
    assert make_plan({"c": {"quantize": "float"}}, seed=0).identity and make_plan({}, seed=0).identity


def test_an_applied_plan_survives_json_to_the_last_bit() -> None:
    applied = AppliedPlan(
        plan=make_plan(CHOICES, seed=0),
        model_sha256="ab",
        tensors={"x": TensorQuant(dtype="u8", scale=0.1 + 0.2, zero_point=3, readers=("a",))},
        layers={"a": LayerQuant(scheme="float/s8-sym-tensor", weight=WeightQuant(initializer="w", dtype="s8", symmetric=True, axis=None))},
        notes=("one",),
    )
    back = AppliedPlan.model_validate_json(applied.model_dump_json())
    assert back == applied
    assert back.tensors["x"].scale == 0.1 + 0.2


TAKEN: dict[str, dict[str, Scalar]] = {
    "a": {"channels": "keep-6", "quantize": "float/s8-sym-tensor"},
    "b": {"factorize": "svd-0.5", "sparsify": "0.5-2:4"},
    "c": {"channels": "whole", "sparsify": "whole", "quantize": "float"},
}
OPTIONS: dict[str, dict[str, Any]] = {"channels": {"criterion": "l1"}, "recover": {"rows": 640}}


def test_steps_stand_in_the_order_in_which_they_are_done() -> None:
    plan = make_plan(TAKEN, 1, OPTIONS)
    assert [step.name for step in plan.steps] == ["channels", "factorize", "sparsify", "recover", "quantize"]
    assert [step.name for step in plan.steps[:-1]] == list(STRUCTURE)
    assert [step.layers for step in plan.steps] == [{"a": "keep-6"}, {"b": "svd-0.5"}, {"b": "0.5-2:4"}, {}, {"a": "float/s8-sym-tensor"}]
    assert plan.step("channels") == Step(name="channels", layers={"a": "keep-6"}, options={"criterion": "l1"})
    assert plan.step("recover") == Step(name="recover", options={"rows": 640})
    assert plan.step("prune") is None


def test_only_what_was_taken_away_from_is_trained() -> None:
    assert [step.name for step in make_plan({"a": {"quantize": "float/s8-sym-tensor"}}, 0, OPTIONS).steps] == ["quantize"]
    assert [step.name for step in make_plan({"a": {"channels": "keep-6"}}, 0, {}).steps] == ["channels"]
    assert make_plan({"c": TAKEN["c"]}, 0, OPTIONS).identity


def test_a_plan_that_only_quantizes_has_the_digest_that_it_had_before_there_were_options() -> None:
    text = b'{"seed":3,"steps":[{"layers":{"a":"float/s8-sym-tensor","b":"u8-asym-minmax/s8-sym-channel"},"name":"quantize"}]}'
    assert make_plan(CHOICES, seed=3).digest() == hashlib.sha256(text).hexdigest()
    assert make_plan(CHOICES, seed=3).digest() == "9b47d6b284a2e4169ba37fd0dc01c62dc7047c926e960b0dc5202acf2979e2eb"
    # Options do count where there are any.
    with_options = b'{"seed":0,"steps":[{"layers":{"a":"keep-6"},"name":"channels","options":{"criterion":"l1"}}]}'
    assert make_plan({"a": {"channels": "keep-6"}}, 0, OPTIONS).structure.steps[0].options == {"criterion": "l1"}
    plan = make_plan({"a": {"channels": "keep-6"}}, 0, {"channels": {"criterion": "l1"}})
    assert plan.digest() == hashlib.sha256(with_options).hexdigest()


def test_plans_that_differ_in_quantization_alone_share_their_structure() -> None:
    plan = make_plan(TAKEN, 1, OPTIONS)
    other = make_plan(TAKEN | {"a": {"channels": "keep-6"}, "d": {"quantize": "float/s8-sym-channel"}}, 1, OPTIONS)
    assert plan.digest() != other.digest()
    assert plan.structure == other.structure == plan.structure.structure
    assert "quantize" not in [step.name for step in plan.structure.steps]
    different = [
        make_plan(TAKEN, 2, OPTIONS),
        make_plan(TAKEN, 1, OPTIONS | {"recover": {"rows": 64}}),
        make_plan(TAKEN, 1, {"recover": {"rows": 640}}),
        make_plan(TAKEN | {"a": {"channels": "keep-7"}}, 1, OPTIONS),
    ]
    assert len({each.structure.digest() for each in (plan, *different)}) == 5
    assert make_plan(CHOICES, 3, OPTIONS).structure == CompressionPlan(seed=3)


def test_an_assignment_becomes_a_plan_with_the_options_of_its_space() -> None:
    layers = (
        LayerChoices(name="channels:a", op="channels", input="", options=("whole", "keep-6"), step="channels", layer="a"),
        LayerChoices(name="a", op="Conv", input="x", options=("float", "float/s8-sym-tensor")),
    )
    space = SearchSpace(name="both", layers=layers, steps=OPTIONS)
    plan = plan_of(space, {"channels:a": "keep-6", "a": "float/s8-sym-tensor"}, 1)
    assert plan == make_plan({"a": TAKEN["a"]}, 1, OPTIONS)
    assert plan_of(space, {}, 1).identity


def test_what_was_done_is_told_by_the_names_of_the_space() -> None:
    applied = AppliedPlan(
        plan=make_plan(TAKEN, 1, OPTIONS),
        model_sha256="ab",
        layers={"a": LayerQuant(scheme="float/s8-sym-tensor")},
        structure=Structure(removed={"a": (1, 4)}, kept={"a": 6}, splits={"b": Split(method="svd", rank=(3,))}, zeros={"b.0": 0.5}),
    )
    done = {"channels:a": "keep-6", "factorize:b": "svd-0.5", "sparsify:b": "0.5-2:4", "a": "float/s8-sym-tensor"}
    assert applied.choices == done
    assert AppliedPlan.model_validate_json(applied.model_dump_json()) == applied
