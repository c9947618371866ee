"""Events: numbered without gaps or repeats, whoever writes them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
from store_samples import START, add_job, slow_steps, watched_selects

from server.store.database import Database, NotFound
from server.store.events import EventReader, append_event, state_event
from server.store.jobs import JobStore
from tuner.store import JobState
from tuner.wire import JobEvent


@pytest.fixture
def events(database: Database) -> EventReader:
    add_job(JobStore(database), "j")
    return EventReader(database)


def say(database: Database, message: str, job_id: str = "j") -> int:
    with database.write("testing") as connection:
        return append_event(connection, job_id, JobEvent(seq=77, at=START, kind="message", message=message), database.now())


def test_an_event_gets_the_next_number_and_the_moment_of_its_writing(events: EventReader, database: Database) -> None:
    assert (say(database, "a"), say(database, "b")) == (2, 3)
    read = [JobEvent.model_validate_json(text) for _, text in events.after("j", 1)]
    assert [(event.seq, event.message) for event in read] == [(2, "a"), (3, "b")]
    assert START < read[0].at < read[1].at


def test_reading_begins_anywhere_and_ends_at_the_limit(events: EventReader, database: Database) -> None:
    for number in range(5):
        say(database, str(number))
    assert [seq for seq, _ in events.after("j", 0)] == [1, 2, 3, 4, 5, 6]
    assert [(seq, json.loads(text)["seq"]) for seq, text in events.after("j", 2, limit=2)] == [(3, 3), (4, 4)]
    assert [events.after("j", seq) for seq in (6, 2**31, 2**80)] == [[], [], []]
    assert len(events.after("j", -(2**80))) == 6
    assert events.after("gone", 0) == events.after("nul\0", 0) == []


def test_four_threads_leave_no_gap_and_no_reader_ever_sees_one(events: EventReader, database: Database) -> None:
    together, over = Barrier(5), Event()

    def write(thread: int) -> list[int]:
        together.wait()
        return [say(database, f"{thread} {number}") for number in range(15)]

    def follow() -> list[int]:
        """Like a stream: always from the last number seen."""
        together.wait()
        seen: list[int] = []
        while True:
            last_look = over.is_set()
            seen += [seq for seq, _ in events.after("j", len(seen), limit=7)]
            if last_look and not events.after("j", len(seen)):
                return seen

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        given = [seq for seqs in pool.map(write, range(4)) for seq in seqs]
        over.set()
        seen = following.result()
    assert sorted(given) == list(range(2, 62))
    assert seen == list(range(1, 62))
    messages = [json.loads(text)["message"] for _, text in events.after("j", 1)]
    assert {thread: [m for m in messages if m.startswith(thread)] for thread in "0123"} == {
        thread: [f"{thread} {number}" for number in range(15)] for thread in "0123"
    }


def test_an_event_that_is_taken_back_leaves_no_gap(events: EventReader, database: Database) -> None:
    with pytest.raises(RuntimeError), database.write("testing") as connection:
        append_event(connection, "j", state_event(JobState.RUNNING, START), START)
        raise RuntimeError("the rest of the transaction broke")
    assert say(database, "next") == 2
    assert [seq for seq, _ in events.after("j", 0)] == [1, 2]


def test_an_event_of_an_unknown_job_is_refused(database: Database) -> None:
    with pytest.raises(NotFound, match="job 'gone' is not known to this server"):
        say(database, "hello", job_id="gone")


def test_a_message_that_no_database_can_hold_is_told_as_far_as_it_can(events: EventReader, database: Database) -> None:
    say(database, "a\0b \udcff")
    assert json.loads(events.after("j", 1)[0][1])["message"] == "a\ufffdb ?"


def test_many_jobs_are_looked_at_at_once(events: EventReader, database: Database) -> None:
    add_job(JobStore(database), "k")
    JobStore(database).cancel("k")
    with watched_selects() as selects:
        assert events.latest(["j", "k", "gone", "nul\0"]) == {"j": (1, JobState.QUEUED), "k": (2, JobState.CANCELLED)}
    assert len(selects) == 1
    assert events.latest([]) == {}


def test_events_are_read_from_an_index(sqlite_database: Database) -> None:
    reader = EventReader(sqlite_database)
    with watched_selects() as selects:
        reader.after("j", 3)
        reader.latest(["j", "k"])
    assert len(selects) == 2
    assert slow_steps(sqlite_database, selects) == []
