"""Lists of trials, put together from the JSON that is stored beside the columns they are sorted and filtered by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, tuple_

from server.store.database import Database, NotFound
from server.store.events import unknown_job
from server.store.lookups import foreign_cursor, plain, read_cursor, storable_number, write_cursor
from server.store.models import JobRow, TrialRow
from server.store.trial_samples import DRAWN, Mark, sampled
from tuner.errors import UnknownName
from tuner.results import FINISHED, TrialResult, TrialState
from tuner.store import from_json
from tuner.wire import TrialSummary

NUMBER = "number"
VALUES: dict[str, Any] = {"violation": TrialRow.violation, "speedup": TrialRow.speedup, "size_bytes": TrialRow.size_bytes}
"""What a list can be sorted by besides the number. A trial may lack these; it comes last then."""
SORTS = (NUMBER, *VALUES)
STREAMED = 500
MARK = (TrialRow.number, TrialRow.state, TrialRow.feasible, TrialRow.violation, TrialRow.speedup, TrialRow.size_bytes)
"""What a sample is chosen by: these lie before the long texts, which are read of the chosen ones alone."""


@dataclass(frozen=True)
class Recorded:
    """A trial with when it was begun and when it was last finished."""

    trial: TrialResult
    created: datetime
    finished: datetime | None


@dataclass(frozen=True)
class _Order:
    """How a list is sorted. Its rows are the job's trials that have a value, then those that have none, each part on an index."""

    sort: str
    descending: bool

    @property
    def parts(self) -> tuple[bool, ...]:
        """Per part of the list: do its rows have a value of their own beside the number?"""
        return (False,) if self.sort == NUMBER else (True, False)

    def part(self, job_id: str, valued: bool) -> Select[*tuple[Any, ...]]:
        column = VALUES.get(self.sort, TrialRow.number)
        keys = (column, TrialRow.number) if valued else (TrialRow.number,)
        wanted = select(TrialRow.number, column.label("value"), TrialRow.summary).where(TrialRow.job_id == job_id)
        if self.sort != NUMBER:
            wanted = wanted.where(column.is_not(None) if valued else column.is_(None))
        return wanted.order_by(*(key.desc() if self.descending else key.asc() for key in keys))

    def beyond(self, value: float | None, number: int) -> ColumnElement[bool]:
        """What comes after a row, within its part."""
        if value is None:
            return TrialRow.number < number if self.descending else TrialRow.number > number
        here = tuple_(VALUES[self.sort], TrialRow.number)
        return here < (value, number) if self.descending else here > (value, number)

    def cursor(self, value: float | None, number: int) -> str:
        return write_cursor(self.sort, self.descending, None if self.sort == NUMBER else value, number)

    def place(self, cursor: str) -> tuple[float | None, int]:
        """Value and number of the row a cursor stands at. JobError for a cursor of another list."""
        match read_cursor(cursor):
            case [self.sort, self.descending, None | float() | int() as value, int() as number]:
                known = not isinstance(value, bool) and not isinstance(number, bool) and storable_number(number)
                if known and (value is None or self.sort != NUMBER):
                    return (None if value is None else float(value)), number
        raise foreign_cursor(cursor)


class TrialReader:
    """Reads trials for people and programs that watch; NotFound for a job or trial that is not there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self,
        job_id: str,
        *,
        cursor: str | None,
        limit: int,
        sort: str = NUMBER,
        descending: bool = False,
        state: TrialState | None = None,
        feasible: bool | None = None,
    ) -> str:
        """A Page[TrialSummary] as JSON. sort: one of SORTS; trials without a value come last in either direction."""
        if sort not in SORTS:
            raise UnknownName("sort", sort, SORTS, field="sort")
        order = _Order(sort, descending)
        place = None if cursor is None else order.place(cursor)
        with self._database.read(f"listing the trials of job '{job_id}'") as connection:
            rows = _rows(connection, plain(job_id), order, place, limit + 1, _filters(state, feasible))
        if not rows:
            self._require(job_id)
        last = rows[limit - 1] if len(rows) > limit else None
        following = json.dumps(None if last is None else order.cursor(last.value, last.number))
        return f'{{"items":[{",".join(row.summary for row in rows[:limit])}],"next":{following}}}'

    def text(self, job_id: str, number: int) -> str:
        """A TrialResult as JSON, as it was stored."""
        wanted = select(TrialRow.result).where(TrialRow.job_id == plain(job_id), TrialRow.number == number)
        if storable_number(number):
            with self._database.read(f"reading trial {number} of job '{job_id}'") as connection:
                text = connection.scalar(wanted)
            if text is not None:
                return text
        self._require(job_id)
        raise NotFound(f"job '{job_id}' has no trial {number}; GET /api/v1/jobs/{job_id}/trials lists those there are")

    def sample(self, job_id: str, most: int) -> str:
        """A TrialSample as JSON: at most `most` of the trials that run or are finished, by number; see `trial_samples`."""
        rows, total = self._sampled(job_id, most, TrialRow.summary)
        return f'{{"items":[{",".join(row.summary for row in rows)}],"total":{total}}}'

    def recorded(self, job_id: str, most: int) -> list[Recorded]:
        """The same trials with everything that was recorded of them."""
        rows, _ = self._sampled(job_id, most, TrialRow.created_at, TrialRow.finished_at, TrialRow.result)
        what = f"of job '{job_id}'"
        return [Recorded(from_json(TrialResult, row.result, f"trial {row.number} {what}"), row.created_at, row.finished_at) for row in rows]

    def finished(self, job_id: str) -> int:
        """How many trials are finished."""
        wanted = select(func.count()).where(TrialRow.job_id == plain(job_id), TrialRow.state.in_(FINISHED))
        with self._database.read(f"counting the trials of job '{job_id}'") as connection:
            count = connection.scalar(wanted) or 0
        if not count:
            self._require(job_id)
        return count

    def rows(self, job_id: str) -> Iterator[TrialSummary]:
        """All trials by number, read bit by bit. An unknown job is told at once."""
        self._require(job_id)
        return self._stream(plain(job_id))

    def _stream(self, job_id: str) -> Iterator[TrialSummary]:
        order, place = _Order(NUMBER, False), None
        while True:
            with self._database.read(f"reading the trials of job '{job_id}'") as connection:
                rows = _rows(connection, job_id, order, place, STREAMED, [])
            for row in rows:
                yield from_json(TrialSummary, row.summary, f"trial {row.number} of job '{job_id}'")
            if len(rows) < STREAMED:
                return
            place = (None, rows[-1].number)

    def _sampled(self, job_id: str, most: int, *columns: Any) -> tuple[list[Any], int]:
        """The sampled rows with these columns, by number, and of how many trials the sample was taken."""
        with self._database.read(f"sampling the trials of job '{job_id}'") as connection:
            chosen, total = _sample(connection, plain(job_id), most)
            rows = connection.execute(_these(plain(job_id), chosen, total, *columns)).all() if chosen else []
        if not total:
            self._require(job_id)
        known = {row.number: row for row in rows}
        # On PostgreSQL the job may have been deleted between the two statements.
        return [known[number] for number in chosen if number in known], total

    def _require(self, job_id: str) -> None:
        with self._database.read(f"reading job '{job_id}'") as connection:
            known = connection.scalar(select(JobRow.job_id).where(JobRow.job_id == plain(job_id)))
        if known is None:
            raise unknown_job(job_id)


def _filters(state: TrialState | None, feasible: bool | None) -> list[ColumnElement[bool]]:
    asked: list[tuple[Any, Any]] = [(TrialRow.state, state), (TrialRow.feasible, feasible)]
    return [column == value for column, value in asked if value is not None]


def _sample(connection: Connection, job_id: str, most: int) -> tuple[list[int], int]:
    """The numbers of the sample, and of how many trials it was taken."""
    rows = connection.execute(select(*MARK).where(TrialRow.job_id == job_id).order_by(TrialRow.number))
    # Not a filter of the statement: it would take the index on states, and sort.
    shown = [mark for mark in map(Mark._make, rows) if mark.state in DRAWN]
    return sampled(shown, most), len(shown)


def _these(job_id: str, numbers: list[int], total: int, *columns: Any) -> Select[*tuple[Any, ...]]:
    """The rows of these numbers; where they are all of `total`, those from the first to the last, a few others among them perhaps."""
    chosen = TrialRow.number.between(numbers[0], numbers[-1]) if len(numbers) == total else TrialRow.number.in_(numbers)
    return select(TrialRow.number, *columns).where(TrialRow.job_id == job_id, chosen)


def _rows(
    connection: Connection,
    job_id: str,
    order: _Order,
    place: tuple[float | None, int] | None,
    limit: int,
    filters: list[ColumnElement[bool]],
) -> list[Any]:
    """Up to `limit` rows (number, value, summary) after `place`."""
    rows: list[Any] = []
    for valued in order.parts:
        if place is not None and place[0] is None and valued:
            continue
        wanted = order.part(job_id, valued).where(*filters).limit(limit - len(rows))
        if place is not None and (place[0] is not None) == valued:
            wanted = wanted.where(order.beyond(*place))
        rows += connection.execute(wanted).all()
        if len(rows) >= limit:
            break
    return rows
