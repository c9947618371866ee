"""Keeps bytes under their SHA-256: in a local folder, or in any store that fsspec reaches (s3://, gs://, memory:// …).

A blob lies at <root>/<first two digits>/<sha256> and is there whole or not at all; what is on its way in lies in <root>/parts.
Nothing is ever changed in place, so readers need no lock, and the same bytes are kept once. `server.places` knows the where.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO

from search_spaces.schemes import Frozen
from server.places import NAME, PART, Folder, pieces, place_of, rename
from tuner.errors import AccutuneError, StorageError, disk_error, writing

BATCH = 500
"""Blobs that are asked about at once when garbage is collected."""


class TooLarge(AccutuneError):
    """More bytes than were allowed: HTTP 413."""


class Stored(Frozen):
    """What a blob is known by."""

    sha256: str
    size_bytes: int


class Garbage(Frozen):
    """What was removed, or would be in a dry run. size_bytes: of blobs and parts together."""

    blobs: int
    size_bytes: int
    removed: tuple[str, ...]
    parts: int = 0
    """What uploads left that were never finished."""


class Receiving:
    """Bytes on their way in: a temporary file that becomes a blob by `commit`, and is dropped by anything else.

    As a context manager it drops what was not committed. One thread at a time."""

    def __init__(self, folder: Path, publish: Callable[[Path, str], None], limit_bytes: int | None = None) -> None:
        self._publish, self._limit = publish, limit_bytes
        self._digest, self.size_bytes = hashlib.sha256(), 0
        with writing("an artefact"):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=PART, dir=folder)
            self._path, self._file = Path(name), os.fdopen(handle, "wb")
            fcntl.flock(handle, fcntl.LOCK_EX)  # Until it is closed the garbage collection leaves it alone.

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    @property
    def path(self) -> Path:
        """A local file with what was written so far; gone after `commit` and `abort`."""
        with writing("an artefact"):
            self._open().flush()
        return self._path

    def write(self, data: bytes) -> None:
        """TooLarge beyond the limit, StorageError where the disk refuses; both drop what was received."""
        file = self._open()
        if self._limit is not None and self.size_bytes + len(data) > self._limit:
            self.abort()
            raise TooLarge(f"more than {self._limit:,} bytes were sent, the most that is taken here; send less")
        try:
            file.write(data)
        except OSError as error:
            self.abort()
            raise disk_error(error, "writing an artefact") from error
        self._digest.update(data)
        self.size_bytes += len(data)

    def commit(self) -> Stored:
        """Make it a blob. It lasts when this returns."""
        file, stored = self._open(), Stored(sha256=self.sha256, size_bytes=self.size_bytes)
        try:
            with writing("an artefact"):
                file.flush()
                os.fsync(file.fileno())
                self._publish(self._path, stored.sha256)
        finally:
            self.abort()
        return stored

    def abort(self) -> None:
        """Drop what is not committed. Doing it twice, or after `commit`, does nothing."""
        with suppress(OSError):  # Closing flushes, which a full disk refuses again.
            self._file.close()
        with suppress(OSError):
            self._path.unlink()

    def _open(self) -> IO[bytes]:
        if self._file.closed:
            raise ValueError("this upload was committed or aborted already; begin another with receive()")
        return self._file

    def __enter__(self) -> Receiving:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()


class Artifacts:
    """The artefact store at `url`: a folder, or a URL that fsspec knows. Any number of threads and processes may use it.

    scratch: a local folder for uploads and downloads of a store that is elsewhere. Downloads stay there: nothing evicts them but
    the removal of the blob by garbage collection on this machine, or an operator, who may empty scratch/blobs while no job runs."""

    def __init__(self, url: str, scratch: Path) -> None:
        self._scratch, self._place = scratch, place_of(url, scratch)

    def receive(self, limit_bytes: int | None = None) -> Receiving:
        """Where to write a new blob's bytes, at most `limit_bytes` of them."""
        return Receiving(self._place.parts, self._place.publish, limit_bytes)

    def put(self, path: Path) -> Stored:
        """Store a copy of a local file."""
        with self.receive() as receiving:
            for chunk in pieces(path, path.name):
                receiving.write(chunk)
            return receiving.commit()

    def put_bytes(self, data: bytes) -> Stored:
        with self.receive() as receiving:
            receiving.write(data)
            return receiving.commit()

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in chunks of at most 1 MiB. StorageError at once where there is no such blob.

        A whole read is checked against the hash, and a damaged blob's last chunk is kept back: StorageError in its place."""
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"a range needs 0 <= start <= end, got start={start} and end={end}")
        size = self.size(sha256)
        stop = size if end is None else min(end, size)
        chunks = self._place.read(sha256, start, stop)
        return self._checked(chunks, sha256) if start == 0 and stop == size else self._counted(chunks, sha256, max(0, stop - start))

    def size(self, sha256: str) -> int:
        """In bytes. StorageError where there is no such blob."""
        size = self._place.size(_checked_name(sha256))
        if size is None:
            raise self._missing(sha256)
        return size

    def exists(self, sha256: str) -> bool:
        return self._place.size(_checked_name(sha256)) is not None

    def local(self, sha256: str) -> Path:
        """A local file with these bytes, to be read only: the blob itself, or a checked download that stays in scratch."""
        if isinstance(self._place, Folder):
            self.size(sha256)
            return self._place.path(sha256)
        kept = self._download(_checked_name(sha256))
        if kept.is_file():
            return kept
        # Whoever downloads the same blob at the same time renames the same bytes to the same name.
        with Receiving(self._scratch / "parts", lambda part, _: rename(part, kept)) as receiving:
            for chunk in self.open(sha256):
                receiving.write(chunk)
            receiving.commit()
        return kept

    def listing(self) -> Iterator[tuple[str, int, datetime]]:
        """Every blob: its name, its bytes, and when it was put last."""
        return self._place.listing()

    def remove(self, sha256: str, *, older_than: datetime | None = None) -> bool:
        """Whether there was such a blob and it is gone now. One that was put again at `older_than` or later stays."""
        removed = self._place.remove(_checked_name(sha256), older_than)
        if removed and not isinstance(self._place, Folder):
            with writing(f"the folder {self._scratch}"):
                self._download(sha256).unlink(missing_ok=True)
        return removed

    def drop_parts(self, older_than: datetime, *, dry_run: bool) -> tuple[int, int]:
        """Remove what uploads and downloads left that were never finished; how many files and bytes."""
        return self._place.drop_parts(older_than, dry_run=dry_run)

    def _download(self, sha256: str) -> Path:
        return self._scratch / "blobs" / sha256

    def _checked(self, chunks: Iterator[bytes], sha256: str) -> Iterator[bytes]:
        digest, held = hashlib.sha256(), b""
        for chunk in chunks:
            if held:
                yield held
            digest.update(chunk)
            held = chunk
        if digest.hexdigest() != sha256:
            raise self._damaged(sha256)
        if held:
            yield held

    def _counted(self, chunks: Iterator[bytes], sha256: str, size: int) -> Iterator[bytes]:
        for chunk in chunks:
            size -= len(chunk)
            yield chunk
        if size:
            raise self._damaged(sha256)

    def _missing(self, sha256: str) -> StorageError:
        return StorageError(f"artefact {sha256} is not in {self._place.shown}. Put it back from a backup, or send the file again.")

    def _damaged(self, sha256: str) -> StorageError:
        return StorageError(
            f"artefact {sha256} in {self._place.shown} is damaged: its bytes have another SHA-256. "
            "Check that disk or bucket, then put it back from a backup, or send the file again."
        )


def collect_garbage(
    artifacts: Artifacts, referenced: Callable[[Sequence[str]], set[str]], *, older_than: timedelta, now: datetime, dry_run: bool
) -> Garbage:
    """Remove the blobs that nobody refers to and that were not put within `older_than`, and parts as old. Nothing in a dry run.

    referenced: which of these blobs somebody refers to; asked about each batch right before it is removed. A row is written soon
    after its blob was put and every `put` makes a blob young again, so that who refers to an old blob later has put it just now:
    the age is looked at once more at the moment of removal."""
    cutoff = now - older_than
    removed: list[str] = []
    freed = 0
    old = ((sha256, size) for sha256, size, modified in artifacts.listing() if modified < cutoff)
    while batch := dict(islice(old, BATCH)):
        for sha256 in sorted(batch.keys() - referenced(tuple(batch))):
            if dry_run or artifacts.remove(sha256, older_than=cutoff):
                removed.append(sha256)
                freed += batch[sha256]
    parts, part_bytes = artifacts.drop_parts(cutoff, dry_run=dry_run)
    return Garbage(blobs=len(removed), size_bytes=freed + part_bytes, removed=tuple(removed), parts=parts)


def _checked_name(sha256: str) -> str:
    """Nothing else ever becomes a part of a path."""
    if not NAME.fullmatch(sha256):
        raise ValueError(f"an artefact's name is its SHA-256 in 64 lowercase hexadecimal digits, got {sha256[:80]!a}")
    return sha256
