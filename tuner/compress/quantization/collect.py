"""One pass over the calibration rows fills the statistics of every tensor; nothing but the statistics is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tuner.compress.quantization.statistics import TensorStatistics
from tuner.model.graph import Model, serialize

Batch = Mapping[str, NDArray[Any]]
RunNamed = Callable[[Batch, Sequence[str]], list[NDArray[Any]]]
"""(feed, output names) -> those outputs."""

BLOCK_BYTES = 64 * 2**20


def exposing(model: Model, tensors: Sequence[str]) -> bytes:
    """The model's file with `tensors` as further outputs, so that a runtime can be asked for them."""
    proto = model.copy()
    there = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in there)
    return serialize(proto)


def collect(
    model: Model, tensors: Sequence[str], batches: Iterable[Batch], run: RunNamed, between: Callable[[int], None] = lambda _: None
) -> dict[str, TensorStatistics]:
    """Statistics of `tensors` over all batches. `run` works on the graph that `exposing` gives; `between` is told the rows done.

    Raises ModelError naming the tensor where a value is NaN or infinite."""
    inputs = {value.name for value in model.inputs}
    asked = [name for name in tensors if name not in inputs]
    statistics = {name: TensorStatistics(name) for name in tensors}
    done = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        values = dict(zip(asked, run(batch, asked), strict=True)) | {name: batch[name] for name in tensors if name in inputs}
        for name, statistic in statistics.items():
            statistic.update(np.asarray(values[name], np.float32), rows=(done, done + size))
        done += size
        between(done)
    return statistics


def block_rows(one_row_bytes: int) -> int:
    """How many rows may be in flight at once: their exposed tensors stay within 64 MiB."""
    return int(np.clip(BLOCK_BYTES // max(one_row_bytes, 1), 1, 32))
