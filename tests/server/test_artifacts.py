"""The artefact store over a local folder and a store behind fsspec."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from server.artifacts import TooLarge
from tests.artifact_stores import Backdoor, InFolder, InMemory, blob_name, digest
from tuner.errors import StorageError

MIB = 1 << 20


@pytest.fixture(params=[InFolder, InMemory])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backdoor]:
    yield request.param(tmp_path)
    MemoryFileSystem.store.clear()


def test_bytes_come_back_under_their_hash(kept: Backdoor) -> None:
    store, data = kept.artifacts, b"a model"
    assert not store.exists(digest(data))

    stored = store.put_bytes(data)

    assert (stored.sha256, stored.size_bytes) == (digest(data), 7)
    assert kept.names() == [blob_name(data)]
    assert b"".join(store.open(stored.sha256)) == data
    assert store.size(stored.sha256) == 7
    assert store.exists(stored.sha256)
    assert store.local(stored.sha256).read_bytes() == data
    ((name, size, modified),) = store.listing()
    assert (name, size) == (stored.sha256, 7)
    assert abs(modified - datetime.now(UTC)) < timedelta(minutes=10)


def test_an_empty_blob_is_a_blob(kept: Backdoor) -> None:
    stored = kept.artifacts.put_bytes(b"")
    assert stored.size_bytes == 0
    assert list(kept.artifacts.open(stored.sha256)) == []
    assert kept.artifacts.local(stored.sha256).read_bytes() == b""


def test_files_are_put(kept: Backdoor, tmp_path: Path) -> None:
    (tmp_path / "best.onnx").write_bytes(b"graph")
    assert kept.artifacts.put(tmp_path / "best.onnx").sha256 == digest(b"graph")
    assert b"".join(kept.artifacts.open(digest(b"graph"))) == b"graph"
    with pytest.raises(StorageError, match=r"reading gone\.onnx failed"):
        kept.artifacts.put(tmp_path / "gone.onnx")
    assert kept.names() == [blob_name(b"graph")]


def test_what_is_received_can_be_read_before_it_is_kept(kept: Backdoor) -> None:
    with kept.artifacts.receive(6) as receiving:
        receiving.write(b"abc")
        receiving.write(b"")
        receiving.write(b"def")
        assert receiving.path.read_bytes() == b"abcdef"
        assert (receiving.sha256, receiving.size_bytes) == (digest(b"abcdef"), 6)
        assert not kept.artifacts.exists(digest(b"abcdef"))
        part = receiving.path
        assert receiving.commit().sha256 == digest(b"abcdef")
    assert not part.exists()
    assert kept.names() == [blob_name(b"abcdef")]
    for call in (lambda: receiving.write(b"g"), receiving.commit, lambda: receiving.path):
        with pytest.raises(ValueError, match="committed or aborted already"):
            call()


def test_what_is_not_committed_leaves_nothing(kept: Backdoor) -> None:
    receiving = kept.artifacts.receive(10)
    receiving.write(b"abc")
    assert len(kept.names()) == 1
    receiving.abort()
    receiving.abort()
    assert kept.names() == []

    with pytest.raises(RuntimeError, match="refused"), kept.artifacts.receive(10) as receiving:
        receiving.write(b"abc")
        raise RuntimeError("refused")
    assert kept.names() == []


def test_too_many_bytes_leave_nothing(kept: Backdoor) -> None:
    receiving = kept.artifacts.receive(1000)
    receiving.write(b"x" * 600)
    with pytest.raises(TooLarge, match="more than 1,000 bytes were sent, the most that is taken here; send less"):
        receiving.write(b"x" * 401)
    assert kept.names() == []


@pytest.mark.parametrize(("start", "end"), [(0, 4), (2, 5), (2, None), (0, None), (0, 99), (5, 5), (9, 12), (10, None), (99, None)])
def test_a_range_is_a_slice(kept: Backdoor, start: int, end: int | None) -> None:
    data = b"0123456789"
    stored = kept.artifacts.put_bytes(data)
    assert b"".join(kept.artifacts.open(stored.sha256, start, end)) == data[start:end]


@pytest.mark.parametrize(("start", "end"), [(-1, None), (3, 2), (0, -1)])
def test_a_range_that_is_none_is_refused(kept: Backdoor, start: int, end: int) -> None:
    stored = kept.artifacts.put_bytes(b"0123456789")
    with pytest.raises(ValueError, match=f"0 <= start <= end, got start={start} and end={end}"):
        kept.artifacts.open(stored.sha256, start, end)


def test_large_blobs_pass_in_pieces(kept: Backdoor, tmp_path: Path) -> None:
    piece = os.urandom(MIB)
    with (tmp_path / "large").open("wb") as file:
        for number in range(64):
            file.write(number.to_bytes(8, "big") + piece[8:])
        file.write(b"tail")
    stored = kept.artifacts.put(tmp_path / "large")
    seen, sizes = hashlib.sha256(), []
    for chunk in kept.artifacts.open(stored.sha256):
        sizes.append(len(chunk))
        seen.update(chunk)
    assert sizes == [MIB] * 64 + [4]
    assert seen.hexdigest() == stored.sha256
    middle = list(kept.artifacts.open(stored.sha256, 9 * MIB + 1, 20 * MIB))
    assert max(map(len, middle)) <= MIB
    assert sum(map(len, middle)) == 11 * MIB - 1
    assert b"".join(middle)[-MIB:] == (19).to_bytes(8, "big") + piece[8:]


def test_damage_is_found_before_the_last_chunk_is_given(kept: Backdoor) -> None:
    data = bytes(2 * MIB) + b"the end"
    stored = kept.artifacts.put_bytes(data)
    kept.write(blob_name(data), bytes(2 * MIB) + b"the enD")
    given = []
    with pytest.raises(
        StorageError, match=f"artefact {stored.sha256} in .* is damaged: its bytes have another SHA-256.*send the file again"
    ):
        for chunk in kept.artifacts.open(stored.sha256):
            given.append(len(chunk))
    assert given == [MIB, MIB]
    kept.artifacts.put_bytes(data)
    assert b"".join(kept.artifacts.open(stored.sha256)) == data


def test_a_blob_that_lost_its_end_is_damaged_in_part_too(kept: Backdoor) -> None:
    stored = kept.artifacts.put_bytes(b"0123456789")
    chunks = kept.artifacts.open(stored.sha256, 2, 9)
    kept.write(blob_name(b"0123456789"), b"01234")
    with pytest.raises(StorageError, match="is damaged"):
        list(chunks)


def test_a_blob_that_is_not_there_is_named(kept: Backdoor) -> None:
    absent = digest(b"absent")
    for ask in (kept.artifacts.open, kept.artifacts.size, kept.artifacts.local):
        with pytest.raises(StorageError, match=f"artefact {absent} is not in .*Put it back from a backup, or send the file again"):
            ask(absent)
    assert kept.artifacts.remove(absent) is False
    assert list(kept.artifacts.listing()) == []
    assert kept.names() == []


@pytest.mark.parametrize(
    "name", ["", "..", "../" * 20 + "etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "g" * 64, "/" + "a" * 63, "٣" * 64]
)
def test_only_hashes_are_names(kept: Backdoor, name: str) -> None:
    for ask in (kept.artifacts.open, kept.artifacts.size, kept.artifacts.exists, kept.artifacts.local, kept.artifacts.remove):
        with pytest.raises(ValueError, match="an artefact's name is its SHA-256 in 64 lowercase hexadecimal digits, got '"):
            ask(name)


def test_many_threads_put_and_read_the_same_bytes(kept: Backdoor) -> None:
    contents = [bytes([number]) * 100_000 for number in range(4)]
    together = threading.Barrier(8)

    def work(number: int) -> bytes:
        together.wait()
        stored = kept.artifacts.put_bytes(contents[number % 4])
        assert kept.artifacts.local(stored.sha256).read_bytes() == contents[number % 4]
        return b"".join(kept.artifacts.open(stored.sha256))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(32))) == [contents[number % 4] for number in range(32)]
    assert sorted(name for name, _, _ in kept.artifacts.listing()) == sorted(map(digest, contents))
    assert not [name for name in kept.names() if "part" in name]


def test_a_blob_that_vanishes_while_it_is_read_is_an_error(kept: Backdoor) -> None:
    stored = kept.artifacts.put_bytes(b"model")
    chunks = kept.artifacts.open(stored.sha256)
    kept.artifacts.remove(stored.sha256)
    with pytest.raises(StorageError, match=f"reading artefact {stored.sha256}"):
        next(chunks)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = InFolder(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"writing an artefact failed: No space left on device .*Free some space") as caught:
        kept.artifacts.put_bytes(b"x" * 100)
    assert isinstance(caught.value.__cause__, OSError)
    assert kept.names() == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path: Path) -> None:
    kept = InFolder(tmp_path)
    receiving = kept.artifacts.receive()
    receiving._file.close()
    receiving._file = open("/dev/full", "wb")
    with pytest.raises(StorageError, match="Free some space"):
        receiving.write(b"x" * MIB)
    assert kept.names() == []
