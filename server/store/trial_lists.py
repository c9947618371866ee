"""Lists of trials, put together from the JSON that is stored beside the columns they are sorted and filtered by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select, tuple_

from server.store.database import Database, NotFound
from server.store.events import unknown_job
from server.store.lookups import foreign_cursor, plain, read_cursor, storable_number, write_cursor
from server.store.models import JobRow, TrialRow
from tuner.errors import UnknownName
from tuner.results import TrialState
from tuner.store import from_json
from tuner.wire import TrialSummary

NUMBER = "number"
VALUES: dict[str, Any] = {"violation": TrialRow.violation, "speedup": TrialRow.speedup, "size_bytes": TrialRow.size_bytes}
"""What a list can be sorted by besides the number. A trial may lack these; it comes last then."""
SORTS = (NUMBER, *VALUES)
STREAMED = 500


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

    def _require(self, job_id: str) -> None:
        with self._database.read(f"reading job '{job_id}'") as connection:
            known = connection.scalar(select(JobRow.job_id).where(JobRow.job_id == plain(job_id)))
        if known is None:
            raise unknown_job(job_id)


def _filters(state: TrialState | None, feasible: bool | None) -> list[ColumnElement[bool]]:
    asked: list[tuple[Any, Any]] = [(TrialRow.state, state), (TrialRow.feasible, feasible)]
    return [column == value for column, value in asked if value is not None]


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
