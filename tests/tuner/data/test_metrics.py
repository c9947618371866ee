from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, r2_score, roc_auc_score, top_k_accuracy_score

from tuner.data import metrics
from tuner.data.metrics import METRICS, Metric, Rows, check_classes, degenerate, resolve_metric
from tuner.errors import DataError, JobError, UnknownName

LOGITS = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32) * 4
LABELS = np.where(np.arange(300) % 3 > 0, LOGITS.argmax(axis=1), np.arange(300) % 7)
NOISY = LOGITS + np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32) * 3


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_equals_sklearn(k: int) -> None:
    metric = METRICS[f"top{k}"]
    scores = metric.per_sample(NOISY, LABELS)
    assert scores is not None and scores.shape == (300,) and scores.dtype == np.float64
    assert metric.value(NOISY, LABELS) == pytest.approx(top_k_accuracy_score(LABELS, NOISY, k=k), abs=1e-12)


def test_top_k_breaks_ties_as_argmax_does() -> None:
    outputs = np.array([[1, 1, 0], [1, 1, 0], [2, 2, 2]], np.float32)
    assert METRICS["top1"].per_sample(outputs, np.array([0, 1, 2])).tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert METRICS["top2"].per_sample(outputs, np.array([0, 1, 2])).tolist() == [1, 1, 0]  # type: ignore[union-attr]


def test_macro_f1_equals_sklearn_also_when_classes_are_absent() -> None:
    present = LABELS < 4
    outputs = np.where(np.arange(7) < 5, NOISY[present], -50).astype(np.float32)
    expected = f1_score(LABELS[present], outputs.argmax(axis=1), average="macro")
    assert METRICS["macro_f1"].value(outputs, LABELS[present]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_binary_auroc_equals_sklearn_for_every_form_of_outputs(scale: float) -> None:
    """Large logits would tie in a float32 sigmoid."""
    labels = (LABELS > 3).astype(np.int64)
    single = (NOISY[:, 5] + labels).astype(np.float32) * np.float32(scale)
    expected = roc_auc_score(labels, single)
    two = np.stack([-single, single], axis=1)
    for outputs in (single, single[:, None], two):
        assert METRICS["auroc"].value(outputs, labels) == pytest.approx(expected, abs=1e-6)


def test_auroc_of_many_classes_equals_sklearn_for_logits_and_probabilities() -> None:
    exponentials = np.exp(NOISY.astype(np.float64))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = roc_auc_score(LABELS, probabilities, multi_class="ovr", average="macro")
    assert METRICS["auroc"].value(NOISY, LABELS) == pytest.approx(expected, abs=1e-6)
    assert METRICS["auroc"].value(probabilities.astype(np.float32), LABELS) == pytest.approx(expected, abs=1e-5)


def test_auroc_leaves_out_classes_without_labels() -> None:
    present = LABELS < 6
    expected = np.mean([roc_auc_score(LABELS[present] == c, softmax(NOISY[present].astype(float), axis=1)[:, c]) for c in range(6)])
    assert METRICS["auroc"].value(NOISY[present], LABELS[present]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("truth", ["labels", "reference"])
def test_mse_and_mae_by_hand(truth: str) -> None:
    outputs = np.array([[1, 2], [3, 5]], np.float32)
    against: dict[str, Any] = {truth: np.array([[1, 4], [0, 1]])}
    assert METRICS["mse"].per_sample(outputs, **against).tolist() == [2.0, 12.5]  # type: ignore[union-attr]
    assert METRICS["mae"].per_sample(outputs, **against).tolist() == [1.0, 3.5]  # type: ignore[union-attr]
    assert METRICS["mse"].value(outputs, **against) == 7.25


def test_labels_come_before_the_reference() -> None:
    outputs = np.ones((3, 1), np.float32)
    assert METRICS["mse"].value(outputs, labels=np.full(3, 2.0), reference=outputs) == 1.0


def test_a_column_of_outputs_is_never_broadcast_against_flat_labels() -> None:
    outputs, labels = np.arange(4, dtype=np.float32)[:, None], np.arange(4.0)
    assert METRICS["mse"].per_sample(outputs, labels).tolist() == [0, 0, 0, 0]  # type: ignore[union-attr]
    assert METRICS["r2"].value(outputs, labels) == 1.0


@pytest.mark.parametrize("columns", [1, 3])
def test_regression_metrics_equal_scipy_and_sklearn(columns: int) -> None:
    outputs, truth = np.round(NOISY[:, :columns]), np.round(LOGITS[:, :columns]).astype(np.float64)
    every = range(columns)
    assert METRICS["r2"].value(outputs, truth) == pytest.approx(r2_score(truth, outputs.astype(np.float64)), abs=1e-9)
    assert METRICS["pearson"].value(outputs, truth) == pytest.approx(
        np.mean([pearsonr(outputs[:, c], truth[:, c])[0] for c in every]), abs=1e-6
    )
    assert METRICS["spearman"].value(outputs, truth) == pytest.approx(
        np.mean([spearmanr(outputs[:, c], truth[:, c])[0] for c in every]), abs=1e-9
    )


def test_correlation_of_constant_outputs_is_zero() -> None:
    for name in ("pearson", "spearman"):
        assert METRICS[name].value(np.ones((5, 1), np.float32), np.arange(5.0)) == 0.0


def test_cosine_by_hand() -> None:
    outputs = np.array([[3, 4], [1, 0], [0, 0], [0, 0], [-2, 0]], np.float32)
    reference = np.array([[6, 8], [0, 1], [0, 0], [1, 1], [1, 0]], np.float32)
    assert METRICS["cosine"].per_sample(outputs, reference=reference) == pytest.approx([1, 0, 1, 0, -1], abs=1e-12)


def test_agreement_counts_rows_and_positions() -> None:
    reference = np.array([[1, 2], [2, 1], [0, 3]], np.float32)
    outputs = np.array([[0, 9], [0, 9], [0, 9]], np.float32)
    assert METRICS["agreement"].per_sample(outputs, reference=reference).tolist() == [1, 0, 1]  # type: ignore[union-attr]
    tokens = METRICS["agreement"].per_sample(outputs[None], reference=reference[None])
    assert tokens == pytest.approx([2 / 3])


def test_rows_with_nan_get_the_worst_score() -> None:
    outputs = LOGITS.copy()
    outputs[2, 3] = np.nan
    labels, reference = outputs.argmax(axis=1), LOGITS
    for name, worst in (("top1", 0.0), ("agreement", 0.0), ("cosine", -1.0)):
        scores = METRICS[name].per_sample(outputs, labels, reference)
        assert scores is not None and scores[2] == worst and (scores[[0, 1, 3]] > worst).all()
    assert METRICS["mse"].value(outputs, reference=reference) == np.inf
    assert METRICS["macro_f1"].value(outputs, LABELS) == 0.0
    assert METRICS["r2"].value(outputs, reference) == -np.inf


@settings(max_examples=30, deadline=None)
@given(block=st.integers(1, 2500), name=st.sampled_from(["top1", "top3", "agreement", "cosine", "mse", "mae"]))
def test_blocks_change_no_score(block: int, name: str) -> None:
    labels = LABELS if name.startswith("top") else None
    whole = METRICS[name].per_sample(NOISY, labels, LOGITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK_VALUES", block)
        np.testing.assert_array_equal(METRICS[name].per_sample(NOISY, labels, LOGITS), whole)


@pytest.mark.parametrize("name", sorted({*METRICS, "top3"}))
def test_every_score_stays_within_its_bounds_and_the_value_is_its_mean(name: str) -> None:
    metric = METRICS[name]
    labels: NDArray[Any] | None = LABELS if metric.min_classes else LOGITS
    scores = metric.per_sample(NOISY, labels, LOGITS)
    value = metric.value(NOISY, labels, LOGITS)
    low, high = metric.bounds or (-np.inf, np.inf)
    if scores is not None:
        assert low <= scores.min() and scores.max() <= high and value == pytest.approx(scores.mean())
    assert low <= value <= high
    best = metric.value(LOGITS, LOGITS.argmax(axis=1) if metric.min_classes else LOGITS, LOGITS)
    assert best > value if metric.direction == "higher" else best < value


def test_auto_means_top1_with_labels_and_agreement_without() -> None:
    assert resolve_metric("auto", has_labels=True).name == "top1"
    assert resolve_metric("auto", has_labels=False).name == "agreement"
    assert resolve_metric("mse", has_labels=False).name == "mse"


def test_a_metric_that_needs_labels_names_what_is_missing() -> None:
    with pytest.raises(
        JobError, match=r"metric 'top3' needs labels, and the validation data has no array 'labels'. Add it, name the array"
    ):
        resolve_metric("top3", has_labels=False)


@pytest.mark.parametrize(("name", "near"), [("topp1", "top1"), ("top0", "top"), ("aggrement", "agreement"), ("macrof1", "macro_f1")])
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=rf"unknown metric '{name}'. Did you mean '{near}"):
        resolve_metric(name, has_labels=True)


def test_top_k_is_a_family() -> None:
    assert "top17" in METRICS and "top0" not in METRICS and "topp" not in METRICS and 5 not in METRICS
    assert METRICS["top17"].name == "top17" and METRICS["top17"] == METRICS["top17"]
    assert {"top1", "top5", "auroc", "mae"} <= set(METRICS)


@pytest.fixture
def clean_registry() -> Iterator[None]:
    known = dict(METRICS._items)
    yield
    METRICS._items.clear()
    METRICS._items.update(known)


@pytest.mark.usefixtures("clean_registry")
def test_a_new_metric_is_one_function() -> None:
    @metrics.per_row("largest_error", direction="lower", needs_labels=False)
    def largest_error(rows: Rows) -> NDArray[np.float64]:
        outputs, truth = rows.pair()
        worst: NDArray[np.float64] = abs(outputs - truth).max(axis=1)
        return worst

    metric = resolve_metric("largest_error", has_labels=False)
    assert metric.value(np.array([[1, 5]], np.float32), reference=np.zeros((1, 2))) == 5.0
    assert (metric.direction, metric.worst, metric.bounds) == ("lower", np.inf, None)


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("top1", np.zeros((4, 1)), [0, 1, 0, 1], r"shape \[n, classes\] with at least 2 classes, got \[n, 1\].*use auroc"),
        ("macro_f1", np.zeros(4), [0, 1, 0, 1], r"with at least 2 classes, got \[n\]"),
        ("top5", np.zeros((4, 5)), [0, 1, 0, 1], r"with at least 6 classes, got \[n, 5\]"),
        ("top1", np.zeros((4, 3, 2)), [0, 1, 0, 1], r"got \[n, 3, 2\]"),
        ("top1", np.zeros((4, 3)), [0, 1, 3, 1], r"whole numbers in 0..2, the model's classes, got 3. Number the classes from 0"),
        ("top1", np.zeros((4, 3)), [0, -1, 2, 1], r"whole numbers in 0..2, the model's classes, got -1"),
        ("auroc", np.zeros((4, 1)), [0, 1, 2, 1], r"whole numbers in 0..1, the model's classes, got 2"),
        ("top1", np.zeros((4, 3)), np.eye(4, 3), r"one class number per row, shape \[n\], got shape \[n, 3\]. Use argmax"),
        ("top1", np.zeros((4, 3)), None, r"one class number per row, shape \[n\], got none"),
    ],
)
def test_outputs_and_labels_that_do_not_fit_are_refused(name: str, outputs: NDArray[Any], labels: Any, message: str) -> None:
    given_labels = None if labels is None else np.array(labels)
    with pytest.raises(DataError, match=message):
        METRICS[name].value(outputs, given_labels)
    with pytest.raises(DataError, match=message):
        check_classes(METRICS[name], outputs, given_labels)


def test_check_classes_gives_the_number_of_classes() -> None:
    assert check_classes(METRICS["top1"], NOISY, LABELS) == 7
    assert check_classes(METRICS["auroc"], NOISY[:, 0], LABELS % 2) == 2
    assert check_classes(METRICS["auroc"], NOISY[:4], np.zeros(4)) == 7
    assert check_classes(METRICS["mse"], NOISY, NOISY) is None
    assert check_classes(METRICS["agreement"], NOISY, None) is None


@pytest.mark.parametrize(
    ("name", "given_rows", "message"),
    [
        ("mse", {"labels": np.zeros(4)}, r"labels must have the outputs' shape \[n, 3\], got \[n\]. Save one label per output value"),
        ("mse", {}, r"labels must have the outputs' shape \[n, 3\], got none"),
        ("cosine", {}, r"the original's outputs must have the outputs' shape \[n, 3\], got none"),
        ("agreement", {"reference": np.zeros((4, 2))}, r"must have the outputs' shape \[n, 3\], got \[n, 2\]"),
        ("pearson", {"labels": np.ones((4, 3))}, r"pearson needs labels that vary, got the same one in all 4 rows"),
        ("auroc", {"labels": np.ones(4)}, r"auroc needs rows of at least two classes, got 4 rows of one"),
    ],
)
def test_missing_or_useless_truth_is_refused(name: str, given_rows: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        METRICS[name].value(np.eye(4, 3, dtype=np.float32), **given_rows)


def test_agreement_of_single_scores_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"agreement needs one score per class, at least 2, got outputs of shape \[n, 1\]. Use mse or cosine"
    ):
        METRICS["agreement"].value(np.zeros((4, 1)), reference=np.zeros((4, 1)))


def _judge(metric: Metric, outputs: NDArray[Any], labels: NDArray[Any] | None) -> str | None:
    return degenerate(metric, metric.value(outputs, labels, outputs), outputs, labels)


def test_degenerate_baselines_are_named() -> None:
    top1, one_class = METRICS["top1"], LOGITS + 100 * np.eye(7, dtype=np.float32)[2]
    broken = LOGITS.copy()
    broken[5, 0] = np.nan
    assert "NaN or infinite outputs, first for row 5" in str(_judge(top1, broken, LABELS))
    assert "same output for all 300 rows" in str(_judge(top1, np.zeros_like(LOGITS), LABELS))
    assert "predicts class 2 for all 300 rows" in str(_judge(top1, one_class, LABELS))
    assert "predicts class 2 for all 300 rows" in str(_judge(METRICS["agreement"], one_class, None))
    assert "top1 of the original model is 0, the worst there is" in str(_judge(top1, LOGITS, (LOGITS.argmax(axis=1) + 1) % 7))
    assert "r2 of the original model is nan" in str(degenerate(METRICS["r2"], float("nan"), LOGITS))


def test_sound_baselines_pass() -> None:
    assert _judge(METRICS["top1"], NOISY, LABELS) is None
    assert _judge(METRICS["agreement"], NOISY, None) is None
    assert _judge(METRICS["mse"], NOISY, LOGITS) is None
    assert _judge(METRICS["top1"], LOGITS[:1], LOGITS[:1].argmax(axis=1)) is None, "one row cannot vary"
    only = LOGITS.argmax(axis=1) == 3
    assert _judge(METRICS["top1"], LOGITS[only], np.full(only.sum(), 3)) is None, "one class is right where there is only one"
