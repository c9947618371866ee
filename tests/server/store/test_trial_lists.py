"""Lists of trials: sorted, filtered, in pages that are put together from stored texts."""

from __future__ import annotations

import itertools
import json

import pytest
from sqlalchemy import update
from store_samples import add_job, save_trials, slow_steps, trial, watched_selects

from server.store.database import Database, NotFound
from server.store.jobs import JobStore
from server.store.lookups import write_cursor
from server.store.models import TrialRow
from server.store.trial_lists import SORTS, STREAMED, TrialReader
from tuner.errors import JobError, UnknownName
from tuner.results import TrialResult, TrialState
from tuner.wire import Page, TrialSummary, summarize

# Ties, missing values and both signs, so that every cursor has to stand in the middle of something once.
TRIALS = tuple(
    trial(
        number,
        violation=(None, -0.5, 0.1, -0.5, 1e-300)[number % 5],
        speedup=(1.5, None, 1.1)[number % 3],
        size=(None, 1e9, 10.0, 10.0)[number % 4],
        state=(TrialState.COMPLETE, TrialState.STOPPED)[number % 2],
    )
    for number in range(23)
)


@pytest.fixture
def reader(database: Database) -> TrialReader:
    add_job(JobStore(database), "j")
    save_trials(database, "j", *TRIALS)
    add_job(JobStore(database), "other")
    save_trials(database, "other", trial(0))
    return TrialReader(database)


def value(one: TrialResult, sort: str) -> float | None:
    if sort == "size_bytes":
        return one.value("size_bytes")
    return one.violation if sort == "violation" else one.speedup and one.speedup.value


def sorted_trials(sort: str, descending: bool) -> list[TrialResult]:
    sign = -1 if descending else 1
    if sort == "number":
        return sorted(TRIALS, key=lambda one: sign * one.number)
    without = [one for one in TRIALS if value(one, sort) is None]
    having = [one for one in TRIALS if value(one, sort) is not None]
    return sorted(having, key=lambda one: (sign * (value(one, sort) or 0), sign * one.number)) + sorted(
        without, key=lambda one: sign * one.number
    )


FILTERS = list(itertools.product([None, TrialState.STOPPED, TrialState.FAILED], [None, True, False]))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", SORTS)
def test_pages_hold_every_trial_once_in_order(reader: TrialReader, sort: str, descending: bool) -> None:
    for (state, feasible), limit in itertools.product(FILTERS, (1, 4, 100)):
        wanted = [one.number for one in sorted_trials(sort, descending) if state in (None, one.state) and feasible in (None, one.feasible)]
        found, cursor = [], None
        for _ in range(100):
            text = reader.page("j", cursor=cursor, limit=limit, sort=sort, descending=descending, state=state, feasible=feasible)
            page = Page[TrialSummary].model_validate_json(text)
            assert len(page.items) <= limit
            found += [one.number for one in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert found == wanted, (state, feasible, limit)


def test_a_page_shows_the_summaries(reader: TrialReader) -> None:
    page = Page[TrialSummary].model_validate_json(reader.page("j", cursor=None, limit=3))
    assert page.items == tuple(summarize(one) for one in TRIALS[:3])
    assert page.next is not None
    assert json.loads(reader.page("j", cursor=None, limit=23))["next"] is None


def test_stored_texts_are_passed_on_as_they_are(reader: TrialReader, database: Database) -> None:
    with database.write("testing") as connection:
        connection.execute(update(TrialRow).values(summary='{"from":  "another version"}', result='{"so":  "is this"}'))
    assert reader.page("other", cursor=None, limit=5) == '{"items":[{"from":  "another version"}],"next":null}'
    assert reader.text("other", 0) == '{"so":  "is this"}'


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", SORTS)
def test_no_page_of_trials_reads_or_sorts_the_table(sqlite_database: Database, sort: str, descending: bool) -> None:
    reader = TrialReader(sqlite_database)
    add_job(JobStore(sqlite_database), "j")
    save_trials(sqlite_database, "j", trial(0))
    places = [None, write_cursor(sort, descending, None, 3)] + ([] if sort == "number" else [write_cursor(sort, descending, 0.5, 3)])
    with watched_selects() as selects:
        for cursor, (state, feasible) in itertools.product(places, FILTERS):
            reader.page("j", cursor=cursor, limit=5, sort=sort, descending=descending, state=state, feasible=feasible)
    assert len(selects) >= len(places) * len(FILTERS)
    assert slow_steps(sqlite_database, selects) == []


def test_a_statistics_run_does_not_make_pages_sort(sqlite_database: Database) -> None:
    """What SQLite knows about the table after ANALYZE leads it to other indexes than before."""
    reader = TrialReader(sqlite_database)
    add_job(JobStore(sqlite_database), "j")
    save_trials(sqlite_database, "j", *TRIALS, *(trial(number, state=TrialState.FAILED) for number in range(30, 33)))
    with sqlite_database.write("testing") as connection:
        connection.exec_driver_sql("ANALYZE")
    with watched_selects() as selects:
        for sort, descending, (state, feasible) in itertools.product(SORTS, (False, True), FILTERS):
            reader.page("j", cursor=None, limit=5, sort=sort, descending=descending, state=state, feasible=feasible)
    assert slow_steps(sqlite_database, selects) == []


FOREIGN = (
    "nonsense!",
    "é",
    "",
    "e30",
    write_cursor("number", False, None),
    write_cursor("speedup", False, 1.5, 3),
    write_cursor("number", True, None, 3),
    write_cursor("number", False, 1.5, 3),
    write_cursor("number", False, None, True),
    write_cursor("number", False, None, 2**31),
    write_cursor("number", False, None, -1),
    write_cursor("number", False, None, "3"),
    "W" * 100_001,
)


def test_a_cursor_of_another_list_is_refused(reader: TrialReader) -> None:
    for cursor in FOREIGN:
        with pytest.raises(JobError) as caught:
            reader.page("j", cursor=cursor, limit=5)
        assert caught.value.field == "cursor"
        assert str(caught.value) == (
            f"cursor must be what an earlier page of this very list gave as `next`, got '{cursor[:80]}'. "
            "Leave it out to begin at the first page."
        )


def test_a_sort_that_is_not_offered_is_refused(reader: TrialReader) -> None:
    with pytest.raises(UnknownName, match=r"unknown sort 'speed'\. Did you mean 'speedup'") as caught:
        reader.page("j", cursor=None, limit=5, sort="speed")
    assert caught.value.field == "sort"


def test_one_trial_is_given_as_it_was_stored(reader: TrialReader) -> None:
    assert TrialResult.model_validate_json(reader.text("j", 7)) == TRIALS[7]
    for number in (23, -1, 2**31, 2**80):
        with pytest.raises(NotFound) as caught:
            reader.text("j", number)
        assert str(caught.value) == f"job 'j' has no trial {number}; GET /api/v1/jobs/j/trials lists those there are"


def test_rows_come_by_number_over_many_pages(reader: TrialReader, database: Database) -> None:
    assert list(reader.rows("j")) == [summarize(one) for one in TRIALS]
    source = {"job_id": "other", "state": TrialState.COMPLETE, "plan_digest": "d", "feasible": False, "result": "{}"}
    more = [
        source | {"number": number, "created_at": database.now(), "summary": summarize(trial(number)).model_dump_json()}
        for number in range(1, STREAMED + 20)
    ]
    with database.write("testing") as connection:
        connection.execute(database.upsert(TrialRow), more)
    assert [one.number for one in reader.rows("other")] == list(range(STREAMED + 20))


def test_a_job_without_trials_has_an_empty_list(database: Database) -> None:
    add_job(JobStore(database), "j")
    reader = TrialReader(database)
    assert reader.page("j", cursor=None, limit=5) == '{"items":[],"next":null}'
    assert list(reader.rows("j")) == []


@pytest.mark.parametrize("job_id", ["gone", "nul\0"])
def test_an_unknown_job_is_told_apart_from_one_without_trials(reader: TrialReader, job_id: str) -> None:
    for use in (lambda: reader.page(job_id, cursor=None, limit=5), lambda: reader.text(job_id, 0), lambda: reader.rows(job_id)):
        with pytest.raises(NotFound) as caught:
            use()
        assert str(caught.value) == f"job '{job_id}' is not known to this server; GET /api/v1/jobs lists those that are"
