"""What the service does with jobs: take them in, show them, cancel, resume, delete, and keep what they find."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from server.store.database import Conflict, NotFound
from server.store.events import append_event, insert_event, lease_lost, state_event, unknown_job
from server.store.job_lists import CREATED, LISTED, job_page, listed, listed_text
from server.store.lookups import SHOWN, plain, searchable
from server.store.models import ArtifactRow, DatasetRow, JobFileRow, JobRow, ModelRow
from server.store.queue import MAX_CRASHES, UNHELD, Beat, Claim, JobQueue, locked_state
from tuner.job import JobSpec
from tuner.results import JobResult
from tuner.store import RESUMABLE, JobState, from_json, spec_json
from tuner.wire import ArtifactView, JobDetail, JobEvent, JobProgress, summarize_outcome

__all__ = ["MAX_CRASHES", "Beat", "Claim", "JobStore"]

WAITING = (JobState.QUEUED, JobState.INTERRUPTED)
ACTIVE = (*WAITING, JobState.RUNNING)


class JobStore(JobQueue):
    """Each method is one transaction. An unknown job is NotFound; what its state does not allow is Conflict."""

    def submit(
        self,
        job_id: str,
        spec: JobSpec,
        *,
        owner: str | None,
        files: Sequence[str],
        idempotency_key: str | None = None,
        request_sha256: str | None = None,
    ) -> tuple[str, bool]:
        """Queue a job that needs the uploads `files`: its id, and whether it is new.

        The owner's earlier job of the same key is answered instead, if it came with the same request; Conflict if with another.
        NotFound for an upload that is not there, which from now on cannot be deleted."""
        now, owner = self._database.now(), owner or ""
        new = self._database.upsert(JobRow).values(
            job_id=job_id,
            goal=spec.accuracy_constraint.sentence(),
            name=spec.name,
            state=JobState.QUEUED,
            seconds=0.0,
            cancel_requested=False,
            created_at=now,
            updated_at=now,
            spec=spec_json(job_id, spec),
            model_id=spec.model,
            owner=owner,
            idempotency_key=idempotency_key,
            request_sha256=request_sha256,
            events=1,
        )
        with self._database.write(f"storing job '{job_id}'") as connection:
            earlier = _of_key(connection, owner, idempotency_key, request_sha256)
            if earlier is not None:
                return earlier, False
            model_name = _require_files(connection, files).get(spec.model)
            named = {"model_name": model_name, "searched": searchable(spec.name, model_name or "")}
            # Of two requests with one key that got this far together, the later waits here until the earlier has stored its job.
            if connection.execute(new.values(**named).on_conflict_do_nothing().returning(JobRow.job_id)).one_or_none() is None:
                earlier = _of_key(connection, owner, idempotency_key, request_sha256)
                if earlier is None:
                    raise Conflict(f"a job with the id '{job_id}' is there already. Submit it once more: it will be given another id.")
                return earlier, False
            needed = [{"job_id": job_id, "file_id": file_id} for file_id in dict.fromkeys(files)]
            if needed:
                connection.execute(insert(JobFileRow), needed)
            insert_event(connection, job_id, state_event(JobState.QUEUED, now), 1, now)
        return job_id, True

    def submitted(self, owner: str | None, idempotency_key: str, request_sha256: str) -> str | None:
        """The job that an earlier request with this key made; None where there was none. Conflict if that request was another."""
        with self._database.read("looking for an earlier request") as connection:
            return _of_key(connection, owner or "", idempotency_key, request_sha256)

    def view(self, job_id: str) -> JobDetail:
        row = self._row(job_id, *LISTED, JobRow.spec, JobRow.result)
        what = f"job '{job_id}'"
        spec = from_json(JobSpec, row.spec, what)
        result = from_json(JobResult, row.result, f"the result of {what}") if row.result else None
        return JobDetail(**listed(row) | {"model": spec.model, "spec": spec, "result": result})

    def text(self, job_id: str) -> str:
        """A JobDetail as JSON."""
        row = self._row(job_id, *LISTED, JobRow.spec, JobRow.result)
        return f'{listed_text(row)[:-1]},"spec":{row.spec},"result":{row.result or "null"}}}'

    def page(
        self,
        *,
        cursor: str | None,
        limit: int,
        state: JobState | None = None,
        model: str | None = None,
        name: str | None = None,
        search: str | None = None,
        sort: str = CREATED,
        descending: bool = True,
    ) -> str:
        """A Page[JobView] as JSON. name: how the name begins; search: a part of its name or of its model's, in capitals or not;
        sort: `created` or `name`."""
        filters = {"state": state, "model": model, "name": name, "search": search}
        return job_page(self._database, cursor=cursor, limit=limit, filters=filters, sort=sort, descending=descending)

    def row_state(self, job_id: str) -> JobState:
        state: JobState = self._row(job_id, JobRow.state).state
        return state

    def cancel_requested(self, job_id: str) -> bool:
        """Has somebody asked the job to stop? False for one that is gone."""
        with self._database.read(f"reading job '{job_id}'") as connection:
            return bool(connection.scalar(select(JobRow.cancel_requested).where(JobRow.job_id == plain(job_id))))

    def owner(self, job_id: str) -> str | None:
        """The id of the key it was submitted with; None where there was none."""
        return self._row(job_id, JobRow.owner).owner or None

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job that waits at once; ask one that runs to stop. The state it has now."""
        now = self._database.now()
        with self._database.write(f"cancelling job '{job_id}'") as connection:
            state = locked_state(connection, job_id)
            if state not in ACTIVE:
                raise Conflict(f"job '{job_id}' is {state} already. Only a job that is queued, running or interrupted can be cancelled.")
            changes = {"cancel_requested": True, "updated_at": now}
            if state == JobState.RUNNING:
                connection.execute(update(JobRow).where(JobRow.job_id == job_id).values(**changes))
                return state
            changes |= UNHELD | {"state": JobState.CANCELLED}
            append_event(connection, job_id, state_event(JobState.CANCELLED, now), now, also=changes)
        return JobState.CANCELLED

    def resume(self, job_id: str) -> JobState:
        """Queue a stopped job again: it goes on from its finished trials."""
        now = self._database.now()
        fresh = UNHELD | {"cancel_requested": False, "error": None, "crashes": 0, "result": None, "feasible": None, "outcome": None}
        with self._database.write(f"resuming job '{job_id}'") as connection:
            state = locked_state(connection, job_id)
            if state not in RESUMABLE:
                way_out = "Submit a new job instead." if state == JobState.SUCCEEDED else "Cancel it first if it is to start anew."
                raise Conflict(f"job '{job_id}' is {state}. Only a job that was cancelled, failed or interrupted can be resumed. {way_out}")
            changes = fresh | {"state": JobState.QUEUED, "updated_at": now}
            append_event(connection, job_id, state_event(JobState.QUEUED, now), now, also=changes)
        return JobState.QUEUED

    def delete(self, job_id: str) -> None:
        """Forget a job with its trials, events and rows of artefacts. What it left in the artefact store goes with the next clean-up."""
        with self._database.write(f"deleting job '{job_id}'") as connection:
            state = locked_state(connection, job_id)
            if state == JobState.RUNNING:
                raise Conflict(f"job '{job_id}' is running and cannot be deleted. Cancel it first: POST /api/v1/jobs/{job_id}/cancel.")
            connection.execute(delete(JobRow).where(JobRow.job_id == job_id))

    def note(self, job_id: str, lease: str, *, progress: JobProgress | None = None, event: JobEvent | None = None) -> None:
        """Record how far a job is, something that happened in it, or both. LeaseLost."""
        changes = {} if progress is None else {"progress": progress.model_dump_json()}
        now = self._database.now()
        with self._database.write(f"noting the progress of job '{job_id}'") as connection:
            if event is None:
                _change_held(connection, job_id, lease, changes)
            else:
                append_event(connection, job_id, event, now, lease=lease, also=changes)

    def finish(self, job_id: str, lease: str, result: JobResult, artifacts: Sequence[ArtifactView]) -> None:
        """Record what a job found and left, all at once. It goes on running until its state says otherwise. LeaseLost."""
        outcome = summarize_outcome(result.best).model_dump_json()
        found = {"result": result.model_dump_json(), "feasible": result.feasible, "outcome": outcome}
        with self._database.write(f"storing the result of job '{job_id}'") as connection:
            _change_held(connection, job_id, lease, found)
            for artifact in artifacts:
                self._put_artifact(connection, job_id, artifact)

    def add_artifact(self, job_id: str, artifact: ArtifactView, lease: str | None = None) -> None:
        """Record one artefact, in place of an earlier one of that name. lease: only while the job is held under it; LeaseLost."""
        with self._database.write(f"storing '{artifact.name}' of job '{job_id}'") as connection:
            if lease is None:
                locked_state(connection, job_id)
            else:
                _change_held(connection, job_id, lease, {})
            self._put_artifact(connection, job_id, artifact)

    def artifacts(self, job_id: str) -> list[ArtifactView]:
        """By name."""
        wanted = select(*ARTIFACT).where(ArtifactRow.job_id == plain(job_id)).order_by(ArtifactRow.name)
        with self._database.read(f"listing the artefacts of job '{job_id}'") as connection:
            rows = connection.execute(wanted).all()
        if not rows:
            self.row_state(job_id)
        return [_artifact(row) for row in rows]

    def artifact(self, job_id: str, name: str) -> ArtifactView:
        wanted = select(*ARTIFACT).where(ArtifactRow.job_id == plain(job_id), ArtifactRow.name == plain(name))
        with self._database.read(f"reading '{name}' of job '{job_id}'") as connection:
            row = connection.execute(wanted).one_or_none()
        if row is None:
            state = self.row_state(job_id)
            raise NotFound(
                f"job '{job_id}', which is {state}, has no artefact '{name[:SHOWN]}'; "
                f"GET /api/v1/jobs/{job_id}/artifacts lists those there are"
            )
        return _artifact(row)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        with self._database.read("counting jobs") as connection:
            found = connection.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
        return dict.fromkeys(JobState, 0) | {row[0]: row[1] for row in found}

    def oldest_queued(self) -> datetime | None:
        """Since when the job waits that waits longest; None where none does."""
        with self._database.read("looking at the queue") as connection:
            return connection.scalar(select(func.min(JobRow.updated_at)).where(JobRow.state == JobState.QUEUED))

    def queued_of(self, owner: str | None) -> int:
        """How many jobs of an owner are waiting or running."""
        active = select(func.count()).where(JobRow.owner == (owner or ""), JobRow.state.in_(ACTIVE))
        with self._database.read("counting jobs") as connection:
            return connection.scalar(active) or 0

    def _row(self, job_id: str, *columns: Any) -> Row[*tuple[Any, ...]]:
        with self._database.read(f"reading job '{job_id}'") as connection:
            row = connection.execute(select(*columns).where(JobRow.job_id == plain(job_id))).one_or_none()
        if row is None:
            raise unknown_job(job_id)
        return row

    def _put_artifact(self, connection: Connection, job_id: str, artifact: ArtifactView) -> None:
        values = artifact.model_dump(exclude={"name", "created"}) | {"created_at": artifact.created}
        new = self._database.upsert(ArtifactRow).values(job_id=job_id, name=artifact.name, **values)
        connection.execute(new.on_conflict_do_update(index_elements=["job_id", "name"], set_=values))


ARTIFACT = (ArtifactRow.name, ArtifactRow.size_bytes, ArtifactRow.sha256, ArtifactRow.media_type, ArtifactRow.created_at)


def _artifact(row: Row[*tuple[Any, ...]]) -> ArtifactView:
    return ArtifactView(name=row.name, size_bytes=row.size_bytes, sha256=row.sha256, media_type=row.media_type, created=row.created_at)


def _of_key(connection: Connection, owner: str, key: str | None, request_sha256: str | None) -> str | None:
    """The job that was submitted with this idempotency key. Conflict if its request was another."""
    if key is None:
        return None
    wanted = select(JobRow.job_id, JobRow.request_sha256).where(JobRow.owner == owner, JobRow.idempotency_key == key)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise Conflict(
            f"the Idempotency-Key '{key}' came with another request before, which made job '{row.job_id}'. "
            "Send that request again unchanged to be given that job, or choose a new key for a new one."
        )
    job_id: str = row.job_id
    return job_id


def _require_files(connection: Connection, files: Sequence[str]) -> dict[str, str]:
    """Their names; NotFound unless all are there. They stay locked, so that nobody deletes them before the job is stored."""
    wanted = sorted({plain(file_id) for file_id in files})
    if not wanted:
        return {}
    found: dict[str, str] = {}
    for table in (ModelRow, DatasetRow):
        held = select(table.id, table.name).where(table.id.in_(wanted)).order_by(table.id).with_for_update(read=True)
        found |= {row.id: row.name for row in connection.execute(held)}
    missing = [file_id for file_id in files if file_id not in found]
    if missing:
        raise NotFound(
            f"there is no upload '{missing[0][:SHOWN]}' (any more). Send the file with POST /api/v1/models or /api/v1/datasets "
            "and submit the job with the id that is answered."
        )
    return found


def _change_held(connection: Connection, job_id: str, lease: str, changes: dict[str, Any]) -> None:
    held = (JobRow.job_id == job_id, JobRow.lease == lease)
    # Writing the lease over itself makes a statement even where nothing is to change.
    if connection.execute(update(JobRow).where(*held).values(lease=lease, **changes)).rowcount != 1:
        raise lease_lost(job_id)
