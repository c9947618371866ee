"""Lists of jobs, put together from the JSON that is stored beside the columns they are sorted and filtered by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, func, select, tuple_

from server.store.database import Database
from server.store.lookups import foreign_cursor, plain, read_cursor, searchable, write_cursor
from server.store.models import JobRow
from tuner.errors import UnknownName
from tuner.results import TrialFailure
from tuner.store import from_json
from tuner.wire import JobProgress, OutcomeSummary

AnyRow = Row[*tuple[Any, ...]]

CREATED, NAME = "created", "name"
SORTS = (CREATED, NAME)
NO_PROGRESS = JobProgress().model_dump_json()
ESCAPE = "/"
"""Before a sign that would stand for others in a pattern."""

LISTED = (
    JobRow.job_id,
    JobRow.name,
    JobRow.state,
    JobRow.goal,
    JobRow.model_id,
    JobRow.model_name,
    JobRow.created_at,
    JobRow.updated_at,
    JobRow.seconds,
    JobRow.cancel_requested,
    JobRow.owner,
    JobRow.progress,
    JobRow.feasible,
    JobRow.outcome,
    JobRow.error,
    JobRow.events,
)
FILTERS: dict[str, ColumnElement[bool]] = {
    "state": JobRow.state == bindparam("state"),
    "model": JobRow.model_id == bindparam("model"),
    "name": func.substr(JobRow.name, 1, bindparam("letters")) == bindparam("name"),
    "search": JobRow.searched.like(bindparam("search"), escape=ESCAPE),
}


@dataclass(frozen=True)
class _Order:
    """How a list is sorted. Ids stand for the time: they begin with it."""

    sort: str
    descending: bool

    @property
    def keys(self) -> tuple[Any, ...]:
        return (JobRow.name, JobRow.job_id) if self.sort == NAME else (JobRow.job_id,)

    def beyond(self) -> ColumnElement[bool]:
        """What comes after the row that the parameters `last_name` and `last_id` tell."""
        if self.sort != NAME:
            return JobRow.job_id < bindparam("last_id") if self.descending else JobRow.job_id > bindparam("last_id")
        here, there = tuple_(*self.keys), tuple_(bindparam("last_name"), bindparam("last_id"))
        return here < there if self.descending else here > there

    def cursor(self, row: AnyRow) -> str:
        return write_cursor(self.sort, self.descending, row.name if self.sort == NAME else None, row.job_id)

    def place(self, cursor: str) -> dict[str, Any]:
        """The parameters of `beyond` for the row a cursor stands at. JobError for a cursor of another list."""
        match read_cursor(cursor):
            case [self.sort, self.descending, None | str() as name, str() as job_id] if (name is None) == (self.sort != NAME):
                return {"last_name": None if name is None else plain(name), "last_id": plain(job_id)}
        raise foreign_cursor(cursor)


def job_page(database: Database, *, cursor: str | None, limit: int, filters: Mapping[str, str | None], sort: str, descending: bool) -> str:
    """A Page[JobView] as JSON. filters: values for some of FILTERS; an empty name or search leaves nothing out."""
    if sort not in SORTS:
        raise UnknownName("sort", sort, SORTS, field="sort")
    order = _Order(sort, descending)
    given = {} if cursor is None else order.place(cursor)
    wanted = _statement(order, cursor is not None, *(name for name, value in filters.items() if value))
    given |= {name: _pattern(value) if name == "search" else plain(value) for name, value in filters.items() if value}
    with database.read("listing jobs") as connection:
        rows = connection.execute(wanted, given | {"rows": limit + 1, "letters": len(given.get("name", ""))}).all()
    following = json.dumps(order.cursor(rows[limit - 1]) if len(rows) > limit else None)
    return f'{{"items":[{",".join(map(listed_text, rows[:limit]))}],"next":{following}}}'


@cache
def _statement(order: _Order, goes_on: bool, *filters: str) -> Select[*tuple[Any, ...]]:
    """Made once: putting a statement together takes as long as executing it."""
    wanted = select(*LISTED).where(*(FILTERS[name] for name in filters))
    if goes_on:
        wanted = wanted.where(order.beyond())
    return wanted.order_by(*(key.desc() if order.descending else key.asc() for key in order.keys)).limit(bindparam("rows"))


def _pattern(text: str) -> str:
    """A pattern that finds exactly `text`, wherever it stands."""
    wanted = searchable(plain(text))
    for sign in (ESCAPE, "%", "_"):
        wanted = wanted.replace(sign, ESCAPE + sign)
    return f"%{wanted}%"


def listed(row: AnyRow) -> dict[str, Any]:
    """The fields of a JobView."""
    what = f"job '{row.job_id}'"
    return _plain_fields(row) | {
        "created": row.created_at,
        "updated": row.updated_at,
        "progress": from_json(JobProgress, row.progress, f"the progress of {what}") if row.progress else JobProgress(),
        "outcome": from_json(OutcomeSummary, row.outcome, f"the outcome of {what}") if row.outcome else None,
        "error": from_json(TrialFailure, row.error, f"the error of {what}") if row.error else None,
    }


def listed_text(row: AnyRow) -> str:
    """A JobView as JSON, from what is stored as JSON without reading that."""
    fields = _json(_plain_fields(row) | {"created": _utc(row.created_at), "updated": _utc(row.updated_at)})
    documents = f'"progress":{row.progress or NO_PROGRESS},"outcome":{row.outcome or "null"},"error":{row.error or "null"}'
    return f"{fields[:-1]},{documents}}}"


def _plain_fields(row: AnyRow) -> dict[str, Any]:
    """The fields of a JobView that JSON has as the database has them."""
    return {
        "id": row.job_id,
        "name": row.name,
        "state": row.state,
        "goal": row.goal or "",
        "model": row.model_id or "",
        "model_name": row.model_name or "",
        "seconds": row.seconds,
        "cancel_requested": row.cancel_requested,
        "owner": row.owner or None,
        "feasible": row.feasible,
        "events": row.events,
    }


_json = json.JSONEncoder(separators=(",", ":")).encode


def _utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
