from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_jobs import CLASSES, FEATURES, dataset, save_data

from tuner.data.metrics import METRICS
from tuner.job import Constraint
from tuner.measure.accuracy import EarlyTest, Run, Split, baseline_scored, batch_rows, measure, open_split, run_rows, score
from tuner.measure.judge import allowance

ROWS = 1000
WEIGHT = np.random.default_rng(0).standard_normal((FEATURES, CLASSES)).astype(np.float32)


class Linear:
    """x @ weight, and how many rows each call had."""

    def __init__(self, weight: NDArray[np.float32]) -> None:
        self.weight = weight
        self.calls: list[int] = []

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        self.calls.append(len(feed["x"]))
        return np.asarray(feed["x"] @ self.weight)


def changed(noise: float, seed: int = 7) -> Linear:
    return Linear(WEIGHT + noise * np.random.default_rng(seed).standard_normal(WEIGHT.shape).astype(np.float32))


def arrays(rows: int = ROWS) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    x = random.standard_normal((rows, FEATURES)).astype(np.float32)
    wrong = random.random(rows) < 0.1
    return {"x": x, "labels": np.where(wrong, random.integers(0, CLASSES, rows), (x @ WEIGHT).argmax(axis=1))}


def make_split(folder: Path, rows: int = ROWS, run: Run | None = None, batch: int = 32) -> Split:
    data = dataset(save_data(folder / "data.npz", arrays(rows)), folder)
    return open_split("validation", data, run or Linear(WEIGHT), batch, 3, folder)


def test_the_originals_outputs_are_kept_in_the_datasets_order(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    data = arrays()
    np.testing.assert_allclose(split.reference, data["x"] @ WEIGHT, rtol=1e-5)
    assert split.base_value(METRICS["top1"]) == pytest.approx(float(((data["x"] @ WEIGHT).argmax(1) == data["labels"]).mean()))


def test_rows_are_counted_while_the_originals_outputs_are_computed(tmp_path: Path) -> None:
    data = dataset(save_data(tmp_path / "data.npz", arrays(70)), tmp_path)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        open_split("validation", data, Linear(WEIGHT), 32, 3, tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(32, 70), (64, 70), (70, 70), (70, 70)]


def test_scores_are_those_of_a_plain_evaluation_in_the_splits_order(tmp_path: Path) -> None:
    split, candidate, data = make_split(tmp_path), changed(0.3), arrays()
    found = score(split, candidate, [METRICS["top1"], METRICS["cosine"]])
    outputs = data["x"] @ candidate.weight
    hits = (outputs.argmax(axis=1) == data["labels"]).astype(float)
    assert found.complete
    assert sorted(found.rows) == list(range(ROWS))
    assert not np.array_equal(found.rows, np.arange(ROWS))
    np.testing.assert_array_equal(found.rows, split.draw.rows)
    np.testing.assert_array_equal(found.scores["top1"], hits[split.draw.rows])
    measured = measure(METRICS["top1"], found, split, 1.5, "here")
    assert measured.value == pytest.approx(hits.mean())
    assert (measured.samples, measured.seconds, measured.target) == (ROWS, 1.5, "here")
    assert measured.stderr == pytest.approx(hits.std(ddof=1) / np.sqrt(ROWS))
    assert found.outputs is None


def test_a_metric_of_whole_splits_keeps_the_outputs(tmp_path: Path) -> None:
    split, candidate, data = make_split(tmp_path), changed(0.3), arrays()
    found = score(split, candidate, [METRICS["macro_f1"], METRICS["top1"]])
    outputs = data["x"] @ candidate.weight
    assert found.outputs is not None
    np.testing.assert_allclose(found.outputs, outputs[split.draw.rows], rtol=1e-4, atol=1e-4)
    assert measure(METRICS["macro_f1"], found, split, 0.0, "").value == pytest.approx(METRICS["macro_f1"].value(outputs, data["labels"]))


def test_the_originals_own_scores_have_the_same_form(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    found = baseline_scored(split, [METRICS["top1"], METRICS["macro_f1"]])
    assert measure(METRICS["top1"], found, split, 0.0, "").value == split.base_value(METRICS["top1"])
    assert measure(METRICS["macro_f1"], found, split, 0.0, "").value == split.base_value(METRICS["macro_f1"])


def early(split: Split, max_drop: float) -> EarlyTest:
    metric = METRICS["top1"]
    limit = allowance(Constraint(metric="top1", max_drop=max_drop), "higher", split.base_value(metric))
    return EarlyTest(metric, limit, limit.allowed, 0.05)


@pytest.mark.parametrize(("noise", "max_drop", "decision"), [(0.0, 0.1, "met"), (3.0, 0.1, "missed")])
def test_clear_candidates_are_decided_early_and_rightly(tmp_path: Path, noise: float, max_drop: float, decision: str) -> None:
    split = make_split(tmp_path, 4000)
    test = early(split, max_drop)
    found = score(split, changed(noise), [METRICS["top1"]], [test])
    whole = score(split, changed(noise), [METRICS["top1"]])
    drop = split.base_value(METRICS["top1"]) - whole.scores["top1"].mean()
    assert found.decisions == (decision,)
    assert (drop <= max_drop) == (decision == "met")
    assert not found.complete
    assert len(found.rows) < 2000
    np.testing.assert_array_equal(found.rows, split.draw.rows[: len(found.rows)])
    np.testing.assert_array_equal(found.scores["top1"], whole.scores["top1"][: len(found.rows)])


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("max_drop", [0.005, 0.02, 0.15])
def test_what_ends_early_says_what_all_rows_say(tmp_path: Path, noise: float, max_drop: float) -> None:
    split = make_split(tmp_path, 2000)
    found = score(split, changed(noise), [METRICS["top1"]], [early(split, max_drop)])
    whole = score(split, changed(noise), [METRICS["top1"]])
    drop = split.base_value(METRICS["top1"]) - whole.scores["top1"].mean()
    assert found.decisions == ("met" if drop <= max_drop else "missed",)


def test_one_missed_constraint_ends_the_scoring_but_one_met_does_not(tmp_path: Path) -> None:
    split = make_split(tmp_path, 4000)
    lenient, strict = early(split, 0.9), early(split, 0.05)
    found = score(split, changed(3.0), [METRICS["top1"]], [lenient, strict])
    assert found.decisions[1] == "missed"
    assert not found.complete
    boundary = score(split, changed(0.1), [METRICS["top1"]], [early(split, 0.9), early(split, 0.03)])
    alone = score(split, changed(0.1), [METRICS["top1"]], [early(split, 0.9)])
    assert len(alone.rows) < len(boundary.rows)


def test_scoring_may_be_ended_between_blocks(tmp_path: Path) -> None:
    split, candidate = make_split(tmp_path), changed(0.1)

    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    with pytest.raises(Enough):
        score(split, candidate, [METRICS["top1"]], between_blocks=stop)
    assert sum(candidate.calls) == 128


def test_the_last_batch_may_be_short(tmp_path: Path) -> None:
    run = Linear(WEIGHT)
    data = dataset(save_data(tmp_path / "data.npz", arrays(10)), tmp_path)
    blocks = list(run_rows(data, run, np.array([9, 0, 5, 3, 1, 7]), 4))
    assert run.calls == [4, 2]
    np.testing.assert_allclose(np.concatenate(blocks), arrays(10)["x"][[9, 0, 5, 3, 1, 7]] @ WEIGHT, rtol=1e-5)


def test_batches_fit_the_model_and_stay_within_8_mib(tmp_path: Path) -> None:
    small = dataset(save_data(tmp_path / "small.npz", arrays(10)), tmp_path)
    assert batch_rows(small, None) == 32
    assert batch_rows(small, 4) == 4
    big = dataset(save_data(tmp_path / "big.npz", {"x": np.zeros((2, 2**19), np.float32)}), tmp_path, features=2**19)
    assert batch_rows(big, None) == 4


def test_the_originals_outputs_are_computed_once(tmp_path: Path) -> None:
    make_split(tmp_path, 100)

    def never(_: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        raise AssertionError("computed again")

    again = make_split(tmp_path, 100, never)
    np.testing.assert_allclose(again.reference, arrays(100)["x"] @ WEIGHT, rtol=1e-5)
    np.testing.assert_array_equal(again.draw.rows, make_split(tmp_path, 100, never).draw.rows)


def test_half_written_outputs_are_never_taken_for_whole(tmp_path: Path) -> None:
    run = Linear(WEIGHT)

    def breaks(feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if len(run.calls) == 2:
            raise RuntimeError("killed")
        return run(feed)

    with pytest.raises(RuntimeError, match="killed"):
        make_split(tmp_path, 100, breaks)
    assert not (tmp_path / "reference-validation.npy").exists()
    whole = make_split(tmp_path, 100)
    np.testing.assert_allclose(whole.reference, arrays(100)["x"] @ WEIGHT, rtol=1e-5)


def test_rows_without_labels_are_scored_against_the_original(tmp_path: Path) -> None:
    data = dataset(save_data(tmp_path / "data.npz", {"x": arrays()["x"]}), tmp_path)
    split = open_split("validation", data, Linear(WEIGHT), 32, 3, tmp_path)
    candidate = changed(0.3)
    found = score(split, candidate, [METRICS["agreement"]])
    x = arrays()["x"]
    assert found.scores["agreement"].mean() == pytest.approx(float(((x @ candidate.weight).argmax(1) == (x @ WEIGHT).argmax(1)).mean()))
    assert split.base_value(METRICS["agreement"]) == 1.0
