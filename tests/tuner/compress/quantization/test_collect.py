from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import pytest
from builders import Net, rows, run, small_cnn

from tuner.compress.quantization.collect import Batch, block_rows, collect, exposing
from tuner.errors import ModelError
from tuner.model.graph import serialize

TENSORS = ["x", "relu1_out", "conv2_out", "fc_out"]


def test_exposed_tensors_come_after_the_outputs_each_once() -> None:
    model = small_cnn()
    before = serialize(model.proto)
    data = exposing(model, TENSORS)
    assert [value.name for value in onnx.load_from_string(data).graph.output] == ["fc_out", "relu1_out", "conv2_out"]
    assert serialize(model.proto) == before
    feed = rows(model, 2)
    np.testing.assert_allclose(run(data, feed)[0], run(model, feed)[0], atol=1e-5)


@pytest.mark.parametrize("sizes", [(24,), (7, 16, 1), (8, 8, 8)])
def test_statistics_are_those_of_all_rows_whatever_the_batches(sizes: Sequence[int]) -> None:
    model = small_cnn()
    data, feed = exposing(model, TENSORS), rows(model, 24)
    starts = np.cumsum([0, *sizes])
    done: list[int] = []
    asked: list[list[str]] = []

    def runner(batch: Batch, names: Sequence[str]) -> list[np.ndarray]:
        asked.append(list(names))
        return run(data, batch, names, optimize=False)

    batches = [{"x": feed["x"][a:b]} for a, b in pairwise(starts)]
    found = collect(model, TENSORS, batches, runner, done.append)
    # The input is not asked for: it is at hand.
    assert asked == [TENSORS[1:]] * len(sizes)
    assert done == list(starts[1:]) and list(found) == TENSORS
    whole = dict(zip(TENSORS, [feed["x"], *run(data, feed, TENSORS[1:], optimize=False)], strict=True))
    for name, values in whole.items():
        assert found[name].count == values.size
        assert found[name].low == pytest.approx(values.min(), rel=1e-5) and found[name].high == pytest.approx(values.max(), rel=1e-5)
        assert found[name].mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-4, abs=1e-6)


def test_a_value_that_is_not_finite_names_the_tensor_and_the_rows() -> None:
    net = Net()
    model = net.output(net.op("Log", net.input("x", ("batch", 2)), name="log")).model()
    data = exposing(model, ["log_out"])
    batches = [{"x": np.ones((3, 2), np.float32)}, {"x": np.zeros((2, 2), np.float32)}]
    with pytest.raises(ModelError, match=r"log_out.*3.*5|log_out.*3.*4"):
        collect(model, ["log_out"], batches, lambda batch, names: run(data, batch, names))


@pytest.mark.parametrize(("one_row", "expected"), [(0, 32), (1, 32), (2 * 2**20, 32), (4 * 2**20, 16), (2**30, 1)])
def test_blocks_stay_within_64_mebibytes(one_row: int, expected: int) -> None:
    assert block_rows(one_row) == expected
