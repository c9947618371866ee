from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from search_spaces.recovery import RecoverySpec


def test_the_default_learns_from_the_original_alone() -> None:
    assert RecoverySpec().active == {"logits": 1.0}
    assert RecoverySpec(losses={"logits": 1, "attention": 2, "labels": 0}).active == {"attention": 2, "logits": 1}


def test_it_survives_a_job_file() -> None:
    spec = RecoverySpec(losses={"labels": 0.5}, rows=100, seconds=3.5, clip=None, tensors=("a", "b"))
    assert RecoverySpec.model_validate_json(spec.model_dump_json()) == spec
    assert RecoverySpec.model_validate(spec.model_dump(mode="json", exclude_defaults=True)) == spec


@pytest.mark.parametrize(
    "given",
    [
        {"losses": {}},
        {"losses": {"logits": -1}},
        {"losses": {"Logits!": 1}},
        {"losses": {"logits": float("nan")}},
        {"batch": 0},
        {"rows": 0},
        {"hold_back": 0.6},
        {"warmup": 1},
        {"learning_rate": 0},
        {"temperature": 0},
        {"seconds": 0},
        {"optimizer": "adam"},
        {"precision": "fp16"},
        {"epochs": 3},
    ],
)
def test_what_is_out_of_range_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RecoverySpec(**given)


def test_a_loss_must_have_a_weight() -> None:
    with pytest.raises(ValidationError, match="at least one loss needs a weight above 0"):
        RecoverySpec(losses={"logits": 0})
