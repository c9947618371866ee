"""What tests of the command line share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli import main
from tests.command_line import Call, Done, WriteJob
from tests.tiny_jobs import tiny_job


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`tuner` with these arguments, in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tuner", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def job_file() -> WriteJob:
    """Writes `folder`/job.yaml beside its model and data. What is not changed is that of `tiny_job`; None takes a key out."""

    def write(folder: Path, **changes: Any) -> Path:
        raw = tiny_job(folder).model_dump(mode="json", exclude_none=True) | changes
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
        return path

    return write
