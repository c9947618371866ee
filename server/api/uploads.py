"""Takes in files: streamed, hashed, looked at in a limited child process, and only then kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from server.api.answers import slowly
from server.api.bodies import announced, check_type, chunks
from server.api.problems import WrongType
from server.api.services import Services
from server.artifacts import Receiving, TooLarge
from server.auth import Caller
from tuner.errors import InputError
from tuner.wire import DatasetView, ModelView

BATCH_BYTES = 1 << 20
MAX_NAME = 200
GB = 10**9

MEDIA_TYPES = (
    *("application/octet-stream", "application/onnx", "application/x-onnx", "application/x-protobuf", "application/zip"),
    *("application/x-zip-compressed", "application/x-npz", "application/vnd.apache.parquet", "application/x-parquet"),
)
EXPORT = "Export the network with torch.onnx.export and send the .onnx file; nothing that runs code when it is loaded is taken."
ARRAYS = "Save plain arrays with np.savez and send the .npz file; nothing that runs code when it is loaded is taken."
UNTAKEN = (".pt", ".pth", ".pt2", ".pkl", ".pickle", ".ckpt", ".h5", ".hdf5", ".keras", ".joblib")


@dataclass(frozen=True)
class Kind:
    """One kind of upload. keep: inspect and enter into the store what was received, as (view, whether it is new)."""

    path: str
    instead: str
    keep: Callable[[Services, Caller, str, Receiving], tuple[ModelView | DatasetView, bool]]
    known: Callable[[Services, str], ModelView | DatasetView | None]


async def take(request: Request, services: Services, caller: Caller, kind: Kind, name: str) -> tuple[ModelView | DatasetView, bool]:
    """Receive the body as `name`; its view, and whether these bytes are new. Nothing stays where they are refused."""
    label = checked_name(name, kind)
    curl = f"curl --data-binary @{kind.path} -H 'Content-Type: {MEDIA_TYPES[0]}' …/api/v1/{kind.path}?name=…"
    check_type(request, MEDIA_TYPES, f"Send the file itself as the body: {curl}", needed=False)
    limit, reason = await run_in_threadpool(_limit, services, caller)
    if (announced(request) or 0) > limit:
        raise TooLarge(reason)
    with await run_in_threadpool(services.artifacts.receive, limit) as receiving:
        try:
            size = await _pour(request, receiving, services.settings.upload_seconds)
        except TooLarge:
            raise TooLarge(reason) from None
        if not size:
            raise InputError(f"the body is empty; send the file: {curl}", field="body")
        known = await run_in_threadpool(_known, services, kind, receiving)
        return (known, False) if known else await slowly(kind.keep, services, caller, label, receiving)


async def _pour(request: Request, receiving: Receiving, seconds: float) -> int:
    """Write the body to `receiving`, in pieces large enough that changing threads costs nothing; its size in bytes."""
    size, batch = 0, bytearray()
    async for chunk in chunks(request, seconds):
        size += len(chunk)
        batch += chunk
        if len(batch) >= BATCH_BYTES:
            await run_in_threadpool(receiving.write, bytes(batch))
            batch.clear()
    await run_in_threadpool(receiving.write, bytes(batch))
    return size


def _limit(services: Services, caller: Caller) -> tuple[int, str]:
    """How many bytes the caller may send now, and what to say to who sends more."""
    settings = services.settings
    most = int(settings.max_upload_gb * GB)
    reason = f"a file may have {settings.max_upload_gb:g} GB at most (ACCUTUNE_MAX_UPLOAD_GB); send fewer rows or a smaller model"
    if not settings.max_stored_gb:
        return most, reason
    stored = services.files.stored_bytes(caller.id)
    left = max(0, int(settings.max_stored_gb * GB) - stored)
    if left >= most:
        return most, reason
    return left, (
        f"one key may keep {settings.max_stored_gb:g} GB of files (ACCUTUNE_MAX_STORED_GB), and {stored / GB:.3g} GB of it is used. "
        "Delete models or data that you no longer need: DELETE /api/v1/models/ID or /api/v1/datasets/ID"
    )


def checked_name(name: str, kind: Kind) -> str:
    """The name as it is shown. It is never a path, so it must not look like one."""
    label = name.strip()
    if not label or len(label) > MAX_NAME or not label.isprintable() or "/" in label or "\\" in label or set(label) == {"."}:
        shown = ascii(label[:80])
        raise InputError(f"name must be a file name of at most {MAX_NAME} printable characters, without folders, got {shown}", field="name")
    if label.lower().endswith(UNTAKEN):
        raise WrongType(f"'{label}' is not taken here. {kind.instead}")
    return label


def _known(services: Services, kind: Kind, receiving: Receiving) -> ModelView | DatasetView | None:
    """The file that is here already with the same bytes; it is neither inspected nor stored again."""
    view = kind.known(services, receiving.sha256)
    if view is not None:
        receiving.commit()  # Heals a store that lost the bytes.
    return view


def _keep_model(services: Services, caller: Caller, name: str, receiving: Receiving) -> tuple[ModelView, bool]:
    facts = services.gate.inspect_model(receiving.path, name)
    stored = receiving.commit()
    return services.files.add_model(name=name, sha256=stored.sha256, size_bytes=stored.size_bytes, owner=caller.id, facts=facts)


def _keep_dataset(services: Services, caller: Caller, name: str, receiving: Receiving) -> tuple[DatasetView, bool]:
    facts = services.gate.inspect_data(receiving.path, name)
    stored = receiving.commit()
    return services.files.add_dataset(name=name, sha256=stored.sha256, size_bytes=stored.size_bytes, owner=caller.id, facts=facts)


MODELS = Kind("models", EXPORT, _keep_model, lambda services, sha256: services.files.by_sha256("models", sha256))
DATASETS = Kind("datasets", ARRAYS, _keep_dataset, lambda services, sha256: services.files.by_sha256("datasets", sha256))
