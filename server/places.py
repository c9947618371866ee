"""Where blobs lie: a local folder, or a store that fsspec reaches. Both keep the layout and the promises of `server.artifacts`."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec

from tuner.errors import AccutuneError, JobError, StorageError, disk_error, is_full, writing

CHUNK = 1 << 20
"""Bytes that are handed on at once."""

FETCH = 8 * CHUNK
"""Bytes of one request to a remote store: more than a chunk, since each request costs a round trip."""

NAME = re.compile(r"[0-9a-f]{64}")
PART = "part-"

# An upload to these is one request, or parts that one request completes: the object is there whole or not at all, so that a
# temporary name and a copy would only cost. Everywhere else a file can be seen while it grows.
WHOLE_OR_NOTHING = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}

_MODIFIED = ("LastModified", "mtime", "updated", "last_modified", "modified", "created")
"""Where the file systems of fsspec write when a file was written."""

_SECRETS = re.compile(r"(?<=//)[^/\s]*@|\?\S*")


class Place(Protocol):
    """Keeps finished blobs. Every name it is given is a SHA-256 in hexadecimal."""

    parts: Path
    """Local folder of what is on its way in."""
    shown: str
    """What messages call it: a URL without its password, and no local path, since callers from elsewhere read them too."""

    def publish(self, part: Path, sha256: str) -> None:
        """Give a finished part its name. A blob that is there already is replaced by the same bytes: that makes it young again for
        the garbage collection, and heals it where it was damaged. OSError where this machine's disk refuses."""

    def read(self, sha256: str, start: int, stop: int) -> Iterator[bytes]: ...

    def size(self, sha256: str) -> int | None:
        """None where there is no such blob."""

    def listing(self) -> Iterator[tuple[str, int, datetime]]: ...

    def remove(self, sha256: str, older_than: datetime | None) -> bool: ...

    def drop_parts(self, older_than: datetime, *, dry_run: bool) -> tuple[int, int]:
        """Remove what unfinished uploads left; how many files and bytes."""


def place_of(url: str, scratch: Path) -> Place:
    """The place that a folder's path or a URL names. scratch: for the parts of what is not local."""
    protocol = fsspec.utils.get_protocol(url)
    if protocol not in ("file", "local"):
        return Remote(url, scratch / "parts")
    return Folder(Path(url.removeprefix(f"{protocol}://")).expanduser().absolute())


class Folder:
    """A local folder."""

    def __init__(self, root: Path) -> None:
        self._root, self.parts, self.shown = root, root / "parts", "the artefact folder"

    def path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def publish(self, part: Path, sha256: str) -> None:
        with self._lock(fcntl.LOCK_SH):
            os.utime(part)  # Its last byte may have come long ago.
            rename(part, self.path(sha256))
        _flush_folder(self._root)

    def read(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        return pieces(self.path(sha256), f"artefact {sha256}", start, stop)

    def size(self, sha256: str) -> int | None:
        found = self._stat(sha256)
        return None if found is None else found.st_size

    def listing(self) -> Iterator[tuple[str, int, datetime]]:
        for folder in sorted(_entries(self._root)):
            for name in sorted(_entries(self._root / folder)) if len(folder) == 2 else ():
                found = self._stat(name) if NAME.fullmatch(name) and name[:2] == folder else None
                if found is not None:
                    yield name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC)

    def remove(self, sha256: str, older_than: datetime | None) -> bool:
        if self._stat(sha256) is None:
            return False
        # Under the lock nobody can put the blob again between the look at its age and its end.
        with writing(f"the folder {self._root}"), self._lock(fcntl.LOCK_EX):
            found = self._stat(sha256)
            if found is None or (older_than is not None and found.st_mtime >= older_than.timestamp()):
                return False
            self.path(sha256).unlink()
        return True

    def drop_parts(self, older_than: datetime, *, dry_run: bool) -> tuple[int, int]:
        return drop_parts_in(self.parts, older_than, dry_run=dry_run)

    def _stat(self, sha256: str) -> os.stat_result | None:
        try:
            return self.path(sha256).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(error, f"reading artefact {sha256}") from error

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        with (self._root / "lock").open("a") as file:
            fcntl.flock(file, kind)
            yield


class Remote:
    """A store that fsspec reaches. It has no lock, so a removal could undo a `put` in the milliseconds after it looked at the
    blob's age: but only that of bytes which were garbage for the whole grace period until just then."""

    def __init__(self, url: str, parts: Path) -> None:
        self._url, self.parts, self.shown = url, parts, _SECRETS.sub("", url)
        self._password = re.search(r"//[^:/\s]*:([^/\s]+)@", url)
        self._whole = fsspec.utils.get_protocol(url) in WHOLE_OR_NOTHING
        with self._asking("opening the artefact store"):
            self._root = str(self._connect()[1]).rstrip("/")

    def publish(self, part: Path, sha256: str) -> None:
        with self._asking(f"writing artefact {sha256}") as files:
            if self._whole:
                files.put_file(str(part), self._path(sha256))
            else:
                self._put_and_rename(files, part, self._path(sha256))

    def read(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            with self._asking(f"reading artefact {sha256}") as files:
                data = files.cat_file(self._path(sha256), start=start, end=min(stop, start + FETCH))
            if not data:
                return
            start += len(data)
            yield from (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))

    def size(self, sha256: str) -> int | None:
        found = self._info(sha256)
        return None if found is None else int(found["size"])

    def listing(self) -> Iterator[tuple[str, int, datetime]]:
        for folder in (f"{number:02x}" for number in range(256)):  # One after the other, so that memory does not grow with the store.
            for path, info in self._files(folder):
                name = path.rpartition("/")[2]
                if NAME.fullmatch(name) and name[:2] == folder:
                    yield name, int(info["size"]), self._modified(info)

    def remove(self, sha256: str, older_than: datetime | None) -> bool:
        found = self._info(sha256)
        if found is None or (older_than is not None and self._modified(found) >= older_than):
            return False
        return self._remove(self._path(sha256))

    def drop_parts(self, older_than: datetime, *, dry_run: bool) -> tuple[int, int]:
        parts = [(path, info) for path, info in self._files("parts") if path.rpartition("/")[2].startswith(PART)]
        old = [(path, int(info["size"])) for path, info in parts if self._modified(info) < older_than]
        gone = [size for path, size in old if dry_run or self._remove(path)]
        count, size = drop_parts_in(self.parts, older_than, dry_run=dry_run)
        return len(gone) + count, sum(gone) + size

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def _put_and_rename(self, files: Any, part: Path, final: str) -> None:
        temporary = f"{self._root}/parts/{PART}{secrets.token_hex(16)}"
        try:
            for path in (temporary, final):
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.put_file(str(part), temporary)
            files.mv(temporary, final)
        except Exception:
            with suppress(Exception):  # What cannot be reached now is left to the garbage collection.
                files.rm_file(temporary)
            raise

    def _remove(self, path: str) -> bool:
        try:
            with self._asking("removing a file", may_miss=True) as files:
                files.rm_file(path)
        except FileNotFoundError:
            return False
        return True

    def _info(self, sha256: str) -> dict[str, Any] | None:
        try:
            with self._asking(f"looking for artefact {sha256}", may_miss=True) as files:
                found: dict[str, Any] = files.info(self._path(sha256))
        except FileNotFoundError:
            return None
        return found if found["type"] == "file" else None

    def _files(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        with suppress(FileNotFoundError), self._asking("listing artefacts", may_miss=True) as files:
            return list(files.find(f"{self._root}/{folder}", detail=True).items())
        return []

    def _modified(self, info: dict[str, Any]) -> datetime:
        found = next((info[key] for key in _MODIFIED if info.get(key)), None)
        if isinstance(found, int | float):
            return datetime.fromtimestamp(found, UTC)
        if isinstance(found, str):
            with suppress(ValueError):
                found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        raise StorageError(
            f"{self.shown} does not tell when its files were written, so that new artefacts cannot be told from garbage. "
            "Keep artefacts in a folder or in s3://, gs:// or abfs:// to collect garbage."
        )

    def _connect(self) -> tuple[Any, Any]:
        """fsspec's file system and the root in it. Asked for at each use: fsspec keeps one to a thread where they cannot be shared."""
        try:
            files, root = fsspec.url_to_fs(self._url)
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or str(error)
            complaint = f"artefacts at {self.shown} need a package that is not installed here: pip install {missing}"
            raise JobError(complaint, field="artifacts_url") from error
        files.dircache.use_listings_cache = False  # Others write there too: a listing that is remembered would be wrong.
        return files, root

    @contextmanager
    def _asking(self, doing: str, *, may_miss: bool = False) -> Iterator[Any]:
        """The file system. Whatever its library raises becomes a StorageError; may_miss: but for FileNotFoundError."""
        try:
            yield self._connect()[0]
        except AccutuneError:
            raise
        except Exception as error:
            if may_miss and isinstance(error, FileNotFoundError):
                raise
            raise self._failed(doing, error) from error

    def _failed(self, doing: str, error: Exception) -> StorageError:
        """The library's error in our words. Its own may repeat the URL, with the password."""
        if isinstance(error, OSError) and is_full(error):
            return disk_error(error, f"{doing} in {self.shown}")
        said = " ".join(f"{type(error).__name__} {error}".replace(self._url, self.shown).split())
        if self._password:
            said = said.replace(self._password[1], "…")
        return StorageError(
            f"{doing} in {self.shown} failed: {_SECRETS.sub('', said)[:300]}. "
            "Check ACCUTUNE_ARTIFACTS_URL, that this store can be reached from here, and that its credentials allow it."
        )


def pieces(path: Path, what: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes [start, stop) of a local file, a chunk at a time. StorageError naming `what` where they cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            left = os.fstat(file.fileno()).st_size - start if stop is None else stop - start
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise disk_error(error, f"reading {what}") from error


def rename(part: Path, final: Path) -> None:
    """Give a part, whose bytes are on the disk, its name on the same file system, so that it outlasts a power cut."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part.replace(final)
    _flush_folder(final.parent)


def drop_parts_in(folder: Path, older_than: datetime, *, dry_run: bool) -> tuple[int, int]:
    """Remove the parts in a local folder that were last written to before `older_than` and that no process holds any more (each
    is locked by who writes it); how many files and bytes."""
    sizes = []
    for path in (folder / name for name in _entries(folder) if name.startswith(PART)):
        # Gone: it was finished in the meantime. Blocking: it is being written.
        with writing(path.name), suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(file.fileno())
            if found.st_mtime < older_than.timestamp():
                sizes.append(found.st_size)
                if not dry_run:
                    path.unlink()
    return len(sizes), sum(sizes)


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise disk_error(error, f"reading the folder {folder}") from error


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
