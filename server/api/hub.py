"""Hands the events of jobs to any number of streams: one task asks the store for all of them, and what it reads is shared.

Everything here runs in one event loop, except `close`, which may be called from anywhere."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import islice, takewhile
from typing import Protocol, TypeVar

import anyio.to_thread

from tuner.store import JobState
from tuner.wire import SETTLED

KEPT = 1000
"""Events per watched job in memory. Who is further behind reads from the store."""
BATCH = 200
"""Events at most that a stream is given, or read from the store, at once."""
READERS = 4
"""Threads at most that read for streams: the others belong to the rest of the service."""
PAUSE_SECONDS = 1.0
"""Between attempts while the store cannot be read."""

log = logging.getLogger("accutune.events")
StoredEvent = tuple[int, str]
"""seq, and the JobEvent as JSON."""
Value = TypeVar("Value")


class EventLog(Protocol):
    """What the hub needs of `EventReader`."""

    def after(self, job_id: str, seq: int, limit: int = 500) -> list[StoredEvent]: ...

    def latest(self, job_ids: Sequence[str]) -> dict[str, tuple[int, JobState]]: ...


class Watch:
    """What is known of one job while somebody watches it."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.streams = 0
        self.changed = asyncio.Event()
        """Replaced whenever it was set: each wait is for what comes after it began."""
        self.last: int | None = None
        """The newest event that was read; None before the first look."""
        self._recent: deque[StoredEvent] = deque(maxlen=KEPT)
        self._seen = float("-inf")
        self._end: int | None = None

    def learn(self, events: Sequence[StoredEvent]) -> None:
        self._recent.extend(events)
        self.last = events[-1][0]
        self.notify()

    def saw(self, moment: float, found: tuple[int, JobState] | None) -> None:
        """Take down the job's last event and state as of `moment`; None: there is no such job any more."""
        seq, state = found or (-1, None)
        self._seen, self._end = moment, seq if state is None or state in SETTLED else None
        if self._end is not None:
            self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def over(self, after: int, joined: float) -> bool:
        """Is nothing to come after event `after`, by a look younger than `joined`? A settled job that was resumed goes on."""
        return self._seen >= joined and self._end is not None and (self._end < 0 or self._end == after)

    def recent(self, after: int) -> list[StoredEvent] | None:
        """The next events after `after`; None where the oldest of them is no longer kept."""
        if not self.last or after >= self.last:
            return []
        if not self._recent or after + 1 < self._recent[0][0]:
            return None
        newer = list(takewhile(lambda event: event[0] > after, reversed(self._recent)))
        return list(islice(reversed(newer), BATCH))


class EventHub:
    """One for the process. It asks the store only while somebody watches, and about watched jobs alone."""

    def __init__(self, events: EventLog, poll_seconds: float = 0.25, keep_alive_seconds: float = 15.0) -> None:
        self._events, self._poll_seconds, self._keep_alive_seconds = events, poll_seconds, keep_alive_seconds
        self._watches: dict[str, Watch] = {}
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._limiter: anyio.CapacityLimiter | None = None

    @property
    def streams(self) -> int:
        """How many are open."""
        return sum(watch.streams for watch in list(self._watches.values()))

    @property
    def watched(self) -> int:
        """How many jobs they are about."""
        return len(self._watches)

    async def events(self, job_id: str, after: int) -> AsyncIterator[list[StoredEvent]]:
        """The events after number `after` in batches, and an empty list whenever nothing has happened for `keep_alive_seconds`.

        Ends when the job is settled, or gone, and everything was given, and when the hub is closed. Must be closed (aclosing)."""
        if self._closed:
            return
        watch, joined = self._join(job_id), asyncio.get_running_loop().time()
        try:
            while not self._closed:
                changed = watch.changed
                if batch := await self._next(watch, after):
                    after = batch[-1][0]
                    yield batch
                elif watch.over(after, joined):
                    return
                elif not await _within(changed, self._keep_alive_seconds):
                    yield []
        finally:
            self._leave(watch)

    def close(self) -> None:
        """End all streams at once, and those to come. For any thread, and for signal handlers."""
        self._closed = True
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # The loop has ended by itself, and its streams with it.
                loop.call_soon_threadsafe(self._end_all)

    def _end_all(self) -> None:
        for watch in self._watches.values():
            watch.notify()

    def _join(self, job_id: str) -> Watch:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError("the streams of one EventHub must all run in the same event loop. Give each loop a hub of its own.")
        if job_id not in self._watches:
            self._watches[job_id] = Watch(job_id)
            self._wake.set()
        watch = self._watches[job_id]
        watch.streams += 1
        if self._task is None:
            self._loop, self._wake, self._limiter = loop, asyncio.Event(), anyio.CapacityLimiter(READERS)
            # A context of its own: what it logs is about no request.
            self._task = loop.create_task(self._poll(), context=Context())
        return watch

    def _leave(self, watch: Watch) -> None:
        watch.streams -= 1
        if not watch.streams:
            del self._watches[watch.job_id]
        if not self._watches and self._task is not None:
            self._task.cancel()
            self._task = self._loop = self._limiter = None

    async def _next(self, watch: Watch, after: int) -> list[StoredEvent]:
        recent = watch.recent(after)
        if recent is not None:
            return recent
        try:
            return await self._in_thread(partial(self._events.after, watch.job_id, after, BATCH))
        except Exception:  # The poll's task tells of it, once, and of the end of it.
            await _within(watch.changed, PAUSE_SECONDS)
            return []

    async def _poll(self) -> None:
        failing = False
        while True:
            self._wake.clear()
            try:
                await self._look()
            except Exception:  # A store that is away for a minute must not end the streams.
                if not failing:
                    log.exception("the events of jobs cannot be read; trying again until they can")
                failing = True
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if failing:
                log.info("the events of jobs can be read again")
            failing = False
            await _within(self._wake, self._poll_seconds)

    async def _look(self) -> None:
        watches = list(self._watches.values())
        moment = asyncio.get_running_loop().time()
        latest = await self._in_thread(partial(self._events.latest, [watch.job_id for watch in watches]))
        for watch in watches:
            found = latest.get(watch.job_id)
            if found is not None:
                await self._catch_up(watch, found[0])
            watch.saw(moment, found)

    async def _catch_up(self, watch: Watch, seq: int) -> None:
        """Read what is new up to `seq`; the first time, what is kept."""
        if watch.last is None:
            watch.last = max(0, seq - KEPT)
        while watch.last < seq and watch.streams:
            new = await self._in_thread(partial(self._events.after, watch.job_id, watch.last, BATCH))
            if not new:
                return
            watch.learn(new)

    async def _in_thread(self, read: Callable[[], Value]) -> Value:
        """Reading has no effects, so a stream that ends need not wait for it."""
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._limiter)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` came within that time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
