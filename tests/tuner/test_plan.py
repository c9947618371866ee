from __future__ import annotations

import hashlib

from tuner.plan import AppliedPlan, CompressionPlan, LayerQuant, TensorQuant, WeightQuant, make_plan

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
