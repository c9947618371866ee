"""A file is there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tuner.errors import StorageError
from tuner.files import write_text


def test_a_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "result.json"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("tuner.files.os.fsync", full)
    with pytest.raises(StorageError, match=r"writing result\.json failed: No space left on device .* Free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"writing job\.json failed: .* Choose another folder"):
        write_text(tmp_path / "file" / "job.json", "{}")
