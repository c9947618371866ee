"""From a finished search to a result: which finalist is certified, and what is said about it."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tuner.errors import AccutuneError, JobCancelled, TrialError, writing
from tuner.export import TrialTable, write_results
from tuner.files import beside
from tuner.job import JobSpec
from tuner.measure.runtime import environment
from tuner.plan import make_plan
from tuner.results import Certificate, JobResult, Outcome, TrialResult, TrialState
from tuner.search.base import float_assignment
from tuner.store import JobState
from tuner.study import Searched, Study, best_so_far, merit
from tuner.verdict import advice, blame, spelled_out, summary

MAX_FINALISTS = 5
MAX_FRONT = 8
AS_GOOD = 0.03
"""Finalists this close to the best one (relative) count as equally good; the one with the least predicted harm goes first."""
CANCEL_POLL_SECONDS = 0.5


def run_job(study: Study, deliver: Callable[[JobResult], None] = lambda _: None) -> JobResult:
    """Search, certify, write the folder, `deliver` it; only then has the job succeeded. JobCancelled after a request to cancel or
    Ctrl-C, any other error as it came; in either case the state is kept and the job can be resumed."""
    study.open()
    try:
        with _cancelling(study):
            searched = study.search()
            result = conclude(study, searched)
            deliver(result)
    except (KeyboardInterrupt, JobCancelled):
        study.executor.cancel()
        study.save_clock(JobState.CANCELLED)
        raise JobCancelled("the job was stopped; every finished trial is kept") from None
    except BaseException:
        study.executor.close()
        with suppress(AccutuneError):  # What ended the job may have hit the store too; the first error is the one to tell.
            study.save_clock(JobState.FAILED)
        raise
    study.executor.close()
    study.save_clock(JobState.SUCCEEDED)
    return result


@contextmanager
def _cancelling(study: Study) -> Iterator[None]:
    """Ends the executor's calls within a moment after a request to cancel was stored, wherever the job is."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(CANCEL_POLL_SECONDS):
            if study.store.cancel_requested(study.job_id):
                study.executor.cancel()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass
class _Certifying:
    """The finalists shown to the holdout so far."""

    study: Study
    searched: Searched
    shown: list[tuple[TrialResult, Certificate]] = field(default_factory=list)

    def winner(self) -> tuple[TrialResult, Certificate] | None:
        """The first finalist that the holdout confirms."""
        left = [trial for trial in self.searched.history if trial.feasible]
        while left and len(self.shown) < MAX_FINALISTS:
            trial = self._pick(left)
            left = [other for other in left if other.number != trial.number]
            whole = self._on_all_rows(trial)
            if not whole.feasible:
                continue
            try:
                certificate = self.show(whole)
            except TrialError as error:
                self.study.tell("certify", f"trial {trial.number} could not be certified ({error.step}: {error})", trial=trial)
                continue
            if self.confirmed(certificate):
                return whole, certificate
            harm = self._harm(trial)
            left = [other for other in left if self._harm(other) < harm]
        return None

    def show(self, trial: TrialResult) -> Certificate:
        attempt = len(self.shown) + 1
        self.study.tell("certify", f"trial {trial.number}", done=attempt, total=MAX_FINALISTS, trial=trial)
        path = self.study.folder / "pareto" / f"{trial.number}.onnx"
        certificate = self.study.certify(self.searched.problem, trial, attempt, path)
        self.shown.append((trial, certificate))
        return certificate

    def confirmed(self, certificate: Certificate) -> bool:
        """Met on the holdout, and better."""
        return certificate.outcome.verdict == "met" and self.better(certificate)

    def better(self, certificate: Certificate) -> bool:
        """If speed was asked for: faster than the original beyond doubt."""
        return certificate.outcome.speedup.lower > 1 or self.study.job.objectives[0] != "latency"

    def _pick(self, left: list[TrialResult]) -> TrialResult:
        """The least harmful of those that are as good as the best."""
        problem = self.searched.problem
        best = min(merit(trial, problem) for trial in left)
        equal = [trial for trial in left if merit(trial, problem) <= best + AS_GOOD * abs(best)]
        return min(equal, key=lambda trial: (self._harm(trial), trial.number))

    def _harm(self, trial: TrialResult) -> float:
        return self.searched.problem.total_damage(trial.assignment)

    def _on_all_rows(self, trial: TrialResult) -> TrialResult:
        """The trial scored on every validation row, recorded under its number."""
        if trial.measurements and all(v.rule != "anytime-valid test" for v in trial.verdicts):
            return trial
        problem, aims = self.searched.problem, self.searched.aims
        self.study.tell("certify", f"trial {trial.number} on all validation rows", done=len(self.shown), total=MAX_FINALISTS)
        whole = self.study.evaluate(problem, trial.number, trial.assignment, aims, timed=False, full=True)
        if whole.state == TrialState.FAILED:
            return whole
        kept = {name: value for name, value in trial.measurements.items() if name not in whole.measurements}
        same = {name: getattr(trial, name) for name in ("speedup", "predicted_gain", "attempt")}
        whole = whole.model_copy(update=same | {"measurements": whole.measurements | kept})
        self.study.store.save_trial(self.study.job_id, whole)
        self.searched.history[:] = [whole if other.number == whole.number else other for other in self.searched.history]
        return whole


def conclude(study: Study, searched: Searched) -> JobResult:
    """Certify, choose what is returned, and write every file of the job's folder."""
    started = study.clock()
    certifying = _Certifying(study, searched)
    trial, certificate = certifying.winner() or _without_winner(certifying)
    front = _front(certifying, trial)
    study.phases["certify"] = study.clock() - started
    study.tell("export")
    job = spelled_out(study.job, searched.preflight.metrics)
    result = _result(certifying, job, certificate, front)
    _leave_files(study, certificate, result)
    history = sorted(searched.history, key=lambda item: item.number)
    # Finalists were scored on more rows and the original may have come in since the rows were written.
    TrialTable(study.folder / "trials.csv", searched.preflight.metrics, history)
    write_results(study.folder, job, result, certificate.applied, history, searched.findings.sensitivity)
    return result


def _without_winner(certifying: _Certifying) -> tuple[TrialResult, Certificate]:
    """What to return where no finalist was confirmed: one that the holdout could not decide, else the original if that meets
    the target, else the nearest miss. Where speed was asked for, nothing that is not faster."""
    study, searched = certifying.study, certifying.searched
    nearest = best_so_far([t for t in searched.history if not t.feasible], searched.problem)
    if nearest is not None and not certifying.shown:
        certificate = certifying.show(nearest)
        if certifying.confirmed(certificate):
            return nearest, certificate
    better = [shown for shown in certifying.shown if certifying.better(shown[1])]
    undecided = [shown for shown in better if shown[1].outcome.verdict == "undecided"]
    if undecided:
        return undecided[0]
    original = _original(study, searched)
    certificate = certifying.show(original)
    if certificate.outcome.verdict == "met" or not better:
        return original, certificate
    return min(better, key=lambda shown: max(verdict.violation for verdict in shown[1].outcome.verdicts))


def _original(study: Study, searched: Searched) -> TrialResult:
    """A trial that leaves every layer alone, recorded like any other."""
    assignment = float_assignment(searched.problem.space)
    digest = make_plan({}, study.job.seed).digest()
    known = next((trial for trial in searched.history if trial.plan_digest == digest), None)
    if known is not None:
        return known
    number = max((trial.number for trial in searched.history), default=-1) + 1
    trial = study.evaluate(searched.problem, number, assignment, searched.aims, timed=False, full=True)
    study.store.save_trial(study.job_id, trial)
    searched.history.append(trial)
    return trial


def _front(certifying: _Certifying, best: TrialResult) -> list[tuple[TrialResult, Certificate]]:
    """With several objectives, the feasible trials that no other beats in all of them, certified; else the best alone."""
    searched = certifying.searched
    done = {trial.number: (trial, certificate) for trial, certificate in certifying.shown}
    if len(certifying.study.job.objectives) < 2:
        return [done[best.number]]
    feasible = [trial for trial in searched.history if trial.feasible]
    values = {trial.number: searched.problem.values(trial) for trial in feasible}
    beaten = {number for number, own in values.items() if any(_beats(other, own) for other in values.values())}
    members = [trial for trial in feasible if trial.number not in beaten]
    members = sorted(members, key=lambda trial: values[trial.number])[:MAX_FRONT]
    for trial in members:
        if trial.number not in done:
            done[trial.number] = (trial, certifying.show(trial))
    numbers = {trial.number for trial in members} | {best.number}
    return [done[number] for number in sorted(numbers)]


def _beats(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own, strict=True))


def _result(certifying: _Certifying, job: JobSpec, best: Certificate, front: list[tuple[TrialResult, Certificate]]) -> JobResult:
    study, searched = certifying.study, certifying.searched
    feasible = best.outcome.verdict == "met"
    states = Counter(trial.state.value for trial in searched.history)
    pareto = tuple(certificate.outcome for _, certificate in front) if len(front) > 1 else (_named(best.outcome, "best.onnx"),)
    return JobResult(
        job_id=study.job_id,
        name=job.name,
        state="succeeded",
        feasible=feasible,
        seconds=study.seconds,
        summary=summary(job, best, searched.preflight.rows["holdout"]),
        stop_reason=study.stop_reason,
        trials={"total": len(searched.history), **dict(sorted(states.items()))},
        finalists_tried=len(certifying.shown),
        baseline=best.baseline,
        best=_named(best.outcome, "best.onnx"),
        pareto=pareto,
        rows=searched.preflight.rows,
        rows_needed=best.rows_needed,
        notes=searched.preflight.notes,
        blame=() if feasible else blame(best.outcome, searched.findings),
        advice=() if feasible else advice(job, best, searched.findings),
        phases={name: round(seconds, 3) for name, seconds in study.phases.items()},
        environment=environment() | _provenance(study, best),
    )


def _provenance(study: Study, best: Certificate) -> dict[str, str]:
    digests = {"model_sha256": best.applied.model_sha256, "calibration_sha256": best.applied.data_sha256}
    return {"target": study.job.target.name, "seed": str(study.job.seed)} | digests


def _named(outcome: Outcome, file: str) -> Outcome:
    return outcome.model_copy(update={"file": file})


def _leave_files(study: Study, best: Certificate, result: JobResult) -> None:
    """best.onnx in the folder, with the weights that its plan changed; in pareto/ only what the result names."""
    pareto = study.folder / "pareto"
    source, target = pareto / f"{best.outcome.trial}.onnx", study.folder / "best.onnx"
    kept = {outcome.file for outcome in result.pareto}
    with writing("best.onnx"):
        if source.name in kept:
            shutil.copyfile(source, target)
        else:
            source.replace(target)
        beside(target).unlink(missing_ok=True)
        if beside(source).is_file():
            beside(source).replace(beside(target))
        for file in pareto.glob("*.tensors.safetensors"):
            file.unlink()
        for file in pareto.glob("*.onnx"):
            if file.name not in kept:
                file.unlink()
        if not any(pareto.iterdir()):
            pareto.rmdir()
