from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tuner.compress.checkpoints import load_checkpoint, save_checkpoint
from tuner.errors import StorageError


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"step": 3, "loss": 0.1, "view": {"w": torch.arange(6.0).reshape(2, 3)}, "trace": [(0, 1.5)], "best": None}
    save_checkpoint(tmp_path / "deep" / "c.pt", state)
    found = load_checkpoint(tmp_path / "deep" / "c.pt")
    assert found is not None and torch.equal(found.pop("view")["w"], state.pop("view")["w"])  # type: ignore[index]
    assert found == state and [file.name for file in (tmp_path / "deep").iterdir()] == ["c.pt"]


@pytest.mark.parametrize("left", [0, 10, 500])
def test_a_file_that_is_missing_or_cut_off_is_none(tmp_path: Path, left: int) -> None:
    assert load_checkpoint(tmp_path / "none.pt") is None
    save_checkpoint(tmp_path / "c.pt", {"w": torch.zeros(100)})
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:left])
    assert load_checkpoint(tmp_path / "c.pt") is None


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Evil()}, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt") is None and not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"writing c.pt failed: .* Choose another folder"):
        save_checkpoint(tmp_path / "file" / "c.pt", {})
