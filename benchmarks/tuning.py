"""Accutune against the loop of plain_loop.py on the same data, each with one thread: trials per minute, what a trial's time is spent on,
time to the first feasible model, the best model that a holdout confirms after equal seconds, and peak memory.

Prints a Markdown table per case; `--json` keeps every number behind it. `--memory` compares the memory that calibration takes instead."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
import optuna
import plain_loop
import psutil
from plain_loop import CALIBRATION_ROWS, MAX_DROP, Case, Inputs, Report, Run, Trial

# Nothing of Accutune is imported up here: child processes import this file, and the plain loop's memory must stay its own.

SIDES = {"plain": "plain loop", "early": "Accutune", "full": "Accutune, every row scored"}
STEPS = ("compress", "session", "accuracy", "latency")
STEP_OF = {"resolve": "compress", "build": "compress"}
POLL_SECONDS = 0.1
BLOCKS, BLOCK_SECONDS = 41, 0.01
Z = 1.645
MEMORY_ROWS = (128, 512, 2048)
PLAIN_MEMORY_ROWS = (128, 512)

Figures = dict[str, float | None]
Result = TypeVar("Result")


@dataclass
class Certificate:
    """One model on the holdout. `upper`: one-sided 95 % bound on the drop. `speedup`: [median, low, high] of interleaved blocks."""

    drop: float
    upper: float
    met: bool
    speedup: list[float]
    size: float


@dataclass
class CaseReport:
    name: str
    runs: dict[str, list[Run]] = field(default_factory=lambda: {side: [] for side in SIDES})
    certificates: dict[str, list[Certificate]] = field(default_factory=lambda: {side: [] for side in SIDES})
    errors: list[str] = field(default_factory=list)


def run_accutune(case: Case, folder: Path, seconds: float, trials: int, seed: int, early: bool) -> Run:
    """One whole job with empty caches. Trials that were recorded before something broke are kept."""
    os.environ["ACCUTUNE_CACHE"] = str(folder / "tables")
    from tuner.conclude import run_job
    from tuner.executor import LocalExecutor
    from tuner.progress import Event
    from tuner.store import InMemoryTrialStore
    from tuner.study import Study

    result = Run()

    def observe(event: Event) -> None:
        if event.phase == "search" and event.trial is not None:
            result.trials.append(_trial(event.trial, event.seconds))

    job = accutune_job(case, CALIBRATION_ROWS, seconds, trials, seed, early)
    (folder / "cache").mkdir()
    study = Study(job, "benchmark", folder, InMemoryTrialStore(), LocalExecutor(job, folder / "cache"), observe)
    try:
        outcome = run_job(study)
        result.note = f"{outcome.stop_reason}; {len(outcome.best.layers)} layers compressed; {outcome.summary}"
    except Exception:
        result.error = traceback.format_exc()
    best = folder / "best.onnx"
    result.best = str(best) if best.is_file() else None
    result.phases = study.phases
    result.search, result.seconds = study.phases.get("search", 0.0), study.seconds
    return result


def accutune_job(case: Case, calibration_rows: int, seconds: float, trials: int, seed: int, early: bool) -> Any:
    from tuner.job import parse_job

    train, test, rows = str(case.file("train")), str(case.file("test")), case.length("test")
    return parse_job(
        {
            "model": str(case.model),
            "data": {
                "calibration": {"file": train, "rows": [0, calibration_rows]},
                "validation": {"file": test, "rows": [0, rows // 2]},
                "holdout": {"file": test, "rows": [rows // 2, rows]},
            },
            "constraints": [{"metric": "top1", "max_drop": MAX_DROP, "relative": True}],
            "space": "int8",
            "budget": {"trials": trials, "seconds": seconds, "threads": 1},
            "target": {"batch": 1, "threads": 1},
            "early_stopping": early,
            "seed": seed,
        }
    )


def _trial(trial: Any, at: float) -> Trial:
    steps: dict[str, float] = {}
    for name, seconds in trial.timings.items():
        part = STEP_OF.get(name, name)
        steps[part] = steps.get(part, 0.0) + seconds
    verdict = trial.verdicts[0] if trial.verdicts else None
    return Trial(
        at=at,
        steps=steps,
        rows=verdict.samples if verdict else 0,
        drop=verdict.drop if verdict else None,
        feasible=trial.feasible,
        speedup=trial.speedup.value if trial.speedup else None,
        error=f"{trial.error.type}: {trial.error.message}" if trial.error else "",
    )


def calibrate_accutune(case: Case, rows: int) -> int:
    """Only the calibration of a job, in a worker as always."""
    from tuner.executor import LocalExecutor

    with tempfile.TemporaryDirectory() as name:
        executor = LocalExecutor(accutune_job(case, rows, 60.0, 1, 0, True), Path(name))
        try:
            return int(executor.call("calibrate", {}, timeout=3600.0)["tensors"])
        finally:
            executor.close()


def in_child(function: Callable[..., Result], *arguments: Any) -> tuple[Result, float, float]:
    """The function's result from a fresh process, and the peak resident MiB of its largest process and of all of them together."""
    largest = together = 0.0
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(function, *arguments)
        while not wait([future], timeout=POLL_SECONDS).done:
            resident = [0.0]
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    resident.append(process.memory_info().rss / 2**20)
            largest, together = max(largest, *resident), max(together, sum(resident))
        return future.result(), largest, together


def certify(case: Case, model: Path) -> Certificate:
    """Both sides' best model is judged here, alike: accuracy paired with the original on the holdout, latency in turn with it."""
    half, rows = case.length("test") // 2, case.length("test")
    inputs, labels = case.rows("test", half, rows)
    one, _ = case.rows("train", 0, 1)
    original, candidate = plain_loop.session(case.model), plain_loop.session(model)
    before, after = _right(original, inputs, labels), _right(candidate, inputs, labels)
    drops, scale = before - after, before.mean()
    drop, error = float(drops.mean() / scale), float(drops.std(ddof=1) / np.sqrt(len(drops)) / scale)
    speedup = _interleaved(lambda: original.run(None, one), lambda: candidate.run(None, one))
    return Certificate(drop, drop + Z * error, drop <= MAX_DROP, speedup, model.stat().st_size / case.model.stat().st_size)


def _right(model: ort.InferenceSession, inputs: Inputs, labels: Any) -> Any:
    logits = [
        model.run(None, {name: array[first : first + plain_loop.SCORING_BATCH] for name, array in inputs.items()})[0]
        for first in range(0, len(labels), plain_loop.SCORING_BATCH)
    ]
    return (np.concatenate(logits).argmax(axis=1) == labels).astype(np.float64)


def _interleaved(original: Callable[[], object], candidate: Callable[[], object]) -> list[float]:
    """Median of the ratios original/candidate over blocks that take turns, and the 95 % interval of the sign test around it."""
    models = (original, candidate)
    calls = [max(1, round(BLOCK_SECONDS / max(min(_seconds(model, 1) for _ in range(5)), 1e-6))) for model in models]
    ratios = []
    for block in range(BLOCKS):
        pair = [0.0, 0.0]
        for which in (0, 1) if block % 2 else (1, 0):
            pair[which] = _seconds(models[which], calls[which])
        ratios.append(pair[0] / pair[1])
    ratios.sort()
    low = int((BLOCKS - 1.96 * BLOCKS**0.5) / 2)
    return [statistics.median(ratios), ratios[low], ratios[-1 - low]]


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def compare(case: Case, arguments: argparse.Namespace) -> Report:
    """All sides in turn, the first one changing with every repeat. What breaks in one is noted and costs nothing else."""
    report, sides = CaseReport(case.name), list(SIDES)
    for repeat in range(arguments.repeats):
        turn = repeat % len(sides)
        for side in sides[turn:] + sides[:turn]:
            with tempfile.TemporaryDirectory() as name:
                try:
                    _one_run(report, case, side, Path(name), arguments, repeat)
                except Exception as error:
                    report.errors.append(f"{SIDES[side]}, repeat {repeat}: {type(error).__name__}: {error}")
                    traceback.print_exc()
    summary = {side: figures(report.runs[side], report.certificates[side]) for side in SIDES}
    return table(report, summary), asdict(report) | {"figures": summary}, bool(report.errors)


def _one_run(report: CaseReport, case: Case, side: str, folder: Path, arguments: argparse.Namespace, seed: int) -> None:
    limits = (case, folder, arguments.seconds, arguments.trials, seed)
    if side == "plain":
        result, largest, together = in_child(plain_loop.run, *limits, arguments.plain_calibration_rows)
    else:
        result, largest, together = in_child(run_accutune, *limits, side == "early")
    result.peak_mib, result.all_processes_mib = largest, together
    report.runs[side].append(result)
    if result.error:
        report.errors.append(f"{SIDES[side]}, repeat {seed}: {result.error.strip().splitlines()[-1]}")
    if result.best is not None:
        report.certificates[side].append(certify(case, Path(result.best)))
    done = f"{len(result.trials)} trials in {result.seconds:.0f} s. {result.note}"
    print(f"{case.name}, {SIDES[side]}, repeat {seed}: {done}", file=sys.stderr, flush=True)


def figures(runs: list[Run], certificates: list[Certificate]) -> Figures:
    """Medians over the repeats; None where nothing was measured."""
    firsts = [_first_feasible(run) for run in runs]
    found = [first for first in firsts if first is not None]
    met = [certificate for certificate in certificates if certificate.met]
    shares = [_shares(run) for run in runs]
    values = {
        "trials": _median(len(run.trials) for run in runs),
        "failed": _median(sum(bool(trial.error) for trial in run.trials) for run in runs),
        "search": _median(run.search for run in runs),
        "seconds": _median(run.seconds for run in runs),
        "rate": _median(60 * _finished(run) / run.search for run in runs if run.search),
        "whole_rate": _median(60 * _finished(run) / run.seconds for run in runs if run.seconds),
        "rows": _median(statistics.fmean(scored) for run in runs if (scored := [trial.rows for trial in run.trials if not trial.error])),
        "evaluation": _median((s["accuracy"] + s["latency"]) / (1 - s["rest"]) for s in shares if s),
        "first_seconds": _median(seconds for _, seconds in found),
        "first_trials": _median(count for count, _ in found),
        "without_feasible": float(len(firsts) - len(found)),
        "certified": float(len(met)),
        "speedup": _median(certificate.speedup[0] for certificate in met),
        "size": _median(certificate.size for certificate in met),
        "drop": _median(certificate.drop for certificate in certificates),
        "upper": _median(certificate.upper for certificate in certificates),
        "peak_mib": _median(run.peak_mib for run in runs),
        "all_processes_mib": _median(run.all_processes_mib for run in runs),
    }
    return values | {f"share_{step}": _median(s[step] for s in shares if s) for step in (*STEPS, "rest")}


def _finished(run: Run) -> int:
    return sum(not trial.error for trial in run.trials)


def _first_feasible(run: Run) -> tuple[int, float] | None:
    return next(((count, trial.at) for count, trial in enumerate(run.trials, 1) if trial.feasible), None)


def _shares(run: Run) -> dict[str, float]:
    """Shares of the search's wall clock; `rest` is what no step claims: proposing, recording, talking to the worker."""
    if not run.search or not run.trials:
        return {}
    shares = {step: sum(trial.steps.get(step, 0.0) for trial in run.trials) / run.search for step in STEPS}
    return shares | {"rest": max(0.0, 1 - sum(shares.values()))}


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(statistics.median(known)) if known else None


def table(report: CaseReport, sides: dict[str, Figures]) -> str:
    """The case in Markdown: figures of every side, then the goals."""
    repeats = {side: len(report.runs[side]) for side in SIDES}
    rows: list[tuple[str, Callable[[str, Figures], str]]] = [
        ("trials (of which failed)", lambda _, f: f"{_show(f['trials'], '.0f')} ({_show(f['failed'], '.0f')})"),
        ("seconds: search, whole run", lambda _, f: f"{_show(f['search'], '.1f')}, {_show(f['seconds'], '.1f')}"),
        ("trials per minute of search", lambda _, f: f"{_show(f['rate'], '.1f')} ({_times(f, sides, 'rate')})"),
        ("trials per minute of the whole run", lambda _, f: f"{_show(f['whole_rate'], '.1f')} ({_times(f, sides, 'whole_rate')})"),
        ("validation rows scored per trial, mean", lambda _, f: _show(f["rows"], ".0f")),
        *((f"share of search: {step}", lambda _, f, key=f"share_{step}": _show(f[key], ".1%")) for step in (*STEPS, "rest")),
        ("accuracy + latency, share of trials' own time", lambda _, f: _show(f["evaluation"], ".1%")),
        ("first feasible model: trials, seconds", lambda s, f: _first(f, repeats[s])),
        ("best model, speed-up", lambda s, f: _best(f, repeats[s])),
        ("best model, size of the original's", lambda _, f: _show(f["size"], ".3f")),
        ("its relative drop on the holdout (95 % bound)", lambda _, f: f"{_show(f['drop'], '.2%')} ({_show(f['upper'], '.2%')})"),
        ("peak memory of the largest process, MiB", lambda _, f: _show(f["peak_mib"], ".0f")),
        ("peak memory of all processes, MiB", lambda _, f: _show(f["all_processes_mib"], ".0f")),
    ]
    lines = [f"## {report.name}", "", f"| | {' | '.join(SIDES.values())} |", "| --- |" + " ---: |" * len(SIDES)]
    lines += [f"| {name} | {' | '.join(cell(side, sides[side]) for side in SIDES)} |" for name, cell in rows]
    lines += ["", *(f"* {line}" for line in goals(sides)), *(f"* error: {error}" for error in report.errors), ""]
    return "\n".join(lines)


def goals(sides: dict[str, Figures]) -> list[str]:
    """What was asked for, and whether it was reached."""
    rates = {side: _ratio(sides[side]["rate"], sides["plain"]["rate"]) for side in ("early", "full")}
    checks: list[tuple[str, float | None, float, bool, str]] = [
        ("trials per minute with early stopping ≥ 12 × the plain loop's", rates["early"], 12, True, ".1f"),
        ("trials per minute without early stopping ≥ 5 × the plain loop's", rates["full"], 5, True, ".1f"),
        ("accuracy and latency ≥ 85 % of a trial's time, with early stopping", sides["early"]["evaluation"], 0.85, True, ".1%"),
        ("accuracy and latency ≥ 85 % of a trial's time, without", sides["full"]["evaluation"], 0.85, True, ".1%"),
        ("a feasible model in ≤ 5 trials", sides["early"]["first_trials"], 5, False, ".0f"),
    ]
    lines = []
    for name, value, bound, least, form in checks:
        reached = value is not None and (value >= bound if least else value <= bound)
        lines.append(f"{'reached' if reached else 'not reached'}: {name} (measured {_show(value, form)})")
    return lines


def _times(own: Figures, sides: dict[str, Figures], key: str) -> str:
    return f"{_show(_ratio(own[key], sides['plain'][key]), '.1f')} ×"


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _first(own: Figures, repeats: int) -> str:
    none = own["without_feasible"]
    text = f"{_show(own['first_trials'], '.0f')}, {_show(own['first_seconds'], '.1f')}"
    return text + (f" (none in {none:.0f} of {repeats} runs)" if none else "")


def _best(own: Figures, repeats: int) -> str:
    return f"{_show(own['speedup'], '.2f')} × (certified in {own['certified']:.0f} of {repeats} runs)"


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def memory(case: Case) -> Report:
    """Peak memory of calibration alone, by rows."""
    found: list[dict[str, Any]] = []
    available = case.length("train")
    ours: list[tuple[str, Callable[..., int], tuple[Any, ...]]] = [("Accutune, all methods", calibrate_accutune, (n,)) for n in MEMORY_ROWS]
    theirs = [(f"onnxruntime, {m}", plain_loop.calibrate, (n, m)) for m in ("Percentile", "Entropy") for n in PLAIN_MEMORY_ROWS]
    for name, function, options in [*ours, *theirs]:
        if options[0] > available:
            continue
        try:
            started = time.perf_counter()
            _, peak, _ = in_child(function, case, *options)
            found.append({"calibration": name, "rows": options[0], "peak_mib": peak, "seconds": time.perf_counter() - started})
        except Exception as error:
            found.append({"calibration": name, "rows": options[0], "error": f"{type(error).__name__}: {error}"})
    lines = [f"## {case.name}: calibration alone", "", "| calibration | rows | peak of the process, MiB |", "| --- | ---: | ---: |"]
    lines += [f"| {f['calibration']} | {f['rows']:,} | {f.get('error') or format(f['peak_mib'], '.0f')} |" for f in found]
    return "\n".join([*lines, ""]), found, any("error" in row for row in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plain_loop.add_case_arguments(parser)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each side of each repeat [120]")
    parser.add_argument("--trials", type=int, default=10_000, help="at most so many for each side")
    parser.add_argument("--repeats", type=int, default=1, help="with other seeds; figures are medians [1]")
    parser.add_argument("--plain-calibration-rows", type=int, default=CALIBRATION_ROWS, help="[%(default)s, as Accutune]")
    parser.add_argument("--memory", action="store_true", help="only compare the memory of calibration")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    from tuner.measure.runtime import environment

    machine = environment() | {"optuna": optuna.__version__}
    report = memory if arguments.memory else partial(compare, arguments=arguments)
    return plain_loop.for_each_case("tuning.py", arguments, machine, report)


if __name__ == "__main__":
    sys.exit(main())
