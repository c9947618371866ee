"""Artefact stores for tests: in a folder, in memory, and one that fails; each with a door at the back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from server.artifacts import Artifacts

NOW = datetime.now(UTC)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_name(data: bytes) -> str:
    sha256 = digest(data)
    return f"{sha256[:2]}/{sha256}"


class Backdoor(Protocol):
    """What tests do to a store behind its back. Names are relative to its root."""

    artifacts: Artifacts

    def names(self) -> list[str]:
        """Every file of the store and of its scratch folder, except for the lock."""

    def write(self, name: str, data: bytes, age: timedelta = ...) -> None: ...

    def read(self, name: str) -> bytes: ...


class InFolder:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.artifacts = Artifacts(str(self.root), folder / "scratch")
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.root))
            for path in (*self.root.rglob("*"), *(self.folder / "scratch").rglob("*"))
            if path.is_file() and path.name != "lock"
        )

    def write(self, name: str, data: bytes, age: timedelta = timedelta()) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        moment = (NOW - age).timestamp()
        os.utime(path, (moment, moment))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class InMemory:
    files: type[MemoryFileSystem] = MemoryFileSystem

    def __init__(self, folder: Path) -> None:
        self.root = f"/{uuid4().hex}"
        self.scratch = folder / "scratch"
        self.url = f"{self.files.protocol}:/{self.root}"
        self.artifacts = Artifacts(self.url, self.scratch)

    def names(self) -> list[str]:
        kept = [path.removeprefix(f"{self.root}/") for path in self.files.store if path.startswith(f"{self.root}/")]
        return sorted(kept + [path.name for path in self.scratch.rglob("*") if path.is_file()])

    def write(self, name: str, data: bytes, age: timedelta = timedelta()) -> None:
        path = f"{self.root}/{name}"
        self.files().pipe_file(path, data)
        file = self.files.store[path]
        file.created = file.modified = NOW - age

    def read(self, name: str) -> bytes:
        return bytes(self.files.store[f"{self.root}/{name}"].getvalue())


class Troubled(MemoryFileSystem):
    """A store that raises what a test wants, once it has done half of an upload."""

    protocol = "troubled"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    trouble: ClassVar[dict[str, BaseException]] = {}
    calls: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.replace("troubled://", "memory://"))

    def _does(self, name: str) -> None:
        self.calls.append(name)
        if name in self.trouble:
            raise self.trouble[name]

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        data = Path(lpath).read_bytes()
        self.pipe_file(rpath, data[: len(data) // 2])
        self._does("put_file")
        self.pipe_file(rpath, data)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self._does("mv")
        super().mv(path1, path2, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._does("cat_file")
        return bytes(super().cat_file(path, start, end, **options))

    def info(self, path: str, **options: Any) -> Any:
        self._does("info")
        return super().info(path, **options)


class InTrouble(InMemory):
    files = Troubled


@contextmanager
def in_trouble(folder: Path) -> Iterator[InTrouble]:
    """A store on `Troubled`, which forgets everything afterwards."""
    fsspec.register_implementation("troubled", Troubled, clobber=True)
    try:
        yield InTrouble(folder)
    finally:
        for state in (Troubled.store, Troubled.trouble, Troubled.calls):
            state.clear()


class Killed(BaseException):
    """The process ends here: nothing of its own is run any more that handles an Exception."""
