"""Lists of jobs: in pages, filtered, searched and sorted, each page on an index."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from store_samples import add_files, add_job, model_facts, page_of, slow_steps, spec, watched_selects

from server.store.database import Database
from server.store.files import FileStore
from server.store.jobs import JobStore
from server.store.lookups import write_cursor
from tuner.errors import JobError, UnknownName
from tuner.store import JobState

FILTERS = list(itertools.product([None, JobState.QUEUED, JobState.CANCELLED], [None, "m1"], [None, "ab", "a_", "é"]))
ORDERS = list(itertools.product(["created", "name"], [True, False]))


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


def all_ids(jobs: JobStore, limit: int = 2, **asked: Any) -> list[str]:
    """The ids of a list, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = page_of(jobs, cursor=cursor, limit=limit, **asked)
        found += [view.id for view in page.items]
        cursor = page.next
        if cursor is None:
            return found


def test_pages_go_from_the_newest_to_the_oldest_job_and_miss_none(jobs: JobStore) -> None:
    for number in range(7):
        add_job(jobs, f"j{number}")
    first = page_of(jobs, cursor=None, limit=3)
    add_job(jobs, "j9")
    second = page_of(jobs, cursor=first.next, limit=3)
    last = page_of(jobs, cursor=second.next, limit=3)
    assert [[view.id for view in page.items] for page in (first, second, last)] == [["j6", "j5", "j4"], ["j3", "j2", "j1"], ["j0"]]
    assert last.next is None
    assert page_of(jobs, cursor=None, limit=8).next is None


def test_filters_narrow_the_list_alone_and_together(jobs: JobStore) -> None:
    known = []
    for number, (name, model) in enumerate(itertools.product(["ab c", "ab", "Ab", "axb", "a_b"], ["m1", "m2"])):
        job_id = add_job(jobs, f"j{number:02}", name, model)
        if number % 3 == 0:
            jobs.cancel(job_id)
        known.append((job_id, name, model, JobState.CANCELLED if number % 3 == 0 else JobState.QUEUED))
    for state, model, name in FILTERS:
        wanted = [
            job_id
            for job_id, its_name, its_model, its_state in reversed(known)
            if state in (None, its_state) and model in (None, its_model) and its_name.startswith(name or "")
        ]
        assert all_ids(jobs, state=state, model=model, name=name) == wanted, (state, model, name)


@pytest.mark.parametrize(("sort", "descending"), ORDERS)
def test_a_list_has_its_order_and_equal_names_that_of_their_ids(jobs: JobStore, sort: str, descending: bool) -> None:
    names = ["b", "a", "c", "a", "b", "a"]
    for number, name in enumerate(names):
        add_job(jobs, f"j{number}", name, model="m1" if number != 2 else "m2")
    by_name = ["j1", "j3", "j5", "j0", "j4", "j2"]
    ascending = by_name if sort == "name" else sorted(by_name)
    wanted = ascending[::-1] if descending else ascending
    for limit in (1, 2, 3, 6):
        assert all_ids(jobs, limit, sort=sort, descending=descending) == wanted
        assert all_ids(jobs, limit, sort=sort, descending=descending, model="m1") == [one for one in wanted if one != "j2"]


def test_a_job_that_is_added_or_deleted_between_two_pages_moves_no_other(jobs: JobStore) -> None:
    for number, name in enumerate(["d", "b", "f"]):
        add_job(jobs, f"j{number}", name)
    first = page_of(jobs, limit=1, sort="name", descending=False)
    for number, name in ((3, "a"), (4, "c")):
        add_job(jobs, f"j{number}", name)
    jobs.cancel("j1")
    jobs.delete("j1")
    assert [view.name for view in first.items] == ["b"]
    assert [view.name for view in page_of(jobs, cursor=first.next, sort="name", descending=False).items] == ["c", "d", "f"]


NAMES = ["100% sure", "a_b", "axb", "a/b", "a\\b", "Größe", "GROSSE"]


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        ("%", ["100% sure"]),
        ("_", ["a_b"]),
        ("/", ["a/b"]),
        ("\\", ["a\\b"]),
        ("A_B", ["a_b"]),
        ("a%b", []),
        ("SURE", ["100% sure"]),
        ("GRÖSSE", ["Größe"]),
        ("gro", ["GROSSE"]),
        ("ß", ["Größe", "GROSSE"]),
        ("\0", []),
        ("\udcff", []),
        ("", NAMES),
    ],
)
def test_a_search_finds_its_text_in_the_name_of_the_model(jobs: JobStore, database: Database, search: str, wanted: list[str]) -> None:
    """Job names are plainer than those of uploads."""
    files = FileStore(database)
    for number, name in enumerate(NAMES):
        model = files.add_model(name=name, sha256=f"{number}" * 64, size_bytes=1, owner=None, facts=model_facts())[0].id
        jobs.submit(f"j{number}", spec("job", model), owner=None, files=(model,))
    found = page_of(jobs, search=search, descending=False).items
    assert [view.model_name for view in found] == wanted


def test_a_search_goes_with_filters_and_looks_at_each_name_by_itself(jobs: JobStore, database: Database) -> None:
    model, data = add_files(FileStore(database))
    for number, name in enumerate(["ResNet 20", "resnet-8", "vgg"]):
        jobs.submit(f"j{number}", spec(name, model, data), owner=None, files=(model, data))
    jobs.cancel("j1")
    assert all_ids(jobs, search="RESNET") == ["j1", "j0"]
    assert all_ids(jobs, search="resnet", state=JobState.QUEUED) == ["j0"]
    assert all_ids(jobs, search="M.on", sort="name", descending=True) == ["j2", "j1", "j0"]
    assert all_ids(jobs, search="vggm") == all_ids(jobs, search="d.npz") == []


def test_no_page_of_jobs_reads_or_sorts_the_table(sqlite_database: Database) -> None:
    jobs = JobStore(sqlite_database)
    for number in range(3):
        add_job(jobs, f"j{number}", "ab", "m1")
    for sort, descending in ORDERS:
        # By name, those of one state or model are few enough to be sorted.
        asked = [one for one in FILTERS if sort == "created" or one[:2] == (None, None)]
        following = page_of(jobs, limit=1, sort=sort, descending=descending).next
        with watched_selects() as selects:
            for cursor, search, (state, model, name) in itertools.product([None, following], [None, "b"], asked):
                given = {"state": state, "model": model, "name": name, "search": search}
                jobs.page(cursor=cursor, limit=2, sort=sort, descending=descending, **given)
        assert len(selects) == 4 * len(asked)
        assert slow_steps(sqlite_database, selects) == []


def test_no_other_look_at_jobs_reads_or_sorts_the_table(sqlite_database: Database) -> None:
    jobs = JobStore(sqlite_database)
    with watched_selects() as selects:
        jobs.artifacts(add_job(jobs, "j"))
        jobs.queued_of("o")
        jobs.oldest_queued()
        jobs.counts()
    assert len(selects) >= 4
    assert slow_steps(sqlite_database, selects) == []


def test_odd_filters_find_nothing(jobs: JobStore) -> None:
    add_job(jobs, "j")
    for odd in ({"name": "a\0"}, {"model": "\0"}, {"name": "%"}, {"name": "_"}):
        assert page_of(jobs, **odd).items == ()
    with pytest.raises(UnknownName, match=r"unknown sort 'speed'\."):
        page_of(jobs, sort="speed")


@pytest.mark.parametrize(
    "cursor",
    [
        "\0",
        "j1",
        write_cursor("created", True, None),
        write_cursor("created", False, None, "j1"),
        write_cursor("created", True, "job", "j1"),
        write_cursor("created", True, None, 1),
        write_cursor("name", True, "job", "j1"),
        write_cursor("2026-03-01T12:00:00+00:00", "mdl-1"),
    ],
)
def test_a_cursor_of_another_list_is_refused(jobs: JobStore, cursor: str) -> None:
    with pytest.raises(JobError, match="cursor must be what an earlier page of this very list gave as `next`") as caught:
        page_of(jobs, cursor=cursor)
    assert caught.value.field == "cursor"


def test_a_cursor_by_name_needs_its_name(jobs: JobStore) -> None:
    with pytest.raises(JobError, match="cursor must be what an earlier page"):
        page_of(jobs, cursor=write_cursor("name", True, None, "j1"), sort="name")
    add_job(jobs, "j1", "b")
    odd = write_cursor("name", True, "z\0", "j\udcff")
    assert [view.id for view in page_of(jobs, cursor=odd, sort="name").items] == ["j1"]
