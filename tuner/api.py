"""The Python entry: tune a model from a script or a notebook, with data as it lies there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.space import SpaceSpec
from tuner.conclude import run_job
from tuner.data.sources import find_arrays
from tuner.data.spool import LABELS, spool
from tuner.errors import ModelError, writing
from tuner.executor import LocalExecutor
from tuner.job import Constraint, DataRef, JobSpec, job_id, parse_job
from tuner.model.graph import Model
from tuner.preflight import check_names
from tuner.progress import Observer
from tuner.results import Interval, JobResult, TrialResult
from tuner.store import InMemoryTrialStore
from tuner.study import Study

if TYPE_CHECKING:
    from torch import nn

EXAMPLE_ROWS = 2


@dataclass(frozen=True)
class Tuned:
    """What `tune` found, and where it lies."""

    result: JobResult
    folder: Path
    trials: list[TrialResult]

    @property
    def model_path(self) -> Path:
        """The best model; the original's copy where nothing better was certified."""
        return self.folder / "best.onnx"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    @property
    def feasible(self) -> bool:
        """Whether the model at `model_path` meets every constraint on the holdout."""
        return self.result.feasible

    @property
    def speedup(self) -> Interval:
        """Latency of the original over latency of the best model."""
        return self.result.best.speedup

    @property
    def size_ratio(self) -> float:
        """Size of the best model's file over the original's."""
        return self.result.best.size_ratio


def tune(
    model: str | os.PathLike[str] | nn.Module,
    data: Any,
    *,
    max_drop: float = 0.01,
    relative: bool = True,
    confidence: float | None = None,
    metric: str = "auto",
    constraints: Sequence[Constraint | Mapping[str, Any]] | None = None,
    holdout: Any = None,
    calibration: Any = None,
    training: Any = None,
    objective: str | Sequence[str] = "latency",
    space: str | SpaceSpec = "int8",
    strategy: str = "auto",
    trials: int = 60,
    seconds: float = 900.0,
    batch: int = 1,
    threads: int = 1,
    parallel: int = 1,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: Observer | None = None,
) -> Tuned:
    """The smallest or fastest model whose `metric` drops by at most `max_drop` from the original's, certified on the holdout.

    model: an ONNX file, or a torch module (exported once, in evaluation mode).
    data, holdout, calibration, training: the rows of each role (`data` validates; without a holdout, half of it is set aside). Each
    is a path (.npz, .parquet, a folder of .npy), a DataRef, a dict of arrays named after the model's inputs plus `labels`, a tuple
    (inputs, labels), an iterable of such batches like a DataLoader, or a function that returns one. What is no path is written once to
    `out`/data.
    constraints: in place of max_drop, relative and confidence, as in a job file. out: the job's folder, by default runs/<job id>;
    an earlier run's files in it are replaced. progress: called with every Event.

    Raises the InputError that says what cannot be used; JobCancelled after Ctrl-C."""
    roles = {"validation": data, "calibration": calibration, "training": training, "holdout": holdout}
    settings = {
        "metrics": [metric],
        "constraints": [_limit(metric, max_drop, relative, confidence)] if constraints is None else list(constraints),
        "objectives": [objective] if isinstance(objective, str) else list(objective),
        "space": space,
        "strategy": strategy,
        "budget": {"trials": trials, "seconds": seconds, "parallel": parallel},
        "target": {"batch": batch, "threads": threads},
        "seed": seed,
    }
    return _tune(model, {role: rows for role, rows in roles.items() if rows is not None}, settings, out, progress)


def _limit(metric: str, max_drop: float, relative: bool, confidence: float | None) -> dict[str, Any]:
    return {"metric": metric, "max_drop": max_drop, "relative": relative, "confidence": confidence}


def _tune(model: Any, roles: Mapping[str, Any], settings: Mapping[str, Any], out: Any, progress: Observer | None) -> Tuned:
    """Name the files, check the job that reads them, then write them and run it."""
    identifier = job_id()
    folder = Path(out or Path("runs") / identifier).resolve()
    module = _module(model)
    file = Path(str(model)).expanduser().resolve() if module is None else folder / "original.onnx"
    refs = {role: _ref(rows) or DataRef(file=str(folder / "data" / role)) for role, rows in roles.items()}
    job = parse_job({"name": _name(model, module), "model": str(file), "data": refs, **settings})
    check_names(job)
    _clear(folder)
    _write_inputs(job, module, {role: rows for role, rows in roles.items() if _ref(rows) is None}, folder)
    return _run(job, identifier, folder, progress or (lambda _: None))


def _module(model: Any) -> nn.Module | None:
    """The model if it is a torch module; None if it is a path. ModelError for anything else."""
    if isinstance(model, str | os.PathLike):
        return None
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be the path of an ONNX file or a torch.nn.Module, got {type(model).__name__}")
    return model


def _ref(value: Any) -> DataRef | None:
    """Rows that lie in a file already; None for those that have to be written."""
    if isinstance(value, DataRef):
        return value.model_copy(update={"file": str(Path(value.file).expanduser().resolve())})
    return DataRef(file=str(Path(value).expanduser().resolve())) if isinstance(value, str | os.PathLike) else None


def _name(model: Any, module: nn.Module | None) -> str:
    wanted = Path(str(model)).stem if module is None else type(module).__name__
    return re.sub(r"[^A-Za-z0-9._ -]", "-", wanted).lstrip("._ -")[:100] or "job"


def _clear(folder: Path) -> None:
    """An empty cache, because what it holds belongs to one job, and no result that could be taken for the new one."""
    with writing(f"the folder {folder}"):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        (folder / "cache").mkdir(parents=True)
        (folder / "result.json").unlink(missing_ok=True)


def _write_inputs(job: JobSpec, module: nn.Module | None, loose: Mapping[str, Any], folder: Path) -> None:
    """Write the rows that are in no file, and the model if it is in none."""
    if module is None:
        names = [tensor.name for tensor in Model.load(job.model).inputs] if loose else []
    else:
        from tuner.model.from_torch import input_names

        names = input_names(module)
    for role, rows in loose.items():
        spool(rows, folder / "data" / role, names, role)
    if module is not None:
        _export(module, job, folder / "cache")


def _export(module: nn.Module, job: JobSpec, cache: Path) -> None:
    """Write the module as the job's model; its first validation rows are the example."""
    import torch

    from tuner.model.from_torch import choose_inputs, export

    ref = job.data.validation
    sources = find_arrays(Path(ref.file), cache)
    arrays = [name for name in sources if name not in {ref.target, LABELS}]
    names = choose_inputs(module, arrays)
    first = ref.rows[0] if ref.rows else 0
    rows = {name: sources[name]().values[first : first + EXAMPLE_ROWS] for name in names}
    export(module, {name: torch.from_numpy(values.copy()) for name, values in rows.items()}, Path(job.model))


def _run(job: JobSpec, identifier: str, folder: Path, observer: Observer) -> Tuned:
    store = InMemoryTrialStore()
    study = Study(job, identifier, folder, store, LocalExecutor(job, folder / "cache"), observer)
    result = run_job(study)
    # A store in memory cannot be taken up again, so nothing will read this any more.
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return Tuned(result, folder, list(store.trials(identifier)))
