"""Files on their way to and from a server: read and written in pieces, hashed as they pass."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tuner.errors import DataError
from tuner.transport import ServiceError

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""

CHUNK = 1 << 20


class Arriving:
    """A file on its way in, over as many connections as it takes."""

    def __init__(self, file: BinaryIO) -> None:
        self.wanted: str | None = None
        """The SHA-256 that it shall have, as far as the server says."""
        self._file, self._hash, self._size, self._etag = file, hashlib.sha256(), 0, ""

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def headers(self) -> dict[str, str]:
        """Ask for what is missing, provided that the bytes are still the same."""
        going_on = {"Range": f"bytes={self._size}-", "If-Range": self._etag} if self._size and self._etag else {}
        return {"Accept-Encoding": "identity"} | going_on

    def begin(self, status: int, given: Mapping[str, str]) -> None:
        """Make ready for the body of an answer with this status and these headers: the rest of the file, or all of it anew."""
        if status == 206:
            if not given.get("content-range", "").startswith(f"bytes {self._size}-"):
                raise ServiceError("the server answered another part of the file than was asked for; try again")
            return
        self._file.seek(0)
        self._file.truncate()
        self._hash, self._size = hashlib.sha256(), 0
        etag = given.get("etag", "")
        self._etag = etag if etag.startswith('"') else ""
        digest = given.get("x-content-sha256", self._etag.strip('"'))
        self.wanted = digest if re.fullmatch("[0-9a-f]{64}", digest) else None

    def add(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self._size += len(chunk)


def file_size(path: Path) -> int:
    """Bytes of a file to be sent. DataError where it is none, with the way out."""
    if path.is_dir():
        raise DataError(
            f"{path} is a folder, and a server takes single files; put its arrays into one: "
            f"numpy.savez('data.npz', **{{p.stem: numpy.load(p) for p in pathlib.Path('{path}').glob('*.npy')}})"
        )
    with _reading(path):
        return path.stat().st_size


def file_sha256(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(path: Path, size: int, tell: Progress) -> Iterator[bytes]:
    """The file in pieces, `size` bytes in all: what was announced."""
    done = 0
    with _reading(path), path.open("rb") as file:
        while done < size:
            chunk = file.read(min(CHUNK, size - done))
            if not chunk:
                raise DataError(f"{path} changed while it was being sent; send it again")
            yield chunk
            done += len(chunk)
            tell(done, size)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the path and its permissions") from error
