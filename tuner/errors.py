"""Everything that Accutune raises on purpose.

    AccutuneError
    ├── InputError(ValueError)      what the user gave cannot be used: exit status 2, HTTP 422
    │   ├── JobError                the job file or request
    │   │   └── UnknownName         a name that no registry knows; carries the nearest known one
    │   ├── ModelError              the model file
    │   ├── DataError               a data file, its rows, shapes, dtypes or labels
    │   ├── PlanError               a plan that does not fit the model it is applied to
    │   ├── WrongKind               a file of another kind than is wanted there: HTTP 415
    │   └── StorageError            a folder that cannot be written, a disk that is full
    ├── TrialError                  one trial broke; recorded in its row, the search goes on
    │   └── TrainingError           training gave no usable weights
    └── JobCancelled                the user asked to stop; the state is kept

A message names the thing, the value, the rule and the way out, in that order.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AccutuneError(Exception):
    """Base of all errors raised on purpose."""


class InputError(AccutuneError, ValueError):
    """What the user gave cannot be used. `field` says where in the job it stands, where that is known."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class JobError(InputError):
    """The job itself is wrong."""


class UnknownName(JobError):
    """A name that is not known; the message suggests the nearest one that is."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, field: str | None = None) -> None:
        super().__init__(unknown_name(kind, name, known), field=field)


class ModelError(InputError):
    """The model file cannot be used."""


class DataError(InputError):
    """A data file cannot be used."""


class PlanError(InputError):
    """A plan does not fit the model."""


class WrongKind(InputError):
    """A file is of another kind than is wanted; the message says what it is and what to give instead."""


class StorageError(InputError):
    """A folder or disk cannot take what has to be written."""


class TrialError(AccutuneError):
    """A trial broke at `step`; the search records it and goes on."""

    def __init__(self, message: str, *, step: str, kind: str = "TrialError") -> None:
        super().__init__(message)
        self.step = step
        self.kind = kind


class TrainingError(TrialError):
    """Training gave no usable weights; the message says what to change."""

    def __init__(self, message: str, *, step: str = "recover") -> None:
        super().__init__(message, step=step, kind="TrainingError")


class JobCancelled(AccutuneError):
    """The user asked to stop; everything finished so far is kept."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown name: what it is, the nearest known one, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}."


def disk_error(error: OSError, doing: str) -> StorageError:
    """An operating system's error while writing, as an error that says what to do."""
    if error.errno == errno.EFBIG:
        way_out = "The file would be larger than a process may write here; use fewer rows or a smaller model"
    elif is_full(error):
        way_out = "Free some space, then go on with --resume"
    else:
        way_out = "Choose another folder, or change its permissions"
    return StorageError(f"{doing} failed: {error.strerror or error} ({error.filename or 'no file named'}). {way_out}.")


def is_full(error: OSError) -> bool:
    """Did the system refuse because there is no room left?"""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns the system's refusal to write `what` into a StorageError with the way out."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, f"writing {what}") from error
