"""How tests of the command line call it, and what they get back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

WriteJob = Callable[..., Path]


class Done(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[..., Done]


def refused(done: Done) -> str:
    """The one line that says why."""
    assert done.status == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
