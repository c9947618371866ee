"""Artefacts behind fsspec: what fails there, what it is called, and how a place is found."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import known_implementations

from server import places
from server.artifacts import Artifacts
from tests.artifact_stores import InFolder, InTrouble, Troubled, blob_name, digest, in_trouble
from tuner.errors import JobError, StorageError


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[InTrouble]:
    with in_trouble(tmp_path) as store:
        yield store


def test_a_download_stays_until_its_blob_is_removed(troubled: InTrouble) -> None:
    stored = troubled.artifacts.put_bytes(b"model")
    path = troubled.artifacts.local(stored.sha256)
    assert path == troubled.scratch / "blobs" / stored.sha256
    Troubled.calls.clear()
    assert troubled.artifacts.local(stored.sha256) == path
    assert Troubled.calls == []
    assert troubled.artifacts.remove(stored.sha256) is True
    assert not path.exists()


def test_a_damaged_download_is_not_kept(troubled: InTrouble) -> None:
    stored = troubled.artifacts.put_bytes(b"model")
    troubled.write(blob_name(b"model"), b"modem")
    with pytest.raises(StorageError, match="is damaged"):
        troubled.artifacts.local(stored.sha256)
    assert troubled.names() == [blob_name(b"model")]


@pytest.mark.parametrize("step", ["put_file", "mv"])
def test_an_upload_that_fails_leaves_nothing(troubled: InTrouble, step: str) -> None:
    Troubled.trouble[step] = ConnectionError("the line is dead")
    with pytest.raises(StorageError, match=r"writing artefact .* failed: ConnectionError the line is dead") as caught:
        troubled.artifacts.put_bytes(b"whole")
    assert troubled.url in str(caught.value)
    assert "Check ACCUTUNE_ARTIFACTS_URL" in str(caught.value)
    assert troubled.names() == []


def test_object_stores_need_no_temporary_name(troubled: InTrouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "WHOLE_OR_NOTHING", {"troubled"})
    store = Artifacts(troubled.url, tmp_path / "scratch")
    stored = store.put_bytes(b"at once")
    assert Troubled.calls == ["put_file"]
    assert b"".join(store.open(stored.sha256)) == b"at once"


def test_a_library_of_its_own_errors_is_understood(troubled: InTrouble) -> None:
    stored = troubled.artifacts.put_bytes(b"model")
    chunks = troubled.artifacts.open(stored.sha256)
    Troubled.trouble |= {"cat_file": LookupError("NoSuchBucket"), "info": PermissionError("Forbidden")}
    with pytest.raises(StorageError, match=r"reading artefact .* failed: LookupError NoSuchBucket\. Check"):
        next(chunks)
    # A store that does not answer is not one without the blob.
    with pytest.raises(StorageError, match=r"looking for artefact .* failed: PermissionError Forbidden"):
        troubled.artifacts.exists(stored.sha256)
    Troubled.trouble["info"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match="Free some space"):
        troubled.artifacts.size(stored.sha256)


@pytest.mark.usefixtures("troubled")
def test_passwords_are_not_told(tmp_path: Path) -> None:
    url = "troubled://anna:s3cret@host/folder?token=hidden"
    store = Artifacts(url, tmp_path / "scratch")
    Troubled.trouble["info"] = OSError(f"cannot open {url}: password s3cret refused by https://anna:s3cret@proxy/x?sig=abc")
    with pytest.raises(StorageError) as caught:
        store.exists(digest(b""))
    assert "troubled://host/folder failed" in str(caught.value)
    for secret in ("s3cret", "anna", "hidden", "abc@", "sig="):
        assert secret not in str(caught.value)


def test_listings_are_not_remembered(troubled: InTrouble) -> None:
    assert list(troubled.artifacts.listing()) == []
    assert Troubled().dircache.use_listings_cache is False


@pytest.mark.parametrize(
    ("told", "moment"),
    [
        ({"LastModified": datetime(2026, 1, 2, tzinfo=UTC), "created": 0}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"mtime": 86400.0}, datetime(1970, 1, 2, tzinfo=UTC)),
        ({"mtime": datetime(2026, 1, 2)}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"updated": "2026-01-02T03:00:00Z"}, datetime(2026, 1, 2, 3, tzinfo=UTC)),
    ],
)
def test_every_way_to_tell_a_time_is_read(troubled: InTrouble, told: dict[str, Any], moment: datetime) -> None:
    place = troubled.artifacts._place
    assert isinstance(place, places.Remote)
    assert place._modified(told) == moment


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unheard = {"class": "no_such_fs.FileSystem", "err": "Install no_such_fs"}
    monkeypatch.setitem(known_implementations, "unheard", unheard)
    with pytest.raises(
        JobError, match="artefacts at unheard://bucket need a package that is not installed here: pip install no_such_fs"
    ) as caught:
        Artifacts("unheard://key:secret@bucket", tmp_path)
    assert caught.value.field == "artifacts_url"


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"opening the artefact store in bogus://x failed: ValueError Protocol not known: bogus\. Check ACC"
    ):
        Artifacts("bogus://x", tmp_path)


def test_folders_are_known_by_path_and_by_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Artifacts(str(tmp_path / "a"), tmp_path / "s").put_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for url in (f"file://{tmp_path}/a", f"local://{tmp_path}/a", "a", f"{tmp_path}/a/"):
        assert Artifacts(url, tmp_path / "s").local(stored.sha256) == tmp_path / "a" / blob_name(b"x")
    assert not (tmp_path / "s").exists()


def test_messages_tell_no_local_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        InFolder(tmp_path).artifacts.size(digest(b"absent"))
    assert str(tmp_path) not in str(caught.value)
    assert "in the artefact folder" in str(caught.value)
