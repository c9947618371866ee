"""From a body to a queued job, or to what it would do: everything that can be known to be wrong is refused here."""

from __future__ import annotations

import re
import secrets
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from server.api.paths import ID
from server.api.services import Services
from server.auth import Caller, TooMany
from server.inputs import file_ids, resolve
from tuner.errors import JobError, UnknownName
from tuner.job import JobSpec, job_id, parse_job
from tuner.plan import digest_of
from tuner.preflight import check_names
from tuner.preview import JobPreview
from tuner.search.base import STRATEGIES
from tuner.search.catalogue import load_strategies

BUSY_SECONDS = 30
"""When to try again where a key has too many jobs waiting."""


def submit(services: Services, caller: Caller, body: bytes, key: str | None) -> tuple[str, bool]:
    """Check the job in `body` and queue it; its id, and whether it is new.

    key: an idempotency key; the job of an earlier request with the same key and body is answered, whatever became of its files.
    JobError and the other InputErrors say what is wrong; Conflict: the key came with another body; TooMany."""
    raw = parse_body(body)
    digest = digest_of(raw)
    earlier = services.jobs.submitted(caller.id, key, digest) if key else None
    if earlier is not None:
        return earlier, False
    spec = known(services, raw)
    _check_queue(services, caller)
    look(services, spec)
    name, files = new_id(services.database.now()), file_ids(spec)
    return services.jobs.submit(name, spec, owner=caller.id, files=files, idempotency_key=key, request_sha256=digest)


def foretell(services: Services, body: bytes) -> JobPreview:
    """What the job in `body` would do, after every check of `submit`, and with its errors. Nothing is queued."""
    return look(services, known(services, parse_body(body)))


def known(services: Services, raw: dict[str, Any]) -> JobSpec:
    """The typed job, once everything is checked that can be without opening a file. JobError names the field."""
    spec = parse_job(raw)
    check(services, spec)
    return spec


def look(services: Services, spec: JobSpec) -> JobPreview:
    """What the job would do, once its files are known to fit it. Raises the InputError that says what is wrong."""
    with tempfile.TemporaryDirectory(prefix="accutune-submit-") as folder:
        inputs = Path(folder)
        return services.gate.check_job(resolve(spec, services.files, services.artifacts, inputs), inputs)


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in the body. JobError where there is none."""
    try:
        raw = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise JobError(f"the body must be a job as JSON, and it does not parse: {error}; see /api/v1/openapi.json for an example") from None
    if not isinstance(raw, dict):
        raise JobError(f"the body must be a JSON object with at least model, data and constraints, got a {_json_type(raw)}")
    return raw


def check(services: Services, spec: JobSpec) -> None:
    """Everything that is known without opening a file. JobError names the field."""
    named = {"model": spec.model} | {f"data.{role}.file": ref.file for role, ref in spec.data.roles().items()}
    for field, given in named.items():
        if not re.fullmatch(ID, given):
            kind = "models" if field == "model" else "datasets"
            raise JobError(
                f"{field} must be the id of an upload, got '{given[:80]}'; no path and no URL is ever opened. "
                f"Send the file with POST /api/v1/{kind}?name=… and write the id that it answers.",
                field=field,
            )
    check_names(spec)
    load_strategies()
    if spec.strategy not in STRATEGIES:
        raise UnknownName("strategy", spec.strategy, [*STRATEGIES], field="strategy")
    most = services.settings.parallel
    if spec.budget.parallel > most:
        raise JobError(
            f"budget.parallel may be {most} at most on this server (ACCUTUNE_PARALLEL), got {spec.budget.parallel}", field="budget.parallel"
        )


def new_id(moment: datetime) -> str:
    """An id like 20261121-101530-0a3f93fa9, which sorts by time to the microsecond."""
    return job_id(lambda: moment, lambda size: f"{moment.microsecond:05x}{secrets.token_hex(size)}")


def _check_queue(services: Services, caller: Caller) -> None:
    most = services.settings.max_active_jobs
    if most and services.jobs.queued_of(caller.id) >= most:
        raise TooMany(
            f"one key may have {most} jobs waiting or running (ACCUTUNE_MAX_ACTIVE_JOBS), and has them. "
            "Wait until one is finished, or cancel one.",
            BUSY_SECONDS,
        )


def _json_type(value: object) -> str:
    names = {list: "list", str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), "value")
