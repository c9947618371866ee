"""The service from Python.

    with tuner.Client("http://127.0.0.1:8000") as client:
        job = client.submit("job.yaml")
        client.wait(job.id)
        client.best(job.id, "best.onnx")

It needs neither torch nor a runtime on this side.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, RootModel, ValidationError

from tuner.errors import DataError, InputError, writing
from tuner.job import JobSpec, load_job
from tuner.plan import AppliedPlan
from tuner.preview import JobPreview
from tuner.results import TrialResult, TrialState
from tuner.store import JobState
from tuner.transfer import Arriving, Progress, chunks, file_sha256, file_size
from tuner.transport import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    ServiceError,
    TooMany,
    Transport,
    Unauthorized,
    Unavailable,
    server_sent,
)
from tuner.wire import SETTLED, ArtifactView, DatasetView, JobDetail, JobEvent, JobView, LayerView, ModelView, Page, TrialSummary, Upload

Item = TypeVar("Item")
Body = TypeVar("Body", bound=BaseModel)
Sent = TypeVar("Sent", bound=Upload)

DEFAULT_URL = "http://127.0.0.1:8000"
PAGE = 100
ID = "[A-Za-z0-9-]{1,64}"
ARTIFACT = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*"
CHECKING_SECONDS = 300.0
"""How long a server may look at an upload or a job before it answers."""
SILENCE_SECONDS = 45.0
"""An event stream sends a sign of life every 15 s; after this the connection counts as lost."""
ENOUGH_SIGNS = 2
"""Signs of life after a job's last word that show that nothing follows; the first may be a greeting."""
STREAM_PATIENCE = 3
"""A job that is watched is worth so many times the usual attempts: its server may be restarting."""


__all__ = [
    "BadRequest",
    "Client",
    "Conflict",
    "Forbidden",
    "NotFound",
    "ServiceError",
    "TooMany",
    "Unauthorized",
    "Unavailable",
]

_Layers = RootModel[tuple[LayerView, ...]]
_Artifacts = RootModel[tuple[ArtifactView, ...]]


class Client:
    """A server's jobs, models and datasets.

    timeout: seconds that the server may be silent; retries: how often a request that may be repeated is tried again, after pauses that
    double, when the connection breaks or the server is busy. Raises ServiceError; its subclass BadRequest is an InputError."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = Transport(url, key, timeout, retries, sleep, transport)

    @property
    def url(self) -> str:
        return self._http.url

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Models and datasets

    def upload_model(self, path: Path | str, name: str | None = None, progress: Progress | None = None) -> ModelView:
        """Send an ONNX file, unless the server has these bytes already. name: for people to read; left out: the file's own."""
        return self._upload("models", ModelView, Page[ModelView], Path(path), name, progress)

    def upload_dataset(self, path: Path | str, name: str | None = None, progress: Progress | None = None) -> DatasetView:
        """Send an .npz or .parquet file, unless the server has these bytes already."""
        return self._upload("datasets", DatasetView, Page[DatasetView], Path(path), name, progress)

    def models(self) -> Iterator[ModelView]:
        return self._pages(Page[ModelView], "/models")

    def model(self, model_id: str) -> ModelView:
        return self._get(ModelView, f"/models/{_part(model_id)}")

    def layers(self, model_id: str) -> tuple[LayerView, ...]:
        return self._get(_Layers, f"/models/{_part(model_id)}/layers").root

    def delete_model(self, model_id: str) -> None:
        """Conflict while a job needs it."""
        self._http.call("DELETE", f"/models/{_part(model_id)}")

    def datasets(self) -> Iterator[DatasetView]:
        return self._pages(Page[DatasetView], "/datasets")

    def dataset(self, dataset_id: str) -> DatasetView:
        return self._get(DatasetView, f"/datasets/{_part(dataset_id)}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Conflict while a job needs it."""
        self._http.call("DELETE", f"/datasets/{_part(dataset_id)}")

    # Jobs

    def submit(self, job: JobSpec | Path | str, idempotency_key: str | None = None) -> JobDetail:
        """Queue a job. A JobSpec is sent as it is: its model and files are ids. A path is that of a job file as `tuner run` takes it:
        what it names is uploaded first. The same idempotency key with the same job gives the job that was made the first time."""
        if not isinstance(job, JobSpec):
            return self.submit_files(load_job(Path(job)), idempotency_key)
        return self._send(JobDetail, "/jobs", job, **{"Idempotency-Key": idempotency_key or secrets.token_hex(16)})

    def check(self, job: JobSpec | Path | str) -> JobPreview:
        """What a job would do, without submitting it; BadRequest where `submit` would raise it. It takes what `submit` takes."""
        spec = job if isinstance(job, JobSpec) else self._uploaded(load_job(Path(job)))
        return self._send(JobPreview, "/checks", spec)

    def submit_files(self, job: JobSpec, idempotency_key: str | None = None, progress: Progress | None = None) -> JobDetail:
        """Upload the local files that a job names, each once, and queue it. progress counts the bytes of all files."""
        return self.submit(self._uploaded(job, progress), idempotency_key)

    def _uploaded(self, job: JobSpec, progress: Progress | None = None) -> JobSpec:
        """The job with ids for its local files, which are sent."""
        model, files = Path(job.model), {ref.file: Path(ref.file) for ref in job.data.roles().values()}
        sizes = {path: file_size(path) for path in (model, *files.values())}
        done, total = 0, sum(sizes.values())

        def share(now: int, _: int) -> None:
            if progress is not None:
                progress(done + now, total)

        model_id = self.upload_model(model, progress=share).id
        done += sizes[model]
        ids = {}
        for name, path in files.items():
            ids[name] = self.upload_dataset(path, progress=share).id
            done += sizes[path]
        roles = {role: ref.model_copy(update={"file": ids[ref.file]}) for role, ref in job.data.roles().items()}
        data = job.data.model_copy(update=roles)
        return job.model_copy(update={"model": model_id, "data": data})

    def _send(self, body: type[Body], path: str, job: JobSpec, **headers: str) -> Body:
        sent = {"Content-Type": "application/json", **headers}
        return self._http.fetch(body, "POST", path, headers=sent, content=job.model_dump_json().encode(), seconds=CHECKING_SECONDS)

    def jobs(
        self, *, state: JobState | None = None, model: str | None = None, name: str | None = None, search: str | None = None
    ) -> Iterator[JobView]:
        """The newest first. model: an id; name: how the job's name begins; search: a part of its name or of its model's."""
        return self._pages(Page[JobView], "/jobs", state=state, model=model, name=name, search=search)

    def job(self, job_id: str) -> JobDetail:
        return self._get(JobDetail, f"/jobs/{_part(job_id)}")

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop; Conflict where it has ended. What it has found is kept, and it can be resumed."""
        return self._http.fetch(JobView, "POST", f"/jobs/{_part(job_id)}/cancel", again=False)

    def resume(self, job_id: str) -> JobView:
        """Queue a cancelled or failed job again: it goes on from its finished trials."""
        return self._http.fetch(JobView, "POST", f"/jobs/{_part(job_id)}/resume", again=False)

    def delete(self, job_id: str) -> None:
        """Remove a job with its trials and files; Conflict while it runs."""
        self._http.call("DELETE", f"/jobs/{_part(job_id)}")

    # Trials

    def trials(
        self,
        job_id: str,
        *,
        sort: str = "number",
        descending: bool = False,
        state: TrialState | None = None,
        feasible: bool | None = None,
    ) -> Iterator[TrialSummary]:
        """sort: number, violation, speedup or size_bytes; trials without that value come last."""
        order = "desc" if descending else "asc"
        return self._pages(Page[TrialSummary], f"/jobs/{_part(job_id)}/trials", sort=sort, order=order, state=state, feasible=feasible)

    def trial(self, job_id: str, number: int) -> TrialResult:
        return self._get(TrialResult, f"/jobs/{_part(job_id)}/trials/{int(number)}")

    # Events

    def events(self, job_id: str, after: int = 0) -> Iterator[JobEvent]:
        """The job's events behind number `after`, those to come included, until it has ended. Each once and none left out: where
        the connection breaks, the stream goes on from the last event."""
        failures, over = 0, False
        while True:
            known, lost = after, _ended(self.url, job_id)
            try:
                with closing(self._streamed(job_id, after, over)) as stream:
                    for event in stream:
                        if event.seq <= after:
                            continue
                        if event.seq > after + 1:
                            raise Unavailable(f"{self.url} left out the events of job '{job_id}' between {after} and {event.seq}")
                        after, over, failures = event.seq, event.state in SETTLED, 0
                        yield event
                # A stream ends with the job, or with the server, and a job that was resumed has a last word in the middle: it is
                # over when nothing follows.
                if over and after == known:
                    return
            except _NothingMore:
                return
            except (Unavailable, TooMany) as error:
                lost = error
            if over and after > known:
                continue
            self._http.pause(lost, failures, self._http.retries * STREAM_PATIENCE)
            failures += 1

    def wait(self, job_id: str, observe: Callable[[JobEvent], None] | None = None) -> JobDetail:
        """The job once it has ended: succeeded, failed or cancelled. observe: told every event."""
        for event in self.events(job_id):
            if observe is not None:
                observe(event)
        return self.job(job_id)

    def _streamed(self, job_id: str, after: int, over: bool) -> Generator[JobEvent, None, None]:
        """What one connection brings. _NothingMore where the server says that the job has ended, or keeps silent after that."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        path = f"/jobs/{_part(job_id)}/events"
        with self._http.stream("GET", path, headers=headers, seconds=SILENCE_SECONDS) as response:
            if response.status_code == 204:
                raise _NothingMore
            signs = 0
            for sent in server_sent(response.iter_bytes()):
                if sent.data is None:
                    signs += 1
                    if over and signs >= ENOUGH_SIGNS:
                        raise _NothingMore
                    continue
                try:
                    event = JobEvent.model_validate_json(sent.data, extra="ignore")
                except ValidationError as error:
                    raise self._http.strange(f"GET {path}", error) from error
                over, signs = event.state in SETTLED, 0
                yield event

    # What a job leaves

    def artifacts(self, job_id: str) -> tuple[ArtifactView, ...]:
        return self._get(_Artifacts, f"/jobs/{_part(job_id)}/artifacts").root

    def best(self, job_id: str, target: Path | str) -> Path:
        """Download the best model."""
        return self._download(f"/jobs/{_part(job_id)}/best", Path(target))

    def report(self, job_id: str, target: Path | str) -> Path:
        """Download the report, one HTML file."""
        return self._download(f"/jobs/{_part(job_id)}/report", Path(target))

    def plan(self, job_id: str) -> AppliedPlan:
        """The plan that made the best model."""
        return self._get(AppliedPlan, f"/jobs/{_part(job_id)}/best/plan")

    def trial_model(self, job_id: str, number: int, target: Path | str) -> Path:
        """Download the model of any trial that was measured; the server makes it again from its plan."""
        return self._download(f"/jobs/{_part(job_id)}/trials/{int(number)}/model", Path(target), seconds=CHECKING_SECONDS)

    def download(self, job_id: str, name: str, target: Path | str) -> Path:
        """Download one of `artifacts`, or `best`. The file is there whole and checked, or not at all."""
        if name == "best":
            return self.best(job_id, target)
        if not re.fullmatch(ARTIFACT, name, re.ASCII):
            raise InputError(f"'{name[:80]}' is no name of an artefact; use one of those that Client.artifacts(job) lists")
        path = f"/jobs/{_part(job_id)}/artifacts/{name}"

        def listed() -> str | None:
            return next((file.sha256 for file in self.artifacts(job_id) if file.name == name), None)

        return self._download(path, Path(target), listed)

    def _download(self, path: str, target: Path, listed: Callable[[], str | None] = lambda: None, seconds: float | None = None) -> Path:
        if target.is_dir():
            raise InputError(f"{target} is a folder; give the name of the file to write")
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    arriving = Arriving(file)
                    self._http.repeated(lambda: self._receive(path, arriving, seconds))
                    file.flush()
                    os.fsync(file.fileno())
                wanted = arriving.wanted or listed()
                if wanted is not None and wanted != arriving.digest:
                    raise ServiceError(f"{self.url}{path} came damaged: its SHA-256 is {arriving.digest}, not {wanted}; try again")
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def _receive(self, path: str, arriving: Arriving, seconds: float | None) -> None:
        """One attempt: the rest of the file where the server still has the same bytes, else all of it."""
        with self._http.stream("GET", path, headers=arriving.headers(), seconds=seconds) as response:
            arriving.begin(response.status_code, response.headers)
            for chunk in response.iter_bytes():
                arriving.add(chunk)

    # Plumbing

    def _get(self, body: type[Body], path: str) -> Body:
        return self._http.fetch(body, "GET", path)

    def _pages(self, page: type[Page[Item]], path: str, **parameters: Any) -> Iterator[Item]:
        """Every item of a list, fetched page by page as they are used."""
        cursor: str | None = None
        while True:
            found = self._http.fetch(page, "GET", path, params=parameters | {"cursor": cursor, "limit": PAGE})
            yield from found.items
            if found.next is None:
                return
            cursor = found.next

    def _upload(self, kind: str, view: type[Sent], page: type[Page[Sent]], path: Path, name: str | None, progress: Progress | None) -> Sent:
        size, tell = file_size(path), progress or (lambda _done, _total: None)
        sha256 = file_sha256(path)
        known = next(self._pages(page, f"/{kind}", sha256=sha256), None)
        if known is not None:
            tell(size, size)
            return known
        sent = self._http.fetch(
            view,
            "POST",
            f"/{kind}",
            params={"name": name or path.name},
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
            content=lambda: chunks(path, size, tell),
            seconds=CHECKING_SECONDS,
        )
        if sent.sha256 != sha256:
            raise DataError(f"{path} changed while it was being sent; send it again")
        return sent


class _NothingMore(Exception):
    """The job has ended and every event was given."""


def _ended(url: str, job_id: str) -> ServiceError:
    return Unavailable(f"the event stream of job '{job_id}' at {url} ended before the job did; try again")


def _part(name: str) -> str:
    """An id as a part of a path. It cannot lead anywhere else."""
    if not re.fullmatch(ID, name, re.ASCII):
        raise InputError(f"an id is made of letters, digits and '-', got '{name[:80]}'; `tuner jobs` lists the jobs with theirs")
    return name
