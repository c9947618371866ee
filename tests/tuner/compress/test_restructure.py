"""Structured models of two small networks: what each step takes away, that training brings the rest back, and that all of it repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import rows, run
from spare_networks import restructurer, spare_cnn, spare_dense

from tuner.compress.pruning.channels import find_groups
from tuner.compress.pruning.criteria import CRITERIA
from tuner.compress.pruning.removal import mask_channels
from tuner.compress.restructure import Restructurer
from tuner.errors import PlanError
from tuner.measure.divergence import divergence
from tuner.model.graph import Model
from tuner.plan import CompressionPlan, Split, Step, Structure

ROWS = 640
Made = tuple[Model, Structure, list[str], float]


def plan_of(*steps: Step, seed: int = 0) -> CompressionPlan:
    return CompressionPlan(seed=seed, steps=steps)


def channels(choices: dict[str, Any], **options: Any) -> Step:
    return Step(name="channels", layers=choices, options={"criterion": "l1", "recalibrate": False} | options)


def sparsify(choices: dict[str, Any], **options: Any) -> Step:
    return Step(name="sparsify", layers=choices, options=options)


def recover(**options: Any) -> Step:
    return Step(name="recover", options={"rows": ROWS, "batch": 32} | options)


def make(maker: Restructurer, *steps: Step, seed: int = 0) -> Made:
    return maker.make(plan_of(*steps, seed=seed), lambda _done, _total: None)


def harm(model: Model, changed: Model) -> float:
    feed = rows(model, 256, seed=3)
    return divergence(run(changed, feed)[0], run(model, feed)[0])


def zeros(model: Model, name: str) -> float:
    return float((model.array(name) == 0).mean())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Restructurer:
    return restructurer(tmp_path_factory.mktemp("dense"), spare_dense())


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Restructurer:
    return restructurer(tmp_path_factory.mktemp("cnn"), spare_cnn())


def test_channels_that_go_are_recorded_and_the_rest_computes_as_before(cnn: Restructurer) -> None:
    model, record, notes, seconds = make(cnn, channels({"conv1": "keep-5", "conv2": "keep-3"}))
    assert record.kept == {"conv1": 5, "conv2": 3}
    assert {name: len(gone) for name, gone in record.removed.items()} == {"conv1": 3, "conv2": 5}
    assert [list(model.array(name).shape) for name in ("conv1.w", "conv2.w", "norm2.g", "fc.w")] == [
        [5, 1, 3, 3],
        [3, 5, 3, 3],
        [3],
        [5, 3],
    ]
    feed = rows(cnn.base)
    masked = mask_channels(cnn.base, record.removed)
    np.testing.assert_allclose(run(model, feed)[0], run(masked, feed)[0], atol=1e-5)
    assert (notes, seconds) == ([], 0.0)


def test_the_lowest_scores_go(dense: Restructurer) -> None:
    _, record, _, _ = make(dense, channels({"fc1": "keep-10"}, mode="plain"))
    size = np.abs(dense.base.array("fc1.w")).sum(axis=1)
    assert set(record.removed["fc1"]) == set(np.argsort(size)[:6].tolist())


def test_taylor_takes_the_channels_that_hardly_matter(dense: Restructurer, cnn: Restructurer) -> None:
    """Channel 8 and after of the hidden layers, channel 4 and after of the last convolution are faint by their making."""
    _, record, _, _ = make(dense, channels({"fc1": "keep-12", "fc2": "keep-12"}, criterion="taylor"))
    # One of the others is hardly ever lit.
    assert sum(channel >= 8 for gone in record.removed.values() for channel in gone) == 7
    _, record, _, _ = make(cnn, channels({"conv2": "keep-6"}, criterion="taylor"))
    assert min(record.removed["conv2"]) >= 4


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].kind == "channel"])
def test_every_criterion_of_channels_rates_a_network_with_batch_normalization(cnn: Restructurer, name: str) -> None:
    _, record, _, _ = make(cnn, channels({"conv1": "keep-6", "conv2": "keep-4"}, criterion=name))
    assert record.kept == {"conv1": 6, "conv2": 4}


def test_recalibration_repairs_the_statistics_of_a_cut_network(cnn: Restructurer) -> None:
    plain, _, _, _ = make(cnn, channels({"conv1": "keep-4"}))
    repaired, record, _, _ = make(cnn, channels({"conv1": "keep-4"}, recalibrate=True))
    assert record.kept == {"conv1": 4}
    assert not np.array_equal(plain.array("norm2.m"), repaired.array("norm2.m"))
    assert np.array_equal(plain.array("conv2.w"), repaired.array("conv2.w"))
    feed = rows(cnn.base, 256, seed=3)
    name = cnn.base.nodes["norm2"].output[0]
    before, after = (exposed(model, name, feed) for model in (plain, repaired))
    # What leaves the norm has again the mean and the spread that its scale and shift ask for.
    wanted = cnn.base.array("norm2.b")
    assert np.abs(after.mean((0, 2, 3)) - wanted).max() < np.abs(before.mean((0, 2, 3)) - wanted).max()
    np.testing.assert_allclose(after.std((0, 2, 3)), 1, atol=0.15)


def exposed(model: Model, tensor: str, feed: dict[str, Any]) -> Any:
    from tuner.compress.quantization.collect import exposing

    return run(exposing(model, [tensor]), feed, [tensor], optimize=False)[0]


def test_a_network_without_batch_normalization_needs_no_recalibration(dense: Restructurer) -> None:
    plain, _, _, _ = make(dense, channels({"fc1": "keep-9"}))
    same, _, _, _ = make(dense, channels({"fc1": "keep-9"}, recalibrate=True))
    assert plain.data == same.data


@pytest.mark.parametrize("how", ["uniform", "global", "sensitivity"])
def test_a_share_of_all_channels_is_distributed(dense: Restructurer, how: str) -> None:
    _, record, _, _ = make(dense, channels({"*": "cut-0.4"}, distribution=how))
    # ⌈0.4 · 32⌉ of both groups together.
    assert sum(len(gone) for gone in record.removed.values()) == 13
    if how == "uniform":
        assert {len(gone) for gone in record.removed.values()} == {6, 7}


def test_shares_of_all_channels_leave_alone_what_the_job_keeps_and_align(dense: Restructurer) -> None:
    _, record, _, _ = make(dense, channels({"*": "cut-0.4"}, distribution="uniform", keep=["fc1"]))
    assert record.kept == {"fc2": 9}
    _, record, _, _ = make(dense, channels({"*": "cut-0.4"}, distribution="uniform", align=4))
    assert set(record.kept.values()) == {12}


def test_a_layer_is_split(dense: Restructurer) -> None:
    """fc2 is of rank 4 but for two per cent."""
    model, record, _, _ = make(dense, Step(name="factorize", layers={"fc2": "svd-0.5"}))
    assert record.splits == {"fc2": Split(method="svd", rank=(4,))}
    assert {"fc2.0", "fc2.1"} <= set(model.nodes) and "fc2" not in model.nodes
    assert harm(dense.base, model) < 0.01


def test_a_method_gets_the_evidence_that_it_asks_for(dense: Restructurer) -> None:
    for method in ("svd-llm", "fwsvd"):
        model, record, _, _ = make(dense, Step(name="factorize", layers={"fc2": f"{method}-0.5"}))
        assert record.splits["fc2"].method == method
        assert harm(dense.base, model) < 0.02


@pytest.mark.parametrize("pattern", ["any", "2:4", "2x2"])
def test_zeros_come_in_patterns(dense: Restructurer, pattern: str) -> None:
    model, record, notes, _ = make(dense, sparsify({"fc2": f"0.5-{pattern}"}))
    assert record.zeros == {"fc2": 0.5} and zeros(model, "fc2.w") == 0.5
    assert notes[-1] == "zeros make the packed file smaller; the runtime multiplies them like other numbers"
    weight = model.array("fc2.w")
    if pattern == "2:4":
        assert set((weight.reshape(16, 4, 4) != 0).sum(axis=2).ravel()) == {2}
    if pattern == "2x2":
        blocks = (weight.reshape(8, 2, 8, 2) != 0).sum(axis=(1, 3))
        assert set(blocks.ravel()) == {0, 4}
    kept = weight != 0
    assert np.array_equal(weight[kept], dense.base.array("fc2.w")[kept])
    assert model.array("fc1.w").tobytes() == dense.base.array("fc1.w").tobytes()


ELEMENTS = [name for name in CRITERIA if CRITERIA[name].kind == "element"]


@pytest.mark.parametrize("name", [*ELEMENTS, "sparsegpt"])
def test_every_criterion_of_weights_makes_the_zeros_that_were_asked_for(cnn: Restructurer, name: str) -> None:
    model, record, _, _ = make(cnn, sparsify({"conv2": "0.5-any", "fc": "0.5-2:4"}, criterion=name))
    assert record.zeros["fc"] == 0.5 and record.zeros["conv2"] == pytest.approx(0.5, abs=0.01)
    assert set((model.array("fc.w").reshape(5, 2, 4) != 0).sum(axis=2).ravel()) == {2}


def test_reconstruction_does_less_harm_than_magnitude(dense: Restructurer) -> None:
    harms = {}
    for name in ("level", "random-element", "sparsegpt", "wanda"):
        model, _, _, _ = make(dense, sparsify({"fc2": "0.5-any", "fc3": "0.5-any"}, criterion=name))
        harms[name] = harm(dense.base, model)
    assert harms["sparsegpt"] < harms["level"] < harms["random-element"]
    assert harms["wanda"] < harms["random-element"]


def test_reconstruction_changes_the_weights_that_stay(dense: Restructurer) -> None:
    repaired, _, _, _ = make(dense, sparsify({"fc3": "0.5-any"}, criterion="sparsegpt"))
    chosen, _, _, _ = make(dense, sparsify({"fc3": "0.5-any"}, criterion="wanda"))
    original = dense.base.array("fc3.w")
    assert not np.allclose(repaired.array("fc3.w")[repaired.array("fc3.w") != 0], original[repaired.array("fc3.w") != 0])
    kept = chosen.array("fc3.w") != 0
    assert np.array_equal(chosen.array("fc3.w")[kept], original[kept])
    # Wanda compares within an output: every one of them loses the same.
    assert set(kept.sum(axis=1)) == {8}


@pytest.mark.parametrize("how", ["uniform", "global", "erk", "lamp", "sensitivity"])
def test_a_share_of_all_weights_is_distributed(dense: Restructurer, how: str) -> None:
    model, record, _, _ = make(dense, sparsify({"*": "0.7-any"}, distribution=how), recover())
    weights = {name: model.array(f"{name}.w") for name in ("fc1", "fc2", "fc3")}
    assert set(record.zeros) == set(weights)
    assert sum((weight == 0).sum() for weight in weights.values()) == np.ceil(0.7 * sum(weight.size for weight in weights.values()))
    if how == "uniform":
        assert all(share == pytest.approx(0.7, abs=0.01) for share in record.zeros.values())


def test_a_pattern_for_the_whole_model_is_that_of_every_layer_but_those_that_are_kept(dense: Restructurer) -> None:
    _, record, _, _ = make(dense, sparsify({"*": "0.5-2:4"}, distribution="uniform", keep=["fc1"]))
    assert record.zeros == {"fc2": 0.5, "fc3": 0.5}


def test_what_was_split_passes_its_zeros_on_to_its_factors(dense: Restructurer) -> None:
    split = Step(name="factorize", layers={"fc2": "svd-0.5"})
    _, record, _, _ = make(dense, split, sparsify({"fc2": "0.5-any", "fc3": "0.5-any"}))
    assert record.zeros == {"fc2.0": 0.5, "fc2.1": 0.5, "fc3": 0.5}
    _, record, _, _ = make(dense, split, sparsify({"*": "0.5-any"}, distribution="uniform", keep=["fc2"]))
    assert set(record.zeros) == {"fc1", "fc3"}


def test_training_brings_a_cut_network_back(dense: Restructurer, cnn: Restructurer) -> None:
    hard = channels({"fc1": "keep-8", "fc2": "keep-8"})
    for maker, cut in ((dense, hard), (cnn, channels({"conv1": "keep-5", "conv2": "keep-4"}, criterion="taylor", recalibrate=True))):
        plain, _, _, _ = make(maker, cut)
        trained, _, notes, seconds = make(maker, cut, recover(rows=2560))
        assert harm(maker.base, trained) < 0.7 * harm(maker.base, plain)
        assert notes[0].startswith("trained on 2,560 rows (80 steps, ") and "ended: finished" in notes[0]
        assert seconds > 0


@pytest.mark.parametrize("pruner", ["level", "linear", "exponential", "agp", "iterative", "lottery", "admm", "movement"])
def test_every_pruner_trains_to_the_zeros_that_were_asked_for(dense: Restructurer, pruner: str) -> None:
    model, record, notes, _ = make(dense, sparsify({"fc1": "0.5-any", "fc2": "0.75-1:4"}, pruner=pruner), recover())
    assert record.zeros == {"fc1": 0.5, "fc2": 0.75}
    assert set((model.array("fc2.w").reshape(16, 4, 4) != 0).sum(axis=2).ravel()) == {1}
    assert notes[0].startswith("trained on ")
    assert not np.array_equal(model.array("fc3.w"), dense.base.array("fc3.w"))


def test_scores_go_to_a_pruner_that_takes_them(dense: Restructurer) -> None:
    for pruner in ("criterion", "iterative", "linear"):
        model, _, _, _ = make(dense, sparsify({"fc2": "0.5-any"}, pruner=pruner, criterion="snip-element"), recover())
        assert zeros(model, "fc2.w") == 0.5


def test_the_same_plan_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    steps = (
        channels({"conv1": "keep-5"}, criterion="random", recalibrate=True),
        Step(name="factorize", layers={"conv2": "spatial-svd-0.25"}),
        sparsify({"fc": "0.5-any"}, criterion="random-element"),
        recover(),
    )
    results = [make(restructurer(tmp_path / name, spare_cnn()), *steps) for name in ("one", "two")]
    assert results[0][0].data == results[1][0].data
    assert results[0][1:3] == results[1][1:3]
    other = make(restructurer(tmp_path / "three", spare_cnn()), *steps, seed=1)
    assert other[1].removed != results[0][1].removed
    assert other[0].data != results[0][0].data


def test_labels_are_not_needed(tmp_path: Path) -> None:
    maker = restructurer(tmp_path, spare_dense(), labels=False)
    cut = channels({"fc1": "keep-10"}, criterion="taylor")
    model, record, notes, _ = make(maker, cut, sparsify({"fc2": "0.5-any"}, criterion="snip-element"), recover())
    assert min(record.removed["fc1"]) >= 8 and record.zeros == {"fc2": 0.5}
    assert harm(maker.base, model) < harm(maker.base, make(maker, cut, sparsify({"fc2": "0.5-any"}))[0])
    assert "output 'fc3_out' was taken for class scores" in notes


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    maker = restructurer(tmp_path, spare_dense(batch=48))
    model, record, _, _ = make(
        maker, channels({"fc1": "keep-10"}, criterion="taylor"), sparsify({"fc2": "0.5-any"}, criterion="wanda"), recover()
    )
    assert min(record.removed["fc1"]) >= 8 and record.zeros == {"fc2": 0.5}
    assert model.inputs[0].shape == (48, 16)
    assert harm(maker.base, model) < 0.2


def test_a_convolution_without_batch_normalization(tmp_path: Path) -> None:
    maker = restructurer(tmp_path, spare_cnn(norm=False))
    model, record, _, _ = make(maker, channels({"conv1": "keep-6", "conv2": "keep-4"}, criterion="taylor", recalibrate=True), recover())
    assert record.kept == {"conv1": 6, "conv2": 4}
    assert harm(maker.base, model) < 0.2
    with pytest.raises(PlanError, match="criterion 'slim' needs gamma of layer 'conv1'"):
        make(maker, channels({"conv1": "keep-6"}, criterion="slim"))


def test_losses_within_the_network_are_taught_by_the_original(dense: Restructurer) -> None:
    losses = {"logits": 1.0, "features": 0.5}
    _, _, notes, _ = make(dense, channels({"fc1": "keep-10"}), recover(losses=losses))
    assert any("relu" in note or "features" in note for note in notes), notes


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (
            channels({"fc9": "keep-3"}),
            "the plan removes channels of 'fc9', which is no group of this model; see `tuner inspect --dependencies`",
        ),
        (
            channels({"fc1": "keep-3"}, criterion="level"),
            "criterion 'level' rates single weights; to remove channels use one like l1 or taylor",
        ),
        (
            channels({"*": "cut-0.96"}, distribution="uniform"),
            "31 of 32 cannot be removed, because each of the 2 layers keeps at least one. Remove a share of at most 0.9375.",
        ),
        (sparsify({"fc9": "0.5-any"}), "the plan sets weights of 'fc9' to zero, which is no layer of this model; see `tuner inspect`"),
        (
            sparsify({"fc1": "0.5-any"}, criterion="l1"),
            "criterion 'l1' rates whole channels; to set weights to zero use one like level or snip-element",
        ),
        (
            sparsify({"fc1": "0.5-any"}, criterion="gradient", pruner="agp"),
            "the pruner 'agp' rates weights by itself, so that the criterion 'gradient' has no say; "
            "leave the criterion out, or use a pruner that takes it, like level or iterative",
        ),
        (
            sparsify({"fc1": "0.5-any"}, pruner="criterion"),
            "the pruner 'criterion' needs a criterion such as snip-element, got 'level'; use the pruner level for that",
        ),
        (
            sparsify({"fc1": "0.5-any"}, pruner="slim"),
            "slim sets no weights to zero, got a sparsity for 'fc1.w'. Use another pruner, such as agp.",
        ),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(dense: Restructurer, step: Step, text: str) -> None:
    with pytest.raises(PlanError) as error:
        make(dense, step)
    assert str(error.value) == text


def test_scores_are_computed_once_for_all_plans(tmp_path: Path) -> None:
    calls: list[str] = []
    maker = restructurer(tmp_path, spare_dense(), between=lambda: calls.append(""))
    first, _, _, _ = make(maker, channels({"fc1": "keep-10"}, criterion="taylor"))
    seen = len(calls)
    assert seen > 0
    make(maker, channels({"fc2": "keep-9"}, criterion="taylor"))
    assert len(calls) == seen
    assert {group.name for group in find_groups(maker.base).groups} == {"fc1", "fc2"}
    again, _, _, _ = make(maker, channels({"fc1": "keep-10"}, criterion="taylor"))
    assert again.data == first.data
