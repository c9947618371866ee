"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_jobs import tiny_job

WriteJob = Callable[..., Path]


@pytest.fixture(scope="session")
def job_file() -> WriteJob:
    """Writes `folder`/job.yaml beside its model and data. What is not changed is that of `tiny_job`; None takes a key out."""

    def write(folder: Path, **changes: Any) -> Path:
        raw = tiny_job(folder).model_dump(mode="json", exclude_none=True) | changes
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
        return path

    return write
