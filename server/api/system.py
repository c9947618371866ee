"""What this server runs on, how busy it is, and what it allows. Nothing secret: no paths, no addresses."""

from __future__ import annotations

import os
import platform
import shutil
from functools import cache
from importlib.metadata import version
from typing import Literal

import psutil
from fastapi import APIRouter, Response

import tuner
from search_spaces.capability import RuntimeTarget, load_target
from search_spaces.schemes import Frozen
from server.api.answers import json_of, ready
from server.api.guards import Viewer
from server.api.services import Services, ServicesDep
from tuner.measure.machine import processor_features, processor_name
from tuner.store import JobState, UtcDatetime

RUNTIME = "onnxruntime-cpu"
LIBRARIES = ("onnxruntime", "onnx", "numpy", "optuna")

router = APIRouter(tags=["health"])


class MachineView(Frozen):
    """The machine that this server and its jobs run on."""

    system: str
    processor: str
    kind: str
    """Of the processors that the runtime tells apart."""
    features: tuple[str, ...]
    """Those of the processor's that the runtime asks for."""
    accelerated: tuple[str, ...]
    """Types of activation and weight that such processors compute fastest."""
    warning: str | None
    cores: int
    load: float | None
    """Processes that ran or wanted to on average over the last minute; None where the system does not tell."""
    memory_bytes: int
    memory_free_bytes: int


class QueueView(Frozen):
    """All jobs, also those of other servers on the same database."""

    jobs: dict[JobState, int]
    oldest_queued: UtcDatetime | None
    """Since when the job waits that waits longest."""


class LimitsView(Frozen):
    """The settings that callers notice; 0 in the last three: no limit."""

    jobs: int
    """Jobs that this server runs at once."""
    parallel: int
    """Trials of one job that run at once, at most."""
    trial_memory_gb: float
    max_upload_gb: float
    max_unpacked_gb: float
    upload_seconds: float
    inspect_seconds: float
    requests_per_minute: int
    max_active_jobs: int
    max_stored_gb: float


class KeptView(Frozen):
    """How many files there are, and their bytes together."""

    files: int
    size_bytes: int


class StorageView(Frozen):
    """Where things are kept, by kind, and how much there is."""

    database: Literal["sqlite", "postgresql"]
    artifact_store: str
    """`folder`, or the protocol of a store elsewhere, like `s3`."""
    models: KeptView
    datasets: KeptView
    artifacts: KeptView
    """What jobs left. Bytes that several of them left count for each, and are kept once."""
    disk_bytes: int
    """Of the disk that holds the data folder."""
    disk_free_bytes: int


class SystemView(Frozen):
    """A server as it is now."""

    version: str
    runtime: str
    """The runtime whose capabilities `/capabilities` lists."""
    versions: dict[str, str]
    """Of Python and of the libraries that figures depend on."""
    machine: MachineView
    queue: QueueView
    limits: LimitsView
    storage: StorageView


@router.get("/system", responses=json_of(SystemView, "The server."))
def show_system(services: ServicesDep, _: Viewer) -> Response:
    """What this server runs on, how many jobs wait, what it allows, and how full it is."""
    view = SystemView(
        version=tuner.__version__,
        runtime=RUNTIME,
        versions=_versions(),
        machine=machine_of(load_target(RUNTIME)),
        queue=QueueView(jobs=services.jobs.counts(), oldest_queued=services.jobs.oldest_queued()),
        limits=LimitsView.model_validate({name: getattr(services.settings, name) for name in LimitsView.model_fields}),
        storage=storage_of(services),
    )
    return ready(view, headers={"Cache-Control": "no-store"})


def machine_of(target: RuntimeTarget) -> MachineView:
    name, features = _processor()
    processor, memory = target.processor(features), psutil.virtual_memory()
    known = {need for each in target.processors for need in each.needs}
    return MachineView(
        system=platform.platform(terse=True),
        processor=name,
        kind=processor.name,
        features=tuple(sorted(known & features)),
        accelerated=processor.accelerated,
        warning=processor.warning,
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
    )


def storage_of(services: Services) -> StorageView:
    disk = shutil.disk_usage(services.settings.data_dir)
    kept = {name: KeptView(files=files, size_bytes=size) for name, (files, size) in services.files.kept().items()}
    return StorageView(
        database=services.database.dialect,
        artifact_store=kind_of_store(services.settings.artifacts_url),
        **kept,
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
    )


def kind_of_store(url: str | None) -> str:
    """What callers may know of where artefacts lie."""
    protocol, separator, _ = (url or "").partition("://")
    return protocol if separator and protocol not in ("file", "local") else "folder"


@cache
def _processor() -> tuple[str, frozenset[str]]:
    """It stays what it is while the server runs."""
    return processor_name(), processor_features()


@cache
def _versions() -> dict[str, str]:
    # Of what is installed: the runtime itself is loaded by the processes of jobs alone.
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
