from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tuner.demo import DigitNet, accuracy, digit_splits, prepare_demo, train
from tuner.errors import InputError
from tuner.job import load_job
from tuner.measure.runtime import Session
from tuner.model.graph import Model


def test_splits_are_disjoint_and_hold_every_digit_once() -> None:
    splits = digit_splits()
    assert [len(rows["labels"]) for rows in splits.values()] == [797, 400, 600]
    images = np.concatenate([rows["image"] for rows in splits.values()])
    assert images.shape == (1797, 1, 24, 24)
    assert (images.min(), images.max()) == (0, 1)
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    for rows in splits.values():
        assert np.bincount(rows["labels"]).min() > 0.07 * len(rows["labels"])


def test_each_pixel_is_enlarged_to_a_square() -> None:
    image = digit_splits()["train"]["image"][0, 0]
    np.testing.assert_array_equal(image, np.repeat(np.repeat(image[::3, ::3], 3, axis=0), 3, axis=1))


def test_training_is_reproducible_learns_and_leaves_torch_as_it_was() -> None:
    rows = {name: array[:200] for name, array in digit_splits()["train"].items()}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first, second = train(rows, epochs=1), train(rows, epochs=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.training
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(first.classifier.weight, DigitNet().classifier.weight)


def test_accuracy_is_the_share_of_right_rows() -> None:
    rows = {"image": np.eye(4, dtype=np.float32), "labels": np.array([0, 1, 2, 0])}
    assert accuracy(torch.nn.Identity(), rows) == 0.75


def test_without_scikit_learn_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"the demo needs scikit-learn .*pip install 'accutune\[demo\]'"):
        prepare_demo(tmp_path, lambda _: None)


@pytest.mark.slow
def test_the_demo_leaves_a_trained_network_and_a_job_that_loads(tmp_path: Path) -> None:
    said: list[str] = []
    path = prepare_demo(tmp_path / "demo", said.append)
    job = load_job(path)
    assert path == tmp_path / "demo" / "job.yaml"
    assert f"tuner run {path}" in path.read_text()
    model, holdout = Model.load(job.model), np.load(tmp_path / "demo" / "holdout.npz")
    assert "BatchNormalization" in {node.op_type for node in model.nodes.values()}
    predicted = Session(model.data, 1).run({"image": holdout["image"]}, None)[0].argmax(axis=1)
    assert (predicted == holdout["labels"]).mean() >= 0.97
    assert job.data.holdout is not None
    assert all(Path(ref.file).is_file() for ref in job.data.roles().values())
    assert len(said) == 3
    assert "278,890 parameters" in said[1]
    assert str(tmp_path / "demo") in said[2]
