"""The hub against a log in memory: nothing lost, nothing twice, few reads, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from server.api import hub as hub_module
from server.api.hub import EventHub, StoredEvent
from tuner.errors import StorageError
from tuner.store import JobState


class FakeLog:
    """Events of jobs as the store would give them, and how often it was asked."""

    def __init__(self, *jobs: str) -> None:
        self.jobs: dict[str, tuple[list[StoredEvent], JobState]] = {job: ([], JobState.RUNNING) for job in jobs}
        self.reads = 0
        self.looks = 0
        self.away = False
        self._lock = threading.Lock()

    def append(self, job: str, count: int = 1, state: JobState | None = None) -> None:
        with self._lock:
            events, before = self.jobs[job]
            first = len(events) + 1
            events.extend((seq, f'{{"seq":{seq},"kind":"message"}}') for seq in range(first, first + count))
            self.jobs[job] = (events, state or before)

    def after(self, job_id: str, seq: int, limit: int = 500) -> list[StoredEvent]:
        with self._lock:
            self.reads += 1
            self._check()
            return self.jobs[job_id][0][seq : seq + limit] if job_id in self.jobs else []

    def latest(self, job_ids: Sequence[str]) -> dict[str, tuple[int, JobState]]:
        with self._lock:
            self.looks += 1
            self._check()
            return {job: (len(self.jobs[job][0]), self.jobs[job][1]) for job in job_ids if job in self.jobs}

    def _check(self) -> None:
        if self.away:
            raise StorageError("the database is away")


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def opened(hub: EventHub, job: str, after: int = 0) -> aclosing[Any]:
    return aclosing(cast("Any", hub.events(job, after)))


async def seqs(hub: EventHub, job: str, after: int = 0) -> list[int]:
    """Every number that a stream gives until it ends."""
    async with opened(hub, job, after) as batches:
        return [seq async for batch in batches for seq, _ in batch]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def first(batches: AsyncIterator[list[StoredEvent]]) -> list[int]:
    return [seq for seq, _ in await anext(batches)]


@pytest.mark.parametrize("seed", range(8))
def test_no_event_is_lost_and_none_comes_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "KEPT", 20)  # So that readers fall behind what is kept.
    monkeypatch.setattr(hub_module, "BATCH", 7)
    log, chance, total = FakeLog("a", "b"), random.Random(seed), 300

    def write() -> None:
        dice = random.Random(seed + 1000)
        left = {"a": total, "b": total}
        while left:
            job = dice.choice(sorted(left))
            count = min(left[job], dice.choice((1, 1, 2, 40)))
            left[job] -= count
            log.append(job, count, JobState.SUCCEEDED if not left[job] else None)
            left = {name: count for name, count in left.items() if count}
            threading.Event().wait(dice.choice((0, 0, 0.001)))

    async def read(hub: EventHub, job: str, dice: random.Random) -> list[int]:
        got: list[int] = []
        while len(got) < total:
            patience = dice.randrange(1, 12)
            async with opened(hub, job, got[-1] if got else 0) as batches:
                async for batch in batches:
                    got += [seq for seq, _ in batch]
                    patience -= 1
                    if not patience:
                        break
                    await asyncio.sleep(dice.choice((0, 0, 0.001, 0.01)))
        return got

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001)
        writer = threading.Thread(target=write)
        writer.start()
        readers = [read(hub, job, random.Random(chance.random())) for job in ("a", "b") for _ in range(4)]
        for got in await asyncio.gather(*readers):
            assert got == list(range(1, total + 1))
        writer.join()
        assert (hub.streams, hub.watched) == (0, 0)

    run(test)


def test_200_streams_share_the_reads_of_one_job() -> None:
    log = FakeLog("a")
    log.append("a", 500)

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.01)
        streams = [asyncio.create_task(seqs(hub, "a")) for _ in range(200)]
        await until(lambda: hub.streams == 200)
        threads = threading.active_count()
        for _ in range(20):
            log.append("a", 10)
            await asyncio.sleep(0.005)
        assert threading.active_count() <= threads + hub_module.READERS
        log.append("a", 1, JobState.SUCCEEDED)
        for got in await asyncio.gather(*streams):
            assert got == list(range(1, 702))

    run(test)
    assert log.reads <= 3 + 21  # 500 events in pages of 200, then one read at most for each append.


def test_a_late_stream_reads_what_is_no_longer_kept_from_the_store() -> None:
    log = FakeLog("a")
    log.append("a", 2 * hub_module.KEPT, JobState.FAILED)

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001)
        assert await seqs(hub, "a") == list(range(1, 2001))
        assert await seqs(hub, "a", 1990) == list(range(1991, 2001))

    run(test)


def test_a_settled_job_that_is_resumed_goes_on() -> None:
    log = FakeLog("a")
    log.append("a", 3, JobState.CANCELLED)

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001)
        async with opened(hub, "a") as slow:
            assert await first(slow) == [1, 2, 3]
            looks = log.looks
            await until(lambda: log.looks > looks + 1)  # It is known to be settled, and the slow stream keeps that in memory.
            log.append("a", 1, JobState.QUEUED)
            joined = asyncio.create_task(seqs(hub, "a", 3))
            looks = log.looks
            await until(lambda: log.looks > looks + 1)
            assert await first(slow) == [4]
            log.append("a", 1, JobState.SUCCEEDED)
            assert await first(slow) == [5]
            assert await joined == [4, 5]
            with pytest.raises(StopAsyncIteration):
                await anext(slow)

    run(test)


def test_a_stream_ends_with_the_job_that_it_is_about() -> None:
    log = FakeLog("a")
    log.append("a")

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001)
        async with opened(hub, "a") as batches:
            assert await first(batches) == [1]
            del log.jobs["a"]
            with pytest.raises(StopAsyncIteration):
                await anext(batches)

    run(test)


def test_quiet_streams_are_kept_alive() -> None:
    async def test() -> None:
        hub = EventHub(FakeLog("a"), poll_seconds=0.001, keep_alive_seconds=0.01)
        async with opened(hub, "a") as batches:
            assert [await anext(batches), await anext(batches)] == [[], []]

    run(test)


def test_closing_ends_all_streams_and_those_to_come() -> None:
    log = FakeLog("a", "b")

    async def test() -> None:
        hub = EventHub(log, poll_seconds=60)
        streams = [asyncio.create_task(seqs(hub, job)) for job in ("a", "b") for _ in range(50)]
        await until(lambda: hub.streams == 100)
        threading.Thread(target=hub.close).start()
        assert await asyncio.gather(*streams) == [[]] * 100
        assert (hub.streams, hub.watched) == (0, 0)
        assert await seqs(hub, "a") == []
        hub.close()

    run(test)


def test_a_hub_without_streams_can_be_closed() -> None:
    EventHub(FakeLog()).close()


def test_who_leaves_leaves_nothing_behind() -> None:
    log = FakeLog("a")

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001)
        before = asyncio.all_tasks()
        stream = asyncio.create_task(seqs(hub, "a"))
        await until(lambda: log.looks > 2)
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        await asyncio.sleep(0)
        assert (hub.streams, hub.watched) == (0, 0)
        await until(lambda: asyncio.all_tasks() == before)
        looks = log.looks
        await asyncio.sleep(0.02)
        assert log.looks == looks
        log.append("a", 2, JobState.SUCCEEDED)
        assert await seqs(hub, "a") == [1, 2]

    run(test)


def test_streams_outlive_a_store_that_is_away(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PAUSE_SECONDS", 0.001)
    log = FakeLog("a")
    log.append("a")

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001)
        async with opened(hub, "a") as batches:
            assert await first(batches) == [1]
            log.away, looks = True, log.looks
            await until(lambda: log.looks > looks + 5)
            log.append("a", 1, JobState.SUCCEEDED)
            log.away = False
            assert await first(batches) == [2]
            with pytest.raises(StopAsyncIteration):
                await anext(batches)

    with caplog.at_level(logging.INFO, "accutune.events"):
        run(test)
    assert [record.message for record in caplog.records] == [
        "the events of jobs cannot be read; trying again until they can",
        "the events of jobs can be read again",
    ]


def test_a_slow_reader_outlives_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "KEPT", 2)
    monkeypatch.setattr(hub_module, "PAUSE_SECONDS", 0.001)
    log = FakeLog("a")
    log.append("a")

    async def test() -> None:
        hub = EventHub(log, poll_seconds=0.001, keep_alive_seconds=0.01)
        async with opened(hub, "a") as slow, opened(hub, "a") as fast:
            while not (begun := await first(slow)):  # On a busy machine it may be told first that the stream is alive.
                pass
            assert begun == [1]
            log.append("a", 9)
            got: list[int] = []
            while len(got) < 10:
                got += await first(fast)
            log.away = True
            assert await first(slow) == []
            log.away = False
            while not (later := await first(slow)):
                pass
            assert later == list(range(2, 11))

    run(test)


def test_streams_of_two_loops_are_refused() -> None:
    hub = EventHub(FakeLog("a"))

    async def test() -> None:
        async with opened(hub, "a") as batches:
            waiting = asyncio.create_task(anext(batches))
            await until(lambda: hub.streams == 1)
            with pytest.raises(RuntimeError, match="Give each loop a hub of its own"):
                await asyncio.to_thread(asyncio.run, seqs(hub, "a"))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    run(test)
