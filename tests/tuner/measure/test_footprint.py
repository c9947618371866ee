from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from tiny_jobs import FEATURES, dense

from tuner.errors import TrialError
from tuner.measure.footprint import compressed_size, peak_memory

MIB = 2**20


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB + 17])
def test_the_compressed_size_is_that_of_zlib(size: int) -> None:
    data = np.random.default_rng(0).integers(0, 16, size, np.uint8).tobytes()
    assert compressed_size(data) == len(zlib.compress(data, 6))


def test_a_bigger_model_needs_more_memory_whatever_this_process_holds(tmp_path: Path) -> None:
    """This process holds more than either model needs, which must not hide what they need."""
    ballast = np.ones(400 * MIB, np.uint8)
    feed = {"x": np.zeros((1, FEATURES), np.float32)}
    found = []
    for hidden in (32, 3072):
        path = tmp_path / f"{hidden}.onnx"
        path.write_bytes(dense(hidden=hidden))
        found.append(peak_memory(path, feed, 1, tmp_path))
    small, big = found
    assert 0 < small < 30 * MIB
    weights = 4 * 3072**2
    assert small + weights < big < small + 6 * weights
    assert not list(tmp_path.glob("*.npz"))
    del ballast


def test_a_model_that_cannot_be_loaded_is_a_trial_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(TrialError, match=r"measuring peak memory of broken\.onnx failed: ") as caught:
        peak_memory(path, {"x": np.zeros((1, 1), np.float32)}, 1, tmp_path)
    assert caught.value.step == "peak memory"
    assert not list(tmp_path.glob("*.npz"))
