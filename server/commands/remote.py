"""Commands against a server: submit, jobs, watch, trials, pull, cancel, resume."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeVar

import typer
from pydantic import BaseModel

from server.commands import FAILED, MET, MISSED
from server.console import ProgressView, err, goal, print_table, say, show_result, tell
from tuner.errors import JobError
from tuner.job import load_job
from tuner.store import JobState
from tuner.wire import JobDetail, JobView, TrialSummary

if TYPE_CHECKING:
    from tuner.client import Client

Item = TypeVar("Item", bound=BaseModel)
LOCAL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="ACCUTUNE_URL", help="The server.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="ACCUTUNE_KEY",
        help="An API key. Others on this machine may see it here; the variable is safer.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `tuner jobs` lists it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]


def submit(
    job: Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Watch the job, and end with its exit status.")] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Send a job to a server: the job file that `tuner run` takes; the files that it names are uploaded, unless they are there.

    Prints the job's id, or with --wait the result."""
    spec = load_job(job)
    with connect(url, key) as client:
        sent = client.submit_files(spec, progress=_uploading)
        if wait:
            tell(f"Job {sent.id} is queued.")
            _follow(client, sent, as_json)
        if as_json:
            _print(sent.model_dump_json(indent=2))
        else:
            say(sent.id)
        tell(f"Watch it with: {_command('watch', sent.id, url)}")


def jobs(
    state: Annotated[JobState | None, typer.Option("--state", help="Only jobs in this state.", show_default=False)] = None,
    search: Annotated[
        str | None, typer.Option("--search", help="Only jobs whose name, or whose model's name, contains this.", show_default=False)
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List a server's jobs, the newest first."""
    with connect(url, key) as client:
        found = _first(client.jobs(state=state, search=search), limit)
    if as_json:
        _print(_listed(found))
        return
    rows = (
        (job.id, job.name, _outcome(job), _step(job), job.progress.trials, _best(job), f"{job.created:%Y-%m-%d %H:%M}") for job in found
    )
    print_table(("id", "name", "state", "step", "trials", "best", "created (UTC)"), rows)


def watch(job_id: JobId, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Watch a job until it ends, then show its result and end with its exit status. Ctrl-C leaves the job running."""
    with connect(url, key) as client:
        _follow(client, client.job(job_id), as_json)


def trials(
    job_id: JobId,
    sort: Annotated[Literal["number", "violation", "speedup", "size_bytes"], typer.Option("--sort", help="The best first.")] = "number",
    reverse: Annotated[bool, typer.Option("--reverse", help="The worst first.")] = False,
    feasible: Annotated[bool, typer.Option("--feasible", help="Only those that met the target.")] = False,
    limit: Limit = 100,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List the trials of a job."""
    descending = (sort == "speedup") != reverse
    with connect(url, key) as client:
        found = _first(client.trials(job_id, sort=sort, descending=descending, feasible=feasible or None), limit)
    if as_json:
        _print(_listed(found))
        return
    columns = ("trial", "state", "met", "drop", "at most", "speed-up", "at least", "size_bytes", "seconds")
    print_table(columns, (_trial_row(trial) for trial in found))


def pull(
    job_id: JobId,
    trial: Annotated[int | None, typer.Option("--trial", min=0, help="The model of this trial.", show_default="the best")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="The file to write.", show_default="best.onnx or trial-N.onnx")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Download the best model of a job, or that of any of its trials."""
    target = output or Path("best.onnx" if trial is None else f"trial-{trial}.onnx")
    if target.exists() and not force:
        raise JobError(f"{target} is there already; give another name with -o, or replace it with --force")
    with connect(url, key) as client:
        job = client.job(job_id)
        client.best(job_id, target) if trial is None else client.trial_model(job_id, trial, target)
    if trial is None and job.feasible is False:
        tell("Note: the target was missed; this is the nearest model.")
    say(f"{target}: {target.stat().st_size:,} bytes")


def cancel(job_id: JobId, url: Url = LOCAL, key: Key = None) -> None:
    """Stop a job. What it has found is kept, and it can be resumed."""
    with connect(url, key) as client:
        job = client.cancel(job_id)
    say(f"job {job.id} is cancelled" if job.state == JobState.CANCELLED else f"job {job.id} will have stopped within moments")
    tell(f"Go on with it with: {_command('resume', job_id, url)}")


def resume(job_id: JobId, url: Url = LOCAL, key: Key = None) -> None:
    """Queue a cancelled or failed job again: it goes on from its finished trials."""
    with connect(url, key) as client:
        job = client.resume(job_id)
    say(f"job {job.id} is {job.state.value}")
    tell(f"Watch it with: {_command('watch', job_id, url)}")


def register(app: typer.Typer) -> None:
    for command in (submit, jobs, watch, trials, pull, cancel, resume):
        app.command()(command)


def connect(url: str, key: str | None) -> Client:
    from tuner.client import Client

    return Client(url, key)


def _follow(client: Client, job: JobDetail, as_json: bool) -> NoReturn:
    """Show the job's events as they come, then how it ended."""
    tell(goal(job.spec))
    try:
        with ProgressView(job.spec) as view:
            done = client.wait(job.id, view)
    except KeyboardInterrupt:
        again, stop = (_command(name, job.id, client.url) for name in ("watch", "cancel"))
        tell(f"No longer watching; job {job.id} goes on. Watch it again with: {again}   Cancel it with: {stop}")
        raise typer.Exit(FAILED) from None
    if as_json:
        _print(done.model_dump_json(indent=2))
    elif done.result is not None:
        show_result(done.result)
        say(f"Download the model with: {_command('pull', done.id, client.url)}")
    if done.state == JobState.SUCCEEDED:
        raise typer.Exit(MET if done.feasible else MISSED)
    why = f" in {done.error.step}: {done.error.message}" if done.error else ""
    tell(f"job {done.id} {done.state.value}{why}; its finished trials are kept; go on with: {_command('resume', done.id, client.url)}")
    raise typer.Exit(FAILED)


def _uploading(done: int, total: int) -> None:
    if err.is_terminal:
        err.print(f"uploading {done / 1e6:,.1f}/{total / 1e6:,.1f} MB", end="\n" if done == total else "\r", highlight=False)


def _command(name: str, job_id: str, url: str) -> str:
    """A command as it has to be typed to reach the same server."""
    known = url.rstrip("/") in (LOCAL, os.environ.get("ACCUTUNE_URL", "").rstrip("/"))
    return f"tuner {name} {job_id}" + ("" if known else f" --url {url}")


def _first(items: Iterable[Item], limit: int) -> list[Item]:
    found = list(islice(items, limit + 1))
    if len(found) > limit:
        tell(f"There are more than these {limit}; show more with --limit.")
    return found[:limit]


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _listed(items: Iterable[BaseModel]) -> str:
    """A JSON list with one item per line."""
    return "[" + ",\n ".join(item.model_dump_json() for item in items) + "]"


def _outcome(job: JobView) -> str:
    if job.feasible is None:
        return f"{job.state.value} (cancelling)" if job.cancel_requested and job.state == JobState.RUNNING else job.state.value
    return f"{job.state.value}, target {'met' if job.feasible else 'missed'}"


def _step(job: JobView) -> str:
    if job.state != JobState.RUNNING or job.progress.phase is None:
        return ""
    return f"{job.progress.phase} {job.progress.done}/{job.progress.total}" if job.progress.total else job.progress.phase


def _best(job: JobView) -> str:
    """The speed-up and drop of the best trial so far."""
    best = job.progress.best
    if best is None:
        return ""
    speed = f"{best.speedup:.2f}×" if best.speedup is not None else ""
    return ", ".join(part for part in (speed, f"drop {best.drop:.4f}" if best.drop is not None else "") if part)


def _trial_row(trial: TrialSummary) -> tuple[object, ...]:
    if trial.error is not None:
        state = f"failed in {trial.error.step}: {trial.error.message}"
    else:
        state = trial.state.value
    size = trial.values.get("size_bytes")
    met = "" if trial.decision is None else "yes" if trial.feasible else "no"
    whole = None if size is None else round(size)
    seconds = round(trial.seconds, 2)
    return (trial.number, state, met, trial.drop, trial.drop_upper, trial.speedup, trial.speedup_lower, whole, seconds)
