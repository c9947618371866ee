"""The loop that any user would write: optuna proposes, onnxruntime quantizes and calibrates, every row is scored, latency is timed.

It stands for itself (`python benchmarks/plain_loop.py CASE`) and is the other side of tuning.py. Nothing of Accutune is used here."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import optuna
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

MAX_DROP = 0.01
"""Of the original's accuracy."""
CALIBRATION_ROWS = 512
CALIBRATION_BATCH = 32
SCORING_BATCH = 100
LATENCY_RUNS, WARM_UP_RUNS = 100, 10
ACTIVATIONS = {"QUInt8": QuantType.QUInt8, "QInt8": QuantType.QInt8}
METHODS = {"MinMax": CalibrationMethod.MinMax, "Entropy": CalibrationMethod.Entropy, "Percentile": CalibrationMethod.Percentile}
FIRST_GUESS = {"per_channel": True, "activation": "QUInt8", "calibration": "MinMax"}
"""What the runtime's documentation recommends on x86; tried first, with no layer left out."""
TEXT_OPERATORS = ["MatMul", "Gemm", "Gather"]

Inputs = dict[str, NDArray[Any]]
Report = tuple[str, Any, bool]
"""A case's text, the numbers behind it, and whether something broke."""


@dataclass(frozen=True)
class Case:
    """A folder with model.onnx and train.npz, test.npz (or a file `data` that names the folder with them)."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    def file(self, part: str) -> Path:
        pointer = self.folder / "data"
        return (self.folder / pointer.read_text().strip() if pointer.is_file() else self.folder) / f"{part}.npz"

    def length(self, part: str) -> int:
        with np.load(self.file(part)) as arrays:
            return len(arrays["labels"])

    def rows(self, part: str, first: int, end: int) -> tuple[Inputs, NDArray[np.int64]]:
        """Inputs in the model's types, and labels. The first half of `test` is for validation, the second is the holdout."""
        with np.load(self.file(part)) as arrays:
            inputs = {name: arrays[name][first:end] for name in arrays.files if name != "labels"}
            labels = arrays["labels"][first:end].astype(np.int64)
        return {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in inputs.items()}, labels


@dataclass
class Trial:
    """One finished trial of either side. `at`: seconds since the run began. `speedup`: as the run itself sees it."""

    at: float
    steps: dict[str, float]
    rows: int = 0
    drop: float | None = None
    feasible: bool = False
    speedup: float | None = None
    error: str = ""


@dataclass
class Run:
    """What one side did. `search` counts the seconds in which trials ran, `seconds` everything."""

    search: float = 0.0
    seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    best: str | None = None
    """The file of the best feasible model, else of the one that misses by least; None where no trial gave a model."""
    phases: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    all_processes_mib: float = 0.0
    note: str = ""
    error: str = ""


class Rows(CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows in batches of one size (the histogram calibrators fail on a shorter last one)."""

    def __init__(self, inputs: Inputs) -> None:
        rows = len(next(iter(inputs.values()))) // CALIBRATION_BATCH * CALIBRATION_BATCH
        self._batches = iter([_slice(inputs, first, CALIBRATION_BATCH) for first in range(0, rows, CALIBRATION_BATCH)])

    def get_next(self) -> Inputs | None:
        return next(self._batches, None)


def run(case: Case, folder: Path, seconds: float, trials: int, seed: int, calibration_rows: int = CALIBRATION_ROWS) -> Run:
    """Search for `seconds` or `trials`, whichever ends first; at least one trial runs. The best model is left in `folder`."""
    started = time.perf_counter()
    loop = _Loop(case, folder, calibration_rows, started)
    loop.result.phases["prepare"] = time.perf_counter() - started
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({**FIRST_GUESS, **{f"exclude {layer}": False for layer in loop.layers}})
    left = max(0.1, seconds - (time.perf_counter() - started))
    searching = time.perf_counter()
    with redirect_stdout(None):  # The calibrators print.
        study.optimize(loop.objective, n_trials=trials, timeout=left, catch=(Exception,))
    loop.result.search = time.perf_counter() - searching
    loop.result.seconds = time.perf_counter() - started
    return loop.result


class _Loop:
    def __init__(self, case: Case, folder: Path, calibration_rows: int, started: float) -> None:
        self.result, self.folder, self.started = Run(), folder, started
        self.source = preprocess(case, folder)
        graph = onnx.load(str(self.source)).graph
        weights = {initializer.name for initializer in graph.initializer}
        self.layers = [n.name for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and weights & set(n.input)]
        self.options = quantize_options(self.source)
        self.calibration, _ = case.rows("train", 0, calibration_rows)
        self.inputs, self.labels = case.rows("test", 0, case.length("test") // 2)
        self.one = _slice(self.calibration, 0, 1)
        original = session(case.model)
        self.accuracy = top1(original, self.inputs, self.labels)
        self.latency_ms = latency(original, self.one)
        self.rank = (True, float("inf"))

    def objective(self, trial: optuna.Trial) -> float:
        steps: dict[str, float] = {}
        record = Trial(at=0.0, steps=steps)
        target = self.folder / "trial.onnx"
        try:
            with _timed(steps, "compress"):
                quantize_static(
                    self.source,
                    target,
                    Rows(self.calibration),
                    per_channel=trial.suggest_categorical("per_channel", [False, True]),
                    activation_type=ACTIVATIONS[trial.suggest_categorical("activation", list(ACTIVATIONS))],
                    weight_type=QuantType.QInt8,
                    calibrate_method=METHODS[trial.suggest_categorical("calibration", list(METHODS))],
                    nodes_to_exclude=[n for n in self.layers if trial.suggest_categorical(f"exclude {n}", [False, True])],
                    **self.options,
                )
            with _timed(steps, "session"):
                candidate = session(target)
            with _timed(steps, "accuracy"):
                drop = (self.accuracy - top1(candidate, self.inputs, self.labels)) / self.accuracy
            with _timed(steps, "latency"):
                milliseconds = latency(candidate, self.one)
            trial.set_constraint("drop", drop - MAX_DROP)
            record.rows, record.drop, record.feasible = len(self.labels), drop, drop <= MAX_DROP
            record.speedup = self.latency_ms / milliseconds
            self._keep(target, drop, milliseconds)
            return milliseconds
        except Exception as error:
            record.error = f"{type(error).__name__}: {error}"[:300]
            raise
        finally:
            record.at = time.perf_counter() - self.started
            self.result.trials.append(record)

    def _keep(self, target: Path, drop: float, milliseconds: float) -> None:
        """The fastest feasible model, or as long as there is none, the one with the smallest drop."""
        rank = (drop > MAX_DROP, drop if drop > MAX_DROP else milliseconds)
        if rank < self.rank:
            self.rank = rank
            self.result.best = str(target.replace(self.folder / "best.onnx"))


def preprocess(case: Case, folder: Path) -> Path:
    """The model as the runtime's own preparation for quantization leaves it."""
    target = folder / "preprocessed.onnx"
    # Symbolic shape inference fails on the text model tried, and is not needed where shapes are known.
    quant_pre_process(case.model, target, skip_symbolic_shape=_reads_text(case.model))
    return target


def quantize_options(model: Path) -> dict[str, Any]:
    """The text model tried lost 15 points with every operator quantized: there, only operators with weights are."""
    if not _reads_text(model):
        return {}
    return {"op_types_to_quantize": TEXT_OPERATORS, "extra_options": {"MatMulConstBOnly": True}}


def _reads_text(model: Path) -> bool:
    return any(value.type.tensor_type.elem_type == onnx.TensorProto.INT64 for value in onnx.load(str(model)).graph.input)


def session(model: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def top1(model: ort.InferenceSession, inputs: Inputs, labels: NDArray[np.int64]) -> float:
    right = 0
    for first in range(0, len(labels), SCORING_BATCH):
        logits = model.run(None, _slice(inputs, first, SCORING_BATCH))[0]
        right += int((logits.argmax(axis=1) == labels[first : first + SCORING_BATCH]).sum())
    return right / len(labels)


def latency(model: ort.InferenceSession, feed: Inputs) -> float:
    """Milliseconds of one call: the median of LATENCY_RUNS."""
    times = []
    for _ in range(WARM_UP_RUNS + LATENCY_RUNS):
        start = time.perf_counter()
        model.run(None, feed)
        times.append(time.perf_counter() - start)
    return float(np.median(times[WARM_UP_RUNS:])) * 1000


def calibrate(case: Case, rows: int, method: str) -> int:
    """The runtime's calibration alone, for its memory. Returns how many tensors were calibrated."""
    with tempfile.TemporaryDirectory() as name:
        source = preprocess(case, Path(name))
        operators = quantize_options(source).get("op_types_to_quantize")
        calibrator = create_calibrator(source, operators, str(Path(name, "augmented.onnx")), METHODS[method])
        with redirect_stdout(None):
            calibrator.collect_data(Rows(case.rows("train", 0, rows)[0]))
            return len(calibrator.compute_data().data)


def find_case(name: str, cases: str | None) -> Case:
    """The case called `name` in the folder `cases`, or the folder `name` itself."""
    folder = Path(cases, name) if cases and Path(cases, name).is_dir() else Path(name)
    model = folder / "model.onnx"
    if not model.is_file():
        raise FileNotFoundError(f"no case '{name}': {model} is missing; give --cases DIR, ACCUTUNE_CASES or a folder's path")
    return Case(folder.resolve())


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="+", metavar="CASE", help="a folder with model.onnx, train.npz, test.npz, or its name in --cases")
    folder = os.environ.get("ACCUTUNE_CASES")
    parser.add_argument("--cases", dest="folder", default=folder, metavar="DIR", help="where cases lie [ACCUTUNE_CASES]")
    parser.add_argument("--json", type=Path, help="where to keep every number")


def for_each_case(script: str, arguments: argparse.Namespace, machine: dict[str, str], report: Callable[[Case], Report]) -> int:
    """Print each case's report and keep its numbers as soon as they are known. What breaks in one case is shown in its place.

    Returns the exit status."""
    command = " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]])
    print(f"`{command}`\n\n{'; '.join(f'{name} {value}' for name, value in machine.items())}\n", flush=True)
    kept: dict[str, Any] = {"command": command, "machine": machine, "cases": {}}
    any_broken = False
    for name in arguments.cases:
        try:
            text, numbers, broken = report(find_case(name, arguments.folder))
        except Exception as error:
            traceback.print_exc()
            text, numbers, broken = f"## {name}\n\n* error: {type(error).__name__}: {error}\n", {"error": str(error)}, True
        any_broken |= broken
        kept["cases"][name] = numbers
        print(text, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(kept, indent=1))
    return int(any_broken)


def _slice(inputs: Inputs, first: int, size: int) -> Inputs:
    return {name: array[first : first + size] for name, array in inputs.items()}


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        steps[name] = time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_arguments(parser)
    parser.add_argument("--seconds", type=float, default=120.0, help="[120]")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--calibration-rows", type=int, default=CALIBRATION_ROWS, help="[%(default)s]")
    arguments = parser.parse_args()

    def report(case: Case) -> Report:
        with tempfile.TemporaryDirectory() as folder:
            result = run(case, Path(folder), arguments.seconds, arguments.trials, 0, arguments.calibration_rows)
        lines = [f"## {case.name}", "", "| at second | drop | speed-up | seconds per step |", "| ---: | ---: | ---: | --- |"]
        for trial in result.trials:
            steps = trial.error or ", ".join(f"{name} {seconds:.2f}" for name, seconds in trial.steps.items())
            lines.append(f"| {trial.at:.1f} | {trial.drop} | {trial.speedup} | {steps} |")
        return "\n".join([*lines, ""]), asdict(result), any(trial.error for trial in result.trials)

    return for_each_case("plain_loop.py", arguments, {"onnxruntime": ort.__version__, "optuna": optuna.__version__}, report)


if __name__ == "__main__":
    sys.exit(main())
