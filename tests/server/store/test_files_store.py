"""Uploads: the same bytes once, listed, and kept while a job needs them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from store_samples import (
    DATA_FACTS,
    START,
    add_files,
    add_job,
    artifact,
    model_facts,
    row_counts,
    slow_steps,
    spec,
    watched_selects,
)

from server.store.database import Conflict, Database, NotFound
from server.store.files import FileStore
from server.store.jobs import JobStore
from server.store.lookups import write_cursor
from tuner.errors import JobError


@pytest.fixture
def files(database: Database) -> FileStore:
    return FileStore(database)


def add_model(files: FileStore, sha256: str, name: str = "m.onnx", owner: str | None = None, size_bytes: int = 1000) -> str:
    return files.add_model(name=name, sha256=sha256, size_bytes=size_bytes, owner=owner, facts=model_facts())[0].id


def test_a_model_comes_back_whole(files: FileStore) -> None:
    facts = model_facts(layers=3)
    view, new = files.add_model(name="../é.onnx", sha256="a" * 64, size_bytes=2**33, owner="o", facts=facts)
    assert new
    assert (view.id[:4], len(view.id)) == ("mdl-", 20)
    assert (view.name, view.sha256, view.size_bytes, view.owner) == ("../é.onnx", "a" * 64, 2**33, "o")
    assert (view.opset, view.parameters, view.macs, view.inputs, view.outputs) == (17, 99, None, facts.inputs, facts.outputs)
    assert (view.layer_count, view.quantizable_count) == (3, 2)
    assert view.created > START
    assert files.model(view.id) == files.by_sha256("models", "a" * 64) == view
    assert files.layers(view.id) == facts.layers


def test_a_data_file_comes_back_whole(files: FileStore) -> None:
    view, new = files.add_dataset(name="d\0.npz", sha256="b" * 64, size_bytes=5, owner=None, facts=DATA_FACTS)
    assert new
    assert (view.id[:4], view.name, view.owner, view.format, view.arrays) == ("dat-", "d\ufffd.npz", None, "npz", DATA_FACTS.arrays)
    assert files.dataset(view.id) == files.by_sha256("datasets", "b" * 64) == view
    assert files.by_sha256("models", "b" * 64) is None


def test_the_same_bytes_are_the_same_file(files: FileStore) -> None:
    first, new = files.add_model(name="a", sha256="a" * 64, size_bytes=1, owner="x", facts=model_facts())
    again, new_again = files.add_model(name="b", sha256="a" * 64, size_bytes=1, owner="y", facts=model_facts(5))
    assert (new, new_again) == (True, False)
    assert again == first
    files.delete(first.id)
    assert add_model(files, "a" * 64) != first.id


def test_of_eight_equal_uploads_at_once_one_is_stored(files: FileStore, database: Database) -> None:
    together = Barrier(8)

    def add(_: int) -> tuple[str, bool]:
        together.wait()
        view, new = files.add_dataset(name="d", sha256="c" * 64, size_bytes=1, owner=None, facts=DATA_FACTS)
        return view.id, new

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(add, range(8)))
    assert len({id for id, _ in answers}) == 1
    assert sorted(new for _, new in answers) == [False] * 7 + [True]
    assert row_counts(database) == {"datasets": 1}


def test_pages_go_from_the_newest_to_the_oldest_file(files: FileStore) -> None:
    ids = [add_model(files, f"{number}" * 64) for number in range(5)]
    data = add_files(files)[1]
    first = files.models(cursor=None, limit=2)
    add_model(files, "f" * 64)
    second = files.models(cursor=first.next, limit=2)
    last = files.models(cursor=second.next, limit=2)
    assert [view.id for page in (first, second, last) for view in page.items][1:] == ids[::-1]
    assert last.next is None
    assert [view.id for view in files.models(cursor=None, limit=2, sha256="3" * 64).items] == [ids[3]]
    assert files.models(cursor=None, limit=2, sha256="nul\0").items == ()
    assert [view.id for view in files.datasets(cursor=None, limit=1).items] == [data]


def test_files_of_one_moment_are_all_listed(files: FileStore, database: Database) -> None:
    database.now = lambda: START
    ids = sorted(add_model(files, f"{number}" * 64) for number in range(5))
    found, cursor = [], None
    for _ in range(5):
        page = files.models(cursor=cursor, limit=1)
        found += [view.id for view in page.items]
        cursor = page.next
    assert (found, cursor) == (ids[::-1], None)


@pytest.mark.parametrize("cursor", ["x", write_cursor(1, 2), write_cursor("yesterday", "mdl-1"), write_cursor("2026-01-01T00:00:00", "m")])
def test_a_cursor_of_another_list_is_refused(files: FileStore, cursor: str) -> None:
    with pytest.raises(JobError, match=r"cursor must be what an earlier page of this very list gave as `next`, got '"):
        files.datasets(cursor=cursor, limit=2)


def test_no_page_of_files_reads_or_sorts_the_table(sqlite_database: Database) -> None:
    files = FileStore(sqlite_database)
    with watched_selects() as selects:
        for cursor in (None, write_cursor(START.isoformat(), "mdl-1")):
            for sha256 in (None, "a" * 64):
                files.models(cursor=cursor, limit=2, sha256=sha256)
                files.datasets(cursor=cursor, limit=2, sha256=sha256)
        files.by_sha256("models", "a")
        files.references(["a", "b"])
    assert len(selects) == 12
    assert slow_steps(sqlite_database, selects) == []


def test_a_file_is_kept_while_jobs_need_it(files: FileStore, database: Database) -> None:
    jobs = JobStore(database)
    model, data = add_files(files)
    for number in range(5):
        jobs.submit(f"j{number}", spec(), owner=None, files=(model,) if number else (model, data))
    with pytest.raises(Conflict) as caught:
        files.delete(model)
    assert str(caught.value) == (
        f"model '{model}' is needed by jobs 'j0', 'j1', 'j2' and 2 more and cannot be deleted. "
        "Delete those first: DELETE /api/v1/jobs/ID."
    )
    with pytest.raises(Conflict, match=f"dataset '{data}' is needed by job 'j0' and cannot"):
        files.delete(data)
    assert (files.model(model).id, files.dataset(data).id) == (model, data)
    for number in range(5):
        jobs.delete(f"j{number}")
    files.delete(model)
    files.delete(data)
    assert row_counts(database) == {}


def test_a_job_and_the_deletion_of_its_file_never_both_succeed(files: FileStore, database: Database) -> None:
    jobs = JobStore(database)
    outcomes = set()
    for round_ in range(12):
        model, data = add_files(files, sign=f"{round_:x}")
        together = Barrier(2)

        def submit(job_id: str = f"j{round_}", ids: tuple[str, str] = (model, data), together: Barrier = together) -> bool:
            together.wait()
            try:
                return jobs.submit(job_id, spec(), owner=None, files=ids)[1]
            except NotFound:
                return False

        def delete(id: str = (model, data)[round_ % 2], together: Barrier = together) -> bool:
            together.wait()
            try:
                files.delete(id)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            submitted, deleted = (future.result() for future in (pool.submit(submit), pool.submit(delete)))
        assert submitted != deleted
        outcomes.add(submitted)
    counts = row_counts(database)
    assert counts.get("job_files", 0) == 2 * counts.get("jobs", 0)


def test_uploads_are_added_up_by_owner(files: FileStore) -> None:
    add_model(files, "1" * 64, owner="o", size_bytes=2**40)
    add_model(files, "2" * 64, owner="other")
    files.add_dataset(name="d", sha256="3" * 64, size_bytes=5, owner="o", facts=DATA_FACTS)
    files.add_dataset(name="d", sha256="4" * 64, size_bytes=7, owner=None, facts=DATA_FACTS)
    assert [files.stored_bytes(owner) for owner in ("o", None, "nobody")] == [2**40 + 5, 7, 0]


def test_all_files_are_counted(files: FileStore, database: Database) -> None:
    assert files.kept() == {"models": (0, 0), "datasets": (0, 0), "artifacts": (0, 0)}
    add_model(files, "a" * 64, size_bytes=2**40)
    add_model(files, "b" * 64, size_bytes=3)
    files.add_dataset(name="d", sha256="c" * 64, size_bytes=7, owner=None, facts=DATA_FACTS)
    jobs = JobStore(database)
    for job_id in ("job-1", "job-2"):
        add_job(jobs, job_id)
        jobs.add_artifact(job_id, artifact("best.onnx"))
    assert files.kept() == {"models": (2, 2**40 + 3), "datasets": (1, 7), "artifacts": (2, 2 * artifact("best.onnx").size_bytes)}


def test_references_name_the_hashes_still_in_use(files: FileStore, database: Database) -> None:
    add_model(files, "m" * 64)
    files.add_dataset(name="d", sha256="d" * 64, size_bytes=5, owner=None, facts=DATA_FACTS)
    jobs = JobStore(database)
    for job_id in ("j", "k"):
        jobs.add_artifact(add_job(jobs, job_id), artifact("best.onnx", "f"))
    assert files.references([sign * 64 for sign in "mdfx"]) == {sign * 64 for sign in "mdf"}
    assert files.references([]) == set()


@pytest.mark.parametrize("id", ["mdl-gone", "nul\0", "\udcff"])
def test_an_unknown_file_is_named(files: FileStore, id: str) -> None:
    for use in (files.model, files.layers):
        with pytest.raises(NotFound) as caught:
            use(id)
        assert str(caught.value) == f"model '{id}' is not known to this server; GET /api/v1/models lists those that are"
    with pytest.raises(NotFound, match="GET /api/v1/datasets lists those that are"):
        files.dataset(id)
    with pytest.raises(NotFound, match="GET /api/v1/models and GET /api/v1/datasets list those there are"):
        files.delete(id)


def test_a_model_is_no_data_file(files: FileStore) -> None:
    model, data = add_files(files)
    with pytest.raises(NotFound):
        files.dataset(model)
    with pytest.raises(NotFound):
        files.model(data)
