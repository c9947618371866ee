"""The child process that looks at what strangers send: `python -m tuner.gate`. It may take little of the machine, and dies with its
parent."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tuner.compress.pipeline import replay
from tuner.errors import InputError, ModelError, writing
from tuner.evaluator import Evaluator
from tuner.facts import data_facts, model_facts
from tuner.job import JobSpec
from tuner.limits import limit_files, limit_memory
from tuner.measure.latency import computing
from tuner.measure.runtime import Session
from tuner.model.graph import Model
from tuner.model.safety import read_limited
from tuner.outlook import preview
from tuner.plan import load_plan
from tuner.preflight import check_names
from tuner.preview import JobPreview
from tuner.tensors import load_tensors
from tuner.wire import DataFacts, ModelFacts
from tuner.worker import talk

OPEN_FILES = 256
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "Cannot allocate memory", "out of memory")


class Gate:
    """What the gate can be asked. Raises the InputError that says what is wrong, and MemoryError where that cannot be told within the
    memory it has. What computes waits while a latency is measured on this machine."""

    def __init__(self, scratch: Path, unpacked_bytes: int) -> None:
        """scratch: a folder for what has to be unpacked; empty again after each call. unpacked_bytes: the most that one file may unpack
        to."""
        self._scratch, self._unpacked_bytes = scratch, unpacked_bytes

    def ready(self) -> None:
        """Nothing to look at: whoever asks first waits for the libraries to be loaded, and this may as well be nobody."""

    def inspect_model(self, path: str, name: str) -> ModelFacts:
        """What a model file holds, once it is known to be harmless and to load. Messages call it `name`."""
        with _telling_memory(), computing():
            model = Model.parse(read_limited(Path(path), name), name)
            facts = model_facts(model)
            try:
                Session(model.data, threads=1)
            except ModelError as error:
                raise ModelError(f"model {name} cannot be used: {error}. Export it again, perhaps with another opset") from error
            return facts

    def inspect_data(self, path: str, name: str) -> DataFacts:
        """What a data file holds, told from the heads of its arrays. Messages call it `name`."""
        with _telling_memory():
            return data_facts(Path(path), name, self._unpacked_bytes)

    def check_job(self, job: dict[str, Any], folder: str | None = None) -> JobPreview:
        """Every check of a job that does not score the whole validation set; what it would do.

        folder: where relative file names count from."""
        spec = JobSpec.model_validate(job)
        check_names(spec)
        # Threads take address space, and here a handful of rows runs.
        single = spec.model_copy(update={"budget": spec.budget.model_copy(update={"threads": 1})})
        with writing("the folder for unpacking"):
            self._scratch.mkdir(parents=True, exist_ok=True)
        inside = chdir(folder) if folder else nullcontext()
        with _telling_memory(), computing(), tempfile.TemporaryDirectory(dir=self._scratch) as cache, inside:
            return preview(Evaluator(single, Path(cache)), spec.budget)

    def rebuild(self, plan: str, model: str, out: str, tensors: str | None = None) -> dict[str, str]:
        """Write the model that an applied plan makes of the original to `out`. tensors: the file with the weights that it changed."""
        with _telling_memory(), computing():
            data = replay(Model.load(model), load_plan(Path(plan)), None if tensors is None else load_tensors(Path(tensors)))
        target = Path(out)
        part = target.with_name(f"{target.name}.partial")
        try:
            with writing(target.name):
                part.write_bytes(data)
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return {"sha256": hashlib.sha256(data).hexdigest()}


@contextmanager
def _telling_memory() -> Iterator[None]:
    """Libraries report a lack of memory in words of their own."""
    try:
        yield
    except InputError as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise MemoryError(str(error)) from error
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise


def main() -> None:
    """Entry point. The first line sets `scratch`, `memory_gb` and `file_gb`."""

    def start(settings: dict[str, Any], _: Callable[[int, int], None]) -> Gate:
        limit_files(settings["file_gb"], OPEN_FILES)
        limit_memory(settings["memory_gb"])
        return Gate(Path(settings["scratch"]), int(settings["file_gb"] * 2**30))

    talk(start)


if __name__ == "__main__":
    main()
