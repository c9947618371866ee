from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_jobs import CLASSES, dense, dense_data, reference, tiny_job

from tuner.data.metrics import METRICS
from tuner.evaluator import Evaluator
from tuner.files import rows_file
from tuner.job import Constraint, DataRef, DataSpec, JobSpec
from tuner.measure.accuracy import Scored
from tuner.measure.row_scores import keep_baseline, keep_trial
from tuner.plan import make_plan
from tuner.preflight import baseline
from tuner.results import BaselineRows, RowScores

GOOD = "u8-asym-minmax/s8-sym-channel"


def kept_of(folder: Path, job: JobSpec) -> BaselineRows:
    baseline(Evaluator(job, folder / "cache"))
    return BaselineRows.model_validate_json(rows_file(folder / "cache", None).read_text())


def hits(rows: tuple[int, ...]) -> list[float]:
    """Whether the original has rows of the file right."""
    data = dense_data(dense(), 1128)
    right = reference(dense(), data["x"]).argmax(axis=1) == data["labels"]
    return [float(right[row]) for row in rows]


def test_rows_count_within_the_file(tmp_path: Path) -> None:
    """Validation are the rows [128, 728) of it."""
    found = kept_of(tmp_path, tiny_job(tmp_path))
    assert (found.metric, found.direction, found.total) == ("top1", "higher", 600)
    assert sorted(found.rows) == list(range(128, 728))
    assert list(found.rows) != sorted(found.rows)
    assert found.classes == tuple(dense_data(dense(), 1128)["labels"][list(found.rows)].tolist())
    assert list(found.scores) == hits(found.rows)


def test_rows_are_right_where_half_of_validation_was_set_aside(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    file = job.data.validation.file
    data = DataSpec(calibration=DataRef(file=file, rows=(0, 128)), validation=DataRef(file=file, rows=(200, 1128)))
    found = kept_of(tmp_path, job.model_copy(update={"data": data}))
    assert found.total == len(found.rows) == len(set(found.rows)) == 464
    assert 200 <= min(found.rows) < max(found.rows) < 1128
    assert max(found.rows) - min(found.rows) > 800
    assert list(found.scores) == hits(found.rows)


def test_agreement_has_the_classes_that_the_original_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.measure.row_scores._BLOCK", 7)
    job = tiny_job(tmp_path, metrics=("agreement",), constraints=(Constraint(metric="agreement", at_least=0.9),))
    found = kept_of(tmp_path, job)
    predicted = reference(dense(), dense_data(dense(), 1128)["x"]).argmax(axis=1)
    assert found.classes == tuple(predicted[list(found.rows)].tolist())
    assert set(found.classes) <= set(range(CLASSES))
    assert set(found.scores) == {1.0}


def test_a_cost_that_comes_first_is_passed_over_and_other_metrics_have_no_classes(tmp_path: Path) -> None:
    limits = (Constraint(metric="size_bytes", at_most=10**6), Constraint(metric="cosine", at_least=0.9))
    found = kept_of(tmp_path, tiny_job(tmp_path, metrics=("top1", "cosine"), constraints=limits))
    assert (found.metric, found.classes) == ("cosine", None)


def test_only_so_many_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kept_of(tmp_path, tiny_job(tmp_path))
    monkeypatch.setattr("tuner.measure.row_scores.MOST_ROWS", 50)
    part = kept_of(tmp_path, tiny_job(tmp_path))
    assert (part.total, part.rows, part.scores) == (600, whole.rows[:50], whole.scores[:50])
    assert part.classes == (whole.classes or ())[:50]
    scored = Scored(np.arange(600), {"top1": np.tile([1.0, 0.0], 300)}, None, (), True)
    keep_trial(tmp_path, 3, METRICS["top1"], scored)
    assert RowScores.model_validate_json(rows_file(tmp_path, 3).read_text()).scores == (1.0, 0.0) * 25


def test_a_trial_leaves_its_scores_in_the_order_of_the_baseline(tmp_path: Path) -> None:
    """One that is decided early leaves the first of them; scored on all rows afterwards, it leaves all."""
    job = tiny_job(tmp_path)
    base = kept_of(tmp_path, job)
    evaluator, plan = Evaluator(job, tmp_path / "cache"), make_plan({"fc1": {"quantize": GOOD}}, 0)
    outputs = {}
    for full in (False, True):
        trial = evaluator.evaluate(4, plan, {"fc1": GOOD}, aims={"top1": 0.4}, measure_latency=False, full=full)
        found = RowScores.model_validate_json(rows_file(tmp_path / "cache", 4).read_text())
        assert (found.metric, len(found.scores)) == ("top1", trial.measurements["top1"].samples)
        outputs[full] = found.scores
    assert len(outputs[False]) < len(outputs[True]) == base.total
    assert outputs[True][: len(outputs[False])] == outputs[False]
    assert np.mean(outputs[True]) == pytest.approx(trial.measurements["top1"].value)
    assert np.mean(np.not_equal(outputs[True], base.scores)) < 0.02


def test_a_metric_of_whole_splits_leaves_nothing(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, metrics=("macro_f1",), constraints=(Constraint(metric="macro_f1", max_drop=0.1),))
    evaluator = Evaluator(job, tmp_path / "cache")
    keep_baseline(tmp_path, evaluator.leading, evaluator.validation)
    evaluator.evaluate(0, make_plan({}, 0), {}, aims={}, measure_latency=False)
    assert not (tmp_path / "cache" / "rows").exists()
    assert not (tmp_path / "rows").exists()


def test_scores_that_are_not_finite_are_kept_as_json(tmp_path: Path) -> None:
    scored = Scored(np.arange(3), {"mse": np.array([np.inf, 0.25, np.nan])}, None, (), True)
    keep_trial(tmp_path, 0, METRICS["mse"], scored)
    text = rows_file(tmp_path, 0).read_text()
    assert text == '{"metric":"mse","scores":["Infinity",0.25,"NaN"]}'
    np.testing.assert_array_equal(RowScores.model_validate_json(text).scores, [np.inf, 0.25, np.nan])
