"""From the ids in a submitted job to files that can be opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from server.artifacts import Artifacts
from server.store.database import NotFound
from server.store.files import FileStore
from tuner.errors import JobError, writing
from tuner.job import DataRef, JobSpec
from tuner.wire import Upload

View = TypeVar("View", bound=Upload)


def file_ids(spec: JobSpec) -> tuple[str, ...]:
    """Every upload that the job names, once."""
    return tuple(dict.fromkeys((spec.model, *(ref.file for ref in spec.data.roles().values()))))


def resolve(spec: JobSpec, files: FileStore, artifacts: Artifacts, folder: Path) -> JobSpec:
    """The job as it reads from within `folder`, where each id becomes a link to the uploaded bytes.

    The names stay relative, so that no message and no report tells where the server keeps its files. JobError names the field
    whose id is not known here."""
    model = _known(spec.model, "model", "models", files.model)
    model_name = _link(f"{model.id}.onnx", artifacts.local(model.sha256), folder)
    names: dict[str, str] = {}
    for role, ref in spec.data.roles().items():
        if ref.file not in names:
            data = _known(ref.file, f"data.{role}.file", "datasets", files.dataset)
            names[ref.file] = _link(f"{data.id}.{data.format}", artifacts.local(data.sha256), folder)

    def renamed(ref: DataRef) -> DataRef:
        return ref.model_copy(update={"file": names[ref.file]})

    roles = {role: renamed(ref) for role, ref in spec.data.roles().items()}
    return spec.model_copy(update={"model": model_name, "data": spec.data.model_copy(update=roles)})


def _known(given: str, field: str, kind: str, find: Callable[[str], View]) -> View:
    try:
        return find(given)
    except NotFound:
        raise JobError(
            f"{field} must be the id of an upload under /api/v1/{kind}, got '{given[:80]}'. "
            f"Send the file with POST /api/v1/{kind}?name=… and write the id that it answers.",
            field=field,
        ) from None


def _link(name: str, blob: Path, folder: Path) -> str:
    with writing(f"the folder {folder.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(blob.resolve())
    return name
