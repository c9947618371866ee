"""What is known about uploaded models and data files. Their bytes lie in the artefact store under their SHA-256."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar, overload

from sqlalchemy import Connection, Row, delete, func, select, tuple_

from search_spaces.schemes import Frozen
from server.store.database import Conflict, Database, NotFound
from server.store.lookups import SHOWN, foreign_cursor, plain, read_cursor, write_cursor
from server.store.models import ArtifactRow, DatasetRow, JobFileRow, ModelRow
from tuner.store import from_json
from tuner.wire import DataFacts, DatasetView, LayerView, ModelFacts, ModelView, Page, TensorView, Upload

Kind = Literal["models", "datasets"]
View = TypeVar("View", bound=Upload)
AnyRow = Row[*tuple[Any, ...]]

TABLES: dict[Kind, type[ModelRow] | type[DatasetRow]] = {"models": ModelRow, "datasets": DatasetRow}
NAMES: dict[Kind, str] = {"models": "model", "datasets": "dataset"}
PREFIXES: dict[Kind, str] = {"models": "mdl-", "datasets": "dat-"}
NAMED = 3
"""How many jobs are named when a file cannot be deleted."""


class _Head(Frozen, extra="ignore"):
    """ModelFacts with its layers as they stand: making values of all that a list does not show would take most of its time."""

    opset: int
    parameters: int
    macs: int | None
    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    layers: tuple[dict[str, Any], ...]


class FileStore:
    """Each method is one transaction; an unknown id is NotFound."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_model(self, *, name: str, sha256: str, size_bytes: int, owner: str | None, facts: ModelFacts) -> tuple[ModelView, bool]:
        """The model and True; the earlier one and False where a model of this hash is there."""
        row, new = self._add("models", name, sha256, size_bytes, owner, facts.model_dump_json())
        return _model(row), new

    def add_dataset(self, *, name: str, sha256: str, size_bytes: int, owner: str | None, facts: DataFacts) -> tuple[DatasetView, bool]:
        """The data file and True; the earlier one and False where one of this hash is there."""
        row, new = self._add("datasets", name, sha256, size_bytes, owner, facts.model_dump_json())
        return _dataset(row), new

    def model(self, id: str) -> ModelView:
        return _model(self._one("models", id))

    def layers(self, id: str) -> tuple[LayerView, ...]:
        return from_json(ModelFacts, self._one("models", id).facts, f"model '{id}'").layers

    def dataset(self, id: str) -> DatasetView:
        return _dataset(self._one("datasets", id))

    @overload
    def by_sha256(self, kind: Literal["models"], sha256: str) -> ModelView | None: ...
    @overload
    def by_sha256(self, kind: Literal["datasets"], sha256: str) -> DatasetView | None: ...
    def by_sha256(self, kind: Kind, sha256: str) -> ModelView | DatasetView | None:
        with self._database.read(f"looking for {kind}") as connection:
            row = _of_sha256(connection, kind, sha256)
        if row is None:
            return None
        return _model(row) if kind == "models" else _dataset(row)

    def models(self, *, cursor: str | None, limit: int, sha256: str | None = None) -> Page[ModelView]:
        """The newest first."""
        rows, following = self._page("models", cursor, limit, sha256)
        return Page[ModelView](items=tuple(_model(row) for row in rows), next=following)

    def datasets(self, *, cursor: str | None, limit: int, sha256: str | None = None) -> Page[DatasetView]:
        """The newest first."""
        rows, following = self._page("datasets", cursor, limit, sha256)
        return Page[DatasetView](items=tuple(_dataset(row) for row in rows), next=following)

    def delete(self, id: str) -> None:
        """Forget a model or a data file; Conflict while a job needs it. Its bytes go with the next clean-up of the artefact store."""
        with self._database.write(f"deleting '{id}'") as connection:
            kind = _lock(connection, id)
            jobs = connection.scalars(select(JobFileRow.job_id).where(JobFileRow.file_id == id).order_by(JobFileRow.job_id)).all()
            if jobs:
                more = f" and {len(jobs) - NAMED} more" if len(jobs) > NAMED else ""
                named = ", ".join(f"'{job_id}'" for job_id in jobs[:NAMED])
                raise Conflict(
                    f"{NAMES[kind]} '{id}' is needed by job{'s' if len(jobs) > 1 else ''} {named}{more} and cannot be deleted. "
                    "Delete those first: DELETE /api/v1/jobs/ID."
                )
            table = TABLES[kind]
            connection.execute(delete(table).where(table.id == id))

    def stored_bytes(self, owner: str | None) -> int:
        """How much an owner has uploaded; of files that others sent too, who sent them first counts."""
        with self._database.read("adding up uploads") as connection:
            sums = [connection.scalar(select(func.sum(table.size_bytes)).where(table.owner == owner)) for table in TABLES.values()]
        return sum(int(found or 0) for found in sums)

    def kept(self) -> dict[str, tuple[int, int]]:
        """How many models, datasets and artefacts of jobs there are, and their bytes; bytes that several jobs left count for each."""
        tables: dict[str, Any] = {"models": ModelRow, "datasets": DatasetRow, "artifacts": ArtifactRow}
        with self._database.read("adding up files") as connection:
            found = {name: connection.execute(select(func.count(), func.sum(table.size_bytes))).one() for name, table in tables.items()}
        return {name: (int(count), int(size or 0)) for name, (count, size) in found.items()}

    def references(self, sha256s: Sequence[str]) -> set[str]:
        """Which of these hashes a model, a data file or an artefact of a job still has."""
        wanted = list(sha256s)
        if not wanted:
            return set()
        found: set[str] = set()
        with self._database.read("looking for references to artefacts") as connection:
            for column in (ModelRow.sha256, DatasetRow.sha256, ArtifactRow.sha256):
                found |= set(connection.scalars(select(column).where(column.in_(wanted)).distinct()))
        return found

    def _add(self, kind: Kind, name: str, sha256: str, size_bytes: int, owner: str | None, facts: str) -> tuple[AnyRow, bool]:
        values = {
            "id": PREFIXES[kind] + secrets.token_hex(8),
            "sha256": sha256,
            "name": plain(name),
            "size_bytes": size_bytes,
            "owner": owner,
            "created_at": self._database.now(),
            "facts": facts,
        }
        table = TABLES[kind]
        new = self._database.upsert(table).values(**values).on_conflict_do_nothing(index_elements=["sha256"])
        while True:
            with self._database.write(f"storing {NAMES[kind]} '{name}'") as connection:
                made = connection.execute(new.returning(table.id)).one_or_none() is not None
                row = _of_sha256(connection, kind, sha256)
            # None only where the earlier one was deleted between the two statements.
            if row is not None:
                return row, made

    def _one(self, kind: Kind, id: str) -> AnyRow:
        with self._database.read(f"reading {NAMES[kind]} '{id}'") as connection:
            row = connection.execute(_columns(kind).where(TABLES[kind].id == plain(id))).one_or_none()
        if row is None:
            raise NotFound(f"{NAMES[kind]} '{id[:SHOWN]}' is not known to this server; GET /api/v1/{kind} lists those that are")
        return row

    def _page(self, kind: Kind, cursor: str | None, limit: int, sha256: str | None) -> tuple[Sequence[AnyRow], str | None]:
        table = TABLES[kind]
        wanted = _columns(kind).order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
        if sha256 is not None:
            wanted = wanted.where(table.sha256 == plain(sha256))
        if cursor is not None:
            wanted = wanted.where(tuple_(table.created_at, table.id) < _place(cursor))
        with self._database.read(f"listing {kind}") as connection:
            rows = connection.execute(wanted).all()
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], write_cursor(last.created_at.isoformat(), last.id)


def _columns(kind: Kind) -> Any:
    table = TABLES[kind]
    return select(table.id, table.name, table.sha256, table.size_bytes, table.owner, table.created_at, table.facts)


def _of_sha256(connection: Connection, kind: Kind, sha256: str) -> AnyRow | None:
    return connection.execute(_columns(kind).where(TABLES[kind].sha256 == plain(sha256))).one_or_none()


def _lock(connection: Connection, id: str) -> Kind:
    """Hold a file's row until the transaction ends, so that no job begins to need it meanwhile; what kind of file it is."""
    for kind, table in TABLES.items():
        if connection.scalar(select(table.id).where(table.id == plain(id)).with_for_update()) is not None:
            return kind
    raise NotFound(f"there is no upload '{id[:SHOWN]}'; GET /api/v1/models and GET /api/v1/datasets list those there are")


def _place(cursor: str) -> tuple[datetime, str]:
    match read_cursor(cursor):
        case [str() as moment, str() as id]:
            try:
                created = datetime.fromisoformat(moment)
            except ValueError:
                raise foreign_cursor(cursor) from None
            if created.tzinfo is not None:
                return created, plain(id)
    raise foreign_cursor(cursor)


def _upload(row: AnyRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "created": row.created_at,
        "owner": row.owner,
    }


def _model(row: AnyRow) -> ModelView:
    head = from_json(_Head, row.facts, f"model '{row.id}'")
    return ModelView(
        **_upload(row),
        opset=head.opset,
        parameters=head.parameters,
        macs=head.macs,
        inputs=head.inputs,
        outputs=head.outputs,
        layer_count=len(head.layers),
        quantizable_count=sum(layer["quantizable"] for layer in head.layers),
    )


def _dataset(row: AnyRow) -> DatasetView:
    facts = from_json(DataFacts, row.facts, f"dataset '{row.id}'")
    return DatasetView(**_upload(row), format=facts.format, arrays=facts.arrays)
