"""The `tuner` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.commands import BAD_INPUT, FAILED, MET, MISSED, look, remote, serve
from server.commands.look import AsJson, ModelFile
from server.console import amount, change, print_table, say, show_result, tell
from tuner import __version__
from tuner.errors import AccutuneError, InputError, JobCancelled, JobError, writing
from tuner.files import beside
from tuner.job import DataRef, Target, job_id, load_job
from tuner.plan import load_plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the smallest or fastest version of a trained model that still meets your accuracy target.\n\n"
    "Start with `tuner demo`, then write a job file and `tuner run` it.\n\n"
    "Exit status: 0 target met, 3 finished but target missed, 2 bad input, 1 anything else.",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit


@app.command()
def demo(folder: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path("demo")) -> None:
    """Train a small network on scikit-learn's digits and tune it: the whole way in a minute or two."""
    from server.folder import run_folder
    from tuner.demo import prepare_demo

    job_file = prepare_demo(folder, tell)
    target = folder / f"run-{job_id()}"
    result = run_folder(load_job(job_file), target, resume=False, finish=False)
    show_result(result, str(target))
    say(f"\nLook at {target / 'report.html'}; change {job_file} and run it again with: tuner run {job_file}")
    raise typer.Exit(MET if result.feasible else MISSED)


@app.command()
def run(
    job: Annotated[Path | None, typer.Argument(help="The job file (YAML).", show_default=False)] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="The job's folder.", show_default="runs/ and the job's id")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the job in this folder.", show_default=False)] = None,
    finish: Annotated[bool, typer.Option("--finish", help="With --resume: search no further, certify the best so far.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tune a model: search, certify on unseen data, leave best.onnx and a report.

    Progress goes to standard error, the result to standard output. Ctrl-C stops at once and keeps every finished trial."""
    from server.folder import run_folder

    if (job is None) == (resume is None):
        raise JobError("give either a job file to start, or --resume FOLDER to go on")
    if resume is not None and folder is not None:
        raise JobError("--out goes with a new job; a resumed job stays in its folder")
    if finish and resume is None:
        raise JobError("--finish goes with --resume FOLDER")
    if resume is not None:
        target, spec = resume, None
    else:
        assert job is not None
        spec = load_job(job)
        target = folder or Path("runs") / job_id()
    result = run_folder(spec, target, resume=resume is not None, finish=finish)
    if as_json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        show_result(result, str(target))
    raise typer.Exit(MET if result.feasible else MISSED)


app.command()(look.inspect)
app.command()(look.sensitivity)


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(help="A best.plan.json.", show_default=False)],
    model: ModelFile,
    output: Annotated[Path, typer.Option("-o", help="Where the compressed model goes.", show_default=False)],
    tensors: Annotated[
        Path | None, typer.Option("--tensors", help="The weights that the plan changed; left out: beside it.", show_default=False)
    ] = None,
) -> None:
    """Apply a plan to the original model again, without data: the same bytes as before."""
    from tuner.compress.pipeline import replay
    from tuner.model.graph import Model
    from tuner.tensors import load_tensors

    applied = load_plan(plan)
    weights = None if applied.structure is None else load_tensors(tensors or beside(plan))
    data = replay(Model.load(model), applied, weights)
    with writing(output):
        output.write_bytes(data)
    count = len(applied.choices)
    say(f"{output}: {len(data):,} bytes, {count} {'choice' if count == 1 else 'choices'} applied")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The ONNX file to compare with.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="The ONNX file that is compared.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="Rows to score both on (.npz, a folder of .npy, .parquet).", show_default=False)],
    rows: Annotated[str | None, typer.Option("--rows", help="Only rows FIRST:END.", show_default=False)] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="May be given several times.", show_default=False)] = None,
    labels: Annotated[str, typer.Option("--target", help="The array that holds the labels.")] = "labels",
    batch: Annotated[int, typer.Option(min=1, help="Rows per call when timing.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same rows: paired accuracy and paired latency, with intervals."""
    from tuner.compare import compare as compare_files

    ref = DataRef(file=str(data), rows=_row_range(rows), target=labels)
    found = compare_files(first, second, ref, metric or ["auto"], Target(batch=batch, threads=threads))
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
        return
    table = []
    for name, value in found.first.items():
        ours = found.second[name]
        table.append((name, amount(value), amount(ours), change(name, value, ours, found.drops.get(name), found.speedup)))
    print_table(("", first.name, second.name, "change"), table)


app.command()(look.spaces)


@app.command()
def doctor() -> None:
    """Check this machine: versions, what the processor accelerates, and how fast quantized kernels really are."""
    from tuner.doctor import examine

    problems = 0
    for check in examine():
        problems += check.status == "problem"
        mark = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}[check.status]
        say(f"{mark} {check.name}: {check.answer}")
    raise typer.Exit(FAILED if problems else MET)


remote.register(app)
serve.register(app)


def _row_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise JobError(f"--rows must be FIRST:END with FIRST < END, got '{text}'; for the first thousand write 0:1000")
    return int(first), int(end)


def main() -> None:
    """Entry point: errors that the user can mend end with status 2 and one message, never with a traceback."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        where = f"{error.field}: " if error.field and error.field not in str(error) else ""
        tell(f"error: {where}{error}")
        sys.exit(BAD_INPUT)
    except (JobCancelled, KeyboardInterrupt) as stop:
        tell(f"stopped: {stop}")
        sys.exit(FAILED)
    except Exception as error:  # The last resort; with ACCUTUNE_DEBUG the whole story is shown.
        if os.environ.get("ACCUTUNE_DEBUG"):
            raise
        kind = "" if isinstance(error, AccutuneError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())
        tell(f"failed: {kind}{said} (set ACCUTUNE_DEBUG=1 for the traceback)")
        sys.exit(FAILED)
