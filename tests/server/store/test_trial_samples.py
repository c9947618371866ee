"""Which trials are drawn: the ones that tell the most, and others evenly."""

from __future__ import annotations

import itertools
import json

import pytest
from sqlalchemy import update
from store_samples import add_job, save_trials, slow_steps, trial, watched_selects

from server.store.database import Database, NotFound
from server.store.jobs import JobStore
from server.store.models import TrialRow
from server.store.trial_lists import TrialReader
from server.store.trial_samples import LATEST, Mark, improvements, sampled, spread
from tuner.results import TrialState
from tuner.wire import TrialSample, summarize

COMPLETE, FAILED = TrialState.COMPLETE, TrialState.FAILED


def miss(number: int, violation: float | None = 1.0, state: TrialState = COMPLETE) -> Mark:
    return Mark(number, state, False, violation, None, None)


def met(number: int, speedup: float | None = None, size: float | None = None) -> Mark:
    return Mark(number, COMPLETE, True, -0.1, speedup, size)


def test_what_fits_is_whole() -> None:
    marks = [miss(number) for number in range(0, 40, 2)]
    assert sampled(marks, 20) == list(range(0, 40, 2))
    assert sampled([], 1) == []


def test_improvements_are_the_nearest_misses_and_then_the_faster_and_smaller() -> None:
    marks = [
        *(miss(0, 0.5), miss(1, 0.7), miss(2, 0.4), miss(3, None), miss(4, 0.1, FAILED)),
        *(met(5), miss(6, 0.01), met(7, 1.5, 100.0), met(8, 1.4, 100.0), met(9, 1.2, 90.0), met(10, 1.6), met(11, None, 95.0)),
    ]
    assert list(improvements(marks)) == [0, 2, 5, 7, 9, 10]


def test_a_sample_holds_improvements_extremes_and_the_last_ones() -> None:
    marks = [miss(number, 2.0) for number in range(1000)]
    marks[333], marks[400] = miss(333, 1.0), miss(400, 9.0)
    marks[600], marks[700], marks[710] = met(600, 1.5, 10.0), met(700, 1.6, 30.0), met(710, 1.1, 20.0)
    found = sampled(marks, 60)
    assert len(found) == 60
    assert found == sorted(set(found))
    assert {0, 333, 400, 600, 700, 710} <= set(found)
    assert found[-LATEST:] == list(range(1000 - LATEST, 1000))
    assert sampled(marks, 60) == found


def test_the_rest_is_spread_evenly() -> None:
    found = sampled([miss(number) for number in range(10_000)], 220)
    steps = [after - before for before, after in itertools.pairwise(found[:-LATEST])]
    assert max(steps) <= 51
    assert min(steps[1:]) >= 49


@pytest.mark.parametrize("most", [1, 2, 3, 5, 30])
def test_more_improvements_than_room_leave_the_best_and_others_evenly(most: int) -> None:
    marks = [met(number, 1.0 + number, 1e6 - number) for number in range(500)]
    found = sampled(marks, most)
    assert len(found) == most
    assert 499 in found


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (-1, []), (1, [9]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))]
)
def test_spreading(count: int, expected: list[int]) -> None:
    assert spread(range(10), count) == expected
    assert spread([], count) == []


@pytest.fixture
def reader(database: Database) -> TrialReader:
    add_job(JobStore(database), "j")
    return TrialReader(database)


TRIALS = tuple(trial(number, violation=0.5 - number / 100, speedup=1.0 + number / 10, size=100.0) for number in range(60))


def test_the_sample_shows_the_summaries_by_number(reader: TrialReader, database: Database) -> None:
    save_trials(database, "j", *reversed(TRIALS))
    whole = TrialSample.model_validate_json(reader.sample("j", 60))
    assert (whole.items, whole.total) == (tuple(summarize(one) for one in TRIALS), 60)
    part = TrialSample.model_validate_json(reader.sample("j", 7))
    assert part.total == 60
    assert [one.number for one in part.items] == sorted({one.number for one in part.items})
    assert len(part.items) == 7
    assert part.items[-1] == summarize(TRIALS[59])


def test_trials_that_wait_or_were_cancelled_are_left_out(reader: TrialReader, database: Database) -> None:
    states = (TrialState.COMPLETE, TrialState.QUEUED, TrialState.RUNNING, TrialState.CANCELLED, TrialState.STOPPED, TrialState.FAILED)
    save_trials(database, "j", *(trial(number, state=state) for number, state in enumerate(states)))
    sample = json.loads(reader.sample("j", 100))
    assert ([one["number"] for one in sample["items"]], sample["total"]) == ([0, 2, 4, 5], 4)
    assert reader.finished("j") == 3


def test_stored_summaries_are_passed_on_as_they_are(reader: TrialReader, database: Database) -> None:
    save_trials(database, "j", trial(0))
    with database.write("testing") as connection:
        connection.execute(update(TrialRow).values(summary='{"from":  "another version"}'))
    assert reader.sample("j", 5) == '{"items":[{"from":  "another version"}],"total":1}'


def test_recorded_trials_come_with_their_times(reader: TrialReader, database: Database) -> None:
    save_trials(database, "j", trial(0, state=TrialState.RUNNING), trial(1, state=TrialState.RUNNING), trial(0, speedup=2.0))
    first, second = reader.recorded("j", 5)
    assert first.trial == trial(0, speedup=2.0)
    assert first.finished is not None
    assert first.created < second.created < first.finished
    assert (second.trial, second.finished) == (trial(1, state=TrialState.RUNNING), None)
    assert [one.trial.number for one in reader.recorded("j", 1)] == [0]


def test_no_sample_reads_or_sorts_the_table(sqlite_database: Database) -> None:
    """Also after ANALYZE, which leads SQLite to other indexes than before."""
    reader = TrialReader(sqlite_database)
    add_job(JobStore(sqlite_database), "j")
    save_trials(sqlite_database, "j", *TRIALS)
    with watched_selects() as selects:
        for most in (5, 100):
            reader.sample("j", most)
            reader.recorded("j", most)
        reader.finished("j")
    assert len(selects) == 9
    assert slow_steps(sqlite_database, selects) == []
    with sqlite_database.write("testing") as connection:
        connection.exec_driver_sql("ANALYZE")
    assert slow_steps(sqlite_database, selects) == []


def test_the_texts_of_a_sample_alone_are_read(reader: TrialReader, database: Database) -> None:
    save_trials(database, "j", *TRIALS)
    with watched_selects() as selects:
        reader.sample("j", 5)
    assert ["summary" in statement for statement, _ in selects] == [False, True]
    assert "result" not in " ".join(statement for statement, _ in selects)
    assert "IN (" in selects[1][0]


@pytest.mark.parametrize("job_id", ["gone", "nul\0"])
def test_an_unknown_job_has_no_sample(reader: TrialReader, job_id: str) -> None:
    for use in (lambda: reader.sample(job_id, 5), lambda: reader.recorded(job_id, 5), lambda: reader.finished(job_id)):
        with pytest.raises(NotFound):
            use()
    assert reader.sample("j", 5) == '{"items":[],"total":0}'
    assert (reader.recorded("j", 5), reader.finished("j")) == ([], 0)
