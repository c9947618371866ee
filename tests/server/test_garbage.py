"""What the collection of garbage takes and what it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from server import artifacts as module
from server import places
from server.artifacts import Artifacts, Garbage, collect_garbage
from tests.artifact_stores import NOW, Backdoor, InFolder, InMemory, InTrouble, Killed, Troubled, blob_name, digest, in_trouble
from tuner.errors import StorageError

DAY = timedelta(days=1)


@pytest.fixture(params=[InFolder, InMemory])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backdoor]:
    yield request.param(tmp_path)
    MemoryFileSystem.store.clear()


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[InTrouble]:
    with in_trouble(tmp_path) as store:
        yield store


def nobody(_: Sequence[str]) -> set[str]:
    return set()


def collect(store: Artifacts, referenced: Any = nobody, *, dry_run: bool = False) -> Garbage:
    return collect_garbage(store, referenced, older_than=DAY, now=NOW, dry_run=dry_run)


def test_the_same_bytes_are_kept_once_and_made_young(kept: Backdoor) -> None:
    stored = kept.artifacts.put_bytes(b"twice")
    kept.write(blob_name(b"twice"), b"twice", 3 * DAY)
    assert kept.artifacts.put_bytes(b"twice") == stored
    assert kept.names() == [blob_name(b"twice")]
    assert collect(kept.artifacts).blobs == 0


def test_an_upload_that_took_long_is_young_when_it_is_kept(kept: Backdoor) -> None:
    with kept.artifacts.receive(100) as receiving:
        receiving.write(b"slow")
        old = (NOW - 2 * DAY).timestamp()
        os.utime(receiving.path, (old, old))
        receiving.commit()
    assert collect(kept.artifacts).blobs == 0


def test_an_upload_whose_process_died_leaves_a_part_alone(kept: Backdoor) -> None:
    receiving = kept.artifacts.receive(100)
    receiving.write(b"half of it")
    part = receiving.path
    assert list(kept.artifacts.listing()) == []

    nothing = Garbage(blobs=0, size_bytes=0, removed=())
    assert collect(kept.artifacts) == nothing
    old = (NOW - 2 * DAY).timestamp()
    os.utime(part, (old, old))
    assert collect(kept.artifacts) == nothing, "it is still being written"
    receiving._file.close()  # As the system does for a process that died.
    found = Garbage(blobs=0, size_bytes=10, removed=(), parts=1)
    assert collect(kept.artifacts, dry_run=True) == found
    assert part.exists()
    assert collect(kept.artifacts) == found
    assert kept.names() == []


def test_garbage_is_what_is_old_and_of_no_use(kept: Backdoor) -> None:
    for data in (b"needed", b"garbage", b"more garbage"):
        kept.write(blob_name(data), data, 2 * DAY)
    kept.write(blob_name(b"young"), b"young", DAY / 2)
    kept.write("parts/part-old", b"xx", 2 * DAY)
    kept.write("parts/part-young", b"xx", DAY / 2)
    for stranger in ("notes.txt", "parts/notes.txt", "ab/notes.txt", f"ab/{'c' * 64}"):
        kept.write(stranger, b"not ours", 9 * DAY)
    before = kept.names()

    def referenced(names: Sequence[str]) -> set[str]:
        return {digest(b"needed")} & set(names)

    removed = sorted([digest(b"garbage"), digest(b"more garbage")])
    planned = collect(kept.artifacts, referenced, dry_run=True)
    assert planned.blobs == 2
    assert sorted(planned.removed) == removed
    assert (planned.size_bytes, planned.parts) == (7 + 12 + 2, 1)
    assert kept.names() == before
    assert collect(kept.artifacts, referenced) == planned
    gone = {blob_name(b"garbage"), blob_name(b"more garbage"), "parts/part-old"}
    assert kept.names() == sorted(set(before) - gone)
    assert collect(kept.artifacts, referenced).blobs == 0


def test_garbage_is_asked_about_in_batches(kept: Backdoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    contents = [f"blob {number}".encode() for number in range(7)]
    for data in contents:
        kept.write(blob_name(data), data, 2 * DAY)
    asked = []

    def referenced(names: Sequence[str]) -> set[str]:
        asked.append((len(names), len(list(kept.artifacts.listing()))))
        return set()

    assert collect(kept.artifacts, referenced).removed == tuple(sorted(map(digest, contents)))
    assert asked == [(3, 7), (3, 4), (1, 1)]


def test_what_is_put_again_while_garbage_is_collected_survives(kept: Backdoor) -> None:
    kept.write(blob_name(b"back again"), b"back again", 2 * DAY)

    def referenced(_: Sequence[str]) -> set[str]:
        kept.artifacts.put_bytes(b"back again")
        return set()

    assert collect(kept.artifacts, referenced) == Garbage(blobs=0, size_bytes=0, removed=())
    assert b"".join(kept.artifacts.open(digest(b"back again"))) == b"back again"


def test_an_upload_that_was_killed_is_never_seen(troubled: InTrouble) -> None:
    Troubled.trouble["put_file"] = Killed()
    with pytest.raises(Killed):
        troubled.artifacts.put_bytes(b"whole")
    assert list(troubled.artifacts.listing()) == []
    assert not troubled.artifacts.exists(digest(b"whole"))
    (part,) = troubled.names()
    assert part.startswith("parts/part-")
    assert troubled.read(part) == b"wh"
    troubled.write(part, b"wh", 2 * DAY)
    assert collect(troubled.artifacts).parts == 1
    assert troubled.names() == []


def test_a_store_that_tells_no_times_collects_no_garbage(troubled: InTrouble, monkeypatch: pytest.MonkeyPatch) -> None:
    troubled.write(blob_name(b"model"), b"model", 2 * DAY)
    monkeypatch.setattr(places, "_MODIFIED", ("LastModified",))
    with pytest.raises(StorageError, match="does not tell when its files were written"):
        collect(troubled.artifacts)
    assert troubled.names() == [blob_name(b"model")]


def test_nothing_is_written_where_nothing_was_put(tmp_path: Path) -> None:
    store = Artifacts(str(tmp_path / "store"), tmp_path / "scratch")
    assert collect(store, dry_run=True) == Garbage(blobs=0, size_bytes=0, removed=())
    assert list(tmp_path.iterdir()) == []
