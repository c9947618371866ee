"""The runtime: sessions of onnxruntime, what they made of a graph, and the machine they run on."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tuner.errors import AccutuneError, ModelError
from tuner.measure.machine import processor_name

Feed = Mapping[str, NDArray[Any]]

FLOAT_OPERATORS = ("DequantizeLinear",)
"""What reads an integer weight when no integer kernel took the layer."""


class Session:
    """A loaded model. Feeds are dictionaries of arrays by input name."""

    def __init__(self, model: bytes | Path, threads: int, *, optimized: Path | None = None, profile: Path | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Spinning threads would take time from the model that is measured in turn with this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"onnxruntime {ort.__version__} cannot load the model: {_first_line(error)}") from error

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """All outputs, or those named, for one batch. ModelError where the runtime refuses the feed or the graph."""
        try:
            return list(self._session.run(outputs, feed))
        except Exception as error:
            raise ModelError(f"onnxruntime {ort.__version__} cannot run the model: {_first_line(error)}") from error

    @property
    def output_names(self) -> list[str]:
        return [output.name for output in self._session.get_outputs()]

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the model takes; None where it takes any."""
        shapes = (each.shape for each in self._session.get_inputs())
        return next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), None)

    def kernel_ms(self) -> dict[str, float]:
        """Ends profiling. {node name as the runtime has it: milliseconds per run}. The lower quartile over runs: what other programs
        do to a kernel only ever adds to its time."""
        path = Path(self._session.end_profiling())
        durations: dict[str, list[float]] = defaultdict(list)
        for event in json.loads(path.read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1000)
        path.unlink()
        return {name: float(np.quantile(times, 0.25)) for name, times in durations.items()}


def float_weights(model: bytes, weights: Sequence[str], threads: int) -> tuple[Session, set[str]]:
    """A session of a quantized model, and which of its integer `weights` no integer kernel took: those layers stayed in float."""
    with scratch() as folder:
        path = folder / "optimized.onnx"
        session = Session(model, threads, optimized=path)
        graph = onnx.load(str(path)).graph
    wanted, left = set(weights), set()
    for node in graph.node:
        if node.op_type in FLOAT_OPERATORS and node.input[0] in wanted:
            left.add(node.input[0])
    return session, left


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder in memory where the system has one, else on disk."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="accutune-", dir=parent) as folder:
        yield Path(folder)


def environment() -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    return {
        "processor": processor_name(),
        "cores": str(os.cpu_count() or 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
    }


def _first_line(error: Exception) -> str:
    if isinstance(error, AccutuneError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
