"""Names in the structural parts of a space are refused before any file is opened, each with the field and the nearest known one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_jobs import dense, dense_data, tiny_job

from search_spaces.recovery import RecoverySpec
from search_spaces.space import SpaceSpec
from search_spaces.structure import ChannelSpec, RankSpec, SparsitySpec
from tuner.compress.pruning.criteria import CRITERIA
from tuner.errors import JobError, UnknownName
from tuner.evaluator import Evaluator
from tuner.preflight import check_job, check_names
from tuner.structure_checks import check_structure


@pytest.mark.parametrize(
    ("parts", "field", "text"),
    [
        (
            {"channels": ChannelSpec(criterion="tailor")},
            "space.channels.criterion",
            "unknown criterion of channels 'tailor'. Did you mean 'taylor'?",
        ),
        (
            {"sparsity": SparsitySpec(criterion="wander")},
            "space.sparsity.criterion",
            "unknown criterion of weights 'wander'. Did you mean 'wanda'?",
        ),
        ({"sparsity": SparsitySpec(pruner="lotery")}, "space.sparsity.pruner", "unknown pruner 'lotery'. Did you mean 'lottery'?"),
        ({"rank": RankSpec(methods=("svd", "tucker"))}, "space.rank.methods", "unknown decomposition 'tucker'. Did you mean 'tucker2'?"),
        (
            {"rank": RankSpec(), "recovery": RecoverySpec(losses={"logits": 1, "label": 1})},
            "space.recovery.losses",
            "unknown loss 'label'. Did you mean 'labels'?",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(parts: dict[str, Any], field: str, text: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, space=SpaceSpec(**parts))
    Path(job.model).unlink()
    with pytest.raises(UnknownName) as caught:
        check_names(job)
    assert caught.value.field == field
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("parts", "field", "text"),
    [
        (
            {"channels": ChannelSpec(criterion="wanda")},
            "space.channels.criterion",
            "the criterion 'wanda' rates single weights; to remove channels",
        ),
        (
            {"sparsity": SparsitySpec(criterion="l1")},
            "space.sparsity.criterion",
            "the criterion 'l1' rates whole channels; to set weights to zero",
        ),
        ({"sparsity": SparsitySpec(pruner="slim")}, "space.sparsity.pruner", "the pruner 'slim' sets no weights to zero; use one like agp"),
        ({"sparsity": SparsitySpec(pruner="criterion")}, "space.sparsity.pruner", "the pruner 'criterion' needs a criterion with scores"),
        (
            {"sparsity": SparsitySpec(criterion="snip-element", pruner="admm")},
            "space.sparsity.pruner",
            "the pruner 'admm' rates weights itself and cannot use the criterion 'snip-element'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(parts: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(JobError) as caught:
        check_structure(SpaceSpec(**parts))
    assert caught.value.field == field
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    "spec",
    [
        SparsitySpec(criterion="snip-element", pruner="criterion"),
        SparsitySpec(criterion="lamp", pruner="iterative"),
        SparsitySpec(criterion="sparsegpt"),
        SparsitySpec(criterion="wanda", pruner="agp"),
        SparsitySpec(pruner="lottery"),
    ],
)
def test_what_goes_together_passes(spec: SparsitySpec) -> None:
    check_structure(SpaceSpec(sparsity=spec))


@pytest.fixture
def plugged() -> Iterator[None]:
    """A criterion that a plug-in has registered."""
    CRITERIA.register("mine", kind="element")(lambda weight: weight.abs())
    yield
    del CRITERIA._items["mine"]


@pytest.mark.usefixtures("plugged")
def test_names_of_plug_ins_are_known() -> None:
    check_structure(SpaceSpec(sparsity=SparsitySpec(criterion="mine")))
    with pytest.raises(JobError, match="the criterion 'mine' rates single weights"):
        check_structure(SpaceSpec(channels=ChannelSpec(criterion="mine")))


def job_that_learns(folder: Path, losses: dict[str, float], labels: bool) -> Evaluator:
    """Its rows for training come from a file of their own, with labels or without."""
    job = tiny_job(folder, space=SpaceSpec(quantize=False, channels=ChannelSpec(criterion="l1"), recovery=RecoverySpec(losses=losses)))
    arrays = dense_data(dense(), 64, seed=5)
    np.savez(folder / "more.npz", **(arrays if labels else {"x": arrays["x"]}))
    training = job.data.validation.model_copy(update={"file": str(folder / "more.npz"), "rows": None})
    data = job.data.model_copy(update={"training": training})
    return Evaluator(job.model_copy(update={"data": data}), folder / "cache")


def test_labels_are_learned_only_where_there_are_some(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"space\.recovery\.losses names labels, and the training rows have none; add an array") as caught:
        check_job(job_that_learns(tmp_path / "without", {"logits": 1.0, "labels": 0.5}, labels=False))
    assert caught.value.field == "space.recovery.losses"
    check_job(job_that_learns(tmp_path / "unused", {"logits": 1.0, "labels": 0}, labels=False))
    check_job(job_that_learns(tmp_path / "with", {"labels": 1.0}, labels=True))
