"""The loop: ask, evaluate, record, ask again; then certify finalists on the holdout and leave the results.

The store holds everything that was finished. A study that is started again on the same store and folder goes on where the
last one ended, whatever ended it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_spaces.schemes import QuantScheme
from search_spaces.space import QUANTIZE, SearchSpace
from search_spaces.structure import SPARSIFY
from tuner.errors import AccutuneError, JobCancelled, StorageError, TrialError
from tuner.executor import Executor
from tuner.export import TrialTable
from tuner.job import JobSpec
from tuner.plan import plan_of
from tuner.preflight import check_names
from tuner.progress import Event, Observer, Phase
from tuner.results import Assignment, Certificate, Findings, Preflight, TrialFailure, TrialResult, TrialState
from tuner.search.base import STRATEGIES, Problem, Strategy
from tuner.search.catalogue import load_strategies
from tuner.search.cost import build_problem
from tuner.store import JobState, TrialStore

PREPARE_SECONDS = 24 * 3600.0
MAX_REPEATS = 200
"""Questions in a row whose answer was known already before the space counts as exhausted."""
TRAINING_TOLD_SECONDS = 10.0
"""How often a trial that trains says how far it is."""
NEAR = 1.05
"""A feasible trial is timed if its predicted latency is within this factor of the best feasible one's."""


@dataclass
class Study:
    """One job on its way. `folder` receives the files; `executor` does the work; `observer` is told."""

    job: JobSpec
    job_id: str
    folder: Path
    store: TrialStore
    executor: Executor
    observer: Observer = lambda _: None
    clock: Callable[[], float] = time.monotonic
    finish_now: bool = False
    """Ask for no further trial; certify the best of those recorded."""
    phases: dict[str, float] = field(default_factory=dict)
    stop_reason: str = ""

    def __post_init__(self) -> None:
        load_strategies()
        check_names(self.job)
        self.strategy: Strategy = STRATEGIES[self.job.strategy]
        self._started = self.clock()
        self._spent_before = 0.0

    @property
    def seconds(self) -> float:
        """Wall clock over all runs of the job."""
        return self._spent_before + self.clock() - self._started

    def open(self) -> None:
        """Enter the job into the store, or take it up where it was left."""
        self.store.create_job(self.job_id, self.job)
        self._spent_before = self.store.job(self.job_id).seconds
        self.store.set_job_state(self.job_id, JobState.RUNNING)

    def search(self) -> Searched:
        """Prepare and search until a budget, the stop rule or the space ends it. JobCancelled leaves the state for resuming."""
        checked = self._phase("prepare", "prepare")
        ready = Preflight.model_validate(self._phase("baseline", "baseline", checked))
        self.tell("baseline", preflight=ready)
        self._phase("calibrate", "calibrate")
        findings = Findings.model_validate(self._phase("sensitivity", "survey"))
        problem = build_problem(ready.space, findings, self.job.objectives, self.job.seed)
        aims = self._call("aims", {"discordance": findings.discordance})
        finished = [trial for trial in self.store.trials(self.job_id) if trial.finished]
        table = TrialTable(self.folder / "trials.csv", ready.metrics, finished)
        started = self.clock()
        self.tell("search")
        loop = _Loop(self, problem, aims, table, finished)
        loop.run()
        self.phases["search"] = self.clock() - started
        return Searched(ready, findings, problem, aims, loop.history)

    def certify(self, problem: Problem, trial: TrialResult, attempt: int, path: Path) -> Certificate:
        """The certificate of one finalist, made from the file that is written to `path`."""
        plan = plan_of(problem.space, trial.assignment, self.job.seed).model_dump(mode="json")
        arguments = {"number": trial.number, "plan": plan, "attempt": attempt, "path": str(path)}
        return Certificate.model_validate(self._call("certify", arguments))

    def evaluate(
        self, problem: Problem, number: int, assignment: Assignment, aims: dict[str, float], timed: bool, full: bool = False
    ) -> TrialResult:
        """One trial, whatever becomes of it: what breaks is a failed row. JobCancelled passes through."""
        plan = plan_of(problem.space, assignment, self.job.seed)
        arguments = {
            "number": number,
            "plan": plan.model_dump(mode="json"),
            "assignment": assignment,
            "aims": aims,
            "measure_latency": timed,
            "full": full,
        }
        started = self.clock()
        try:
            timeout, told = self.job.budget.trial_seconds, _Told(self, number)
            return TrialResult.model_validate(self.executor.call("evaluate", arguments, timeout=timeout, progress=told))
        except (JobCancelled, StorageError):
            raise
        except AccutuneError as error:
            failure = TrialFailure(
                type=error.kind if isinstance(error, TrialError) else type(error).__name__,
                message=str(error),
                step=error.step if isinstance(error, TrialError) else "evaluate",
            )
            return TrialResult(
                number=number,
                state=TrialState.FAILED,
                assignment=assignment,
                plan_digest=plan.digest(),
                error=failure,
                timings={"failed": self.clock() - started},
            )

    def tell(self, phase: Phase, message: str = "", **details: Any) -> None:
        self.observer(Event(phase=phase, message=message, seconds=self.seconds, **details))

    def save_clock(self, state: JobState = JobState.RUNNING) -> None:
        self.store.set_job_state(self.job_id, state, seconds=self.seconds)

    def _phase(self, phase: Phase, call: str, arguments: dict[str, Any] | None = None) -> Any:
        started = self.clock()
        self.tell(phase)
        result = self._call(call, arguments or {}, lambda done, total: self.tell(phase, done=done, total=total))
        self.phases[phase] = self.clock() - started
        self.save_clock()
        return result

    def _call(self, name: str, arguments: dict[str, Any], progress: Callable[[int, int], None] = lambda _done, _total: None) -> Any:
        return self.executor.call(name, arguments, timeout=PREPARE_SECONDS, progress=progress)


class _Told:
    """Tells how far the training of a trial is, every few seconds."""

    def __init__(self, study: Study, number: int) -> None:
        self.study, self.number, self.last = study, number, study.clock()

    def __call__(self, done: int, total: int) -> None:
        if self.study.clock() - self.last < TRAINING_TOLD_SECONDS:
            return
        self.last = self.study.clock()
        self.study.tell("search", f"trial {self.number} has trained on {done:,} of {total:,} rows")


@dataclass(frozen=True)
class Searched:
    """What the search leaves behind."""

    preflight: Preflight
    findings: Findings
    problem: Problem
    aims: dict[str, float]
    history: list[TrialResult]


class _Loop:
    """Keeps `parallel` trials running until something ends the search."""

    def __init__(self, study: Study, problem: Problem, aims: dict[str, float], table: TrialTable, finished: list[TrialResult]) -> None:
        self.study, self.problem, self.aims, self.table = study, problem, aims, table
        self.history = finished
        self.digests = {trial.plan_digest for trial in finished}
        timed = [trial for trial in finished if trial.speedup is not None]
        self.timed = {kernels_of(problem.space, trial.assignment): trial for trial in reversed(timed)}
        self.running: dict[Future[TrialResult], TrialResult] = {}
        unfinished = (trial for trial in study.store.trials(study.job_id) if trial.state in (TrialState.RUNNING, TrialState.QUEUED))
        self.again = [trial.model_copy(update={"state": TrialState.RUNNING}) for trial in unfinished]
        """Trials that were running when the last run of this job ended."""
        self.attempt = max((trial.attempt for trial in [*finished, *self.again]), default=-1) + 1
        self.exhausted = False

    def run(self) -> None:
        study, budget = self.study, self.study.job.budget
        pool = ThreadPoolExecutor(budget.parallel)
        try:
            while True:
                while self._wants_more() and len(self.running) < budget.parallel and self._start(pool):
                    pass
                if not self.running:
                    self._wants_more()  # Names the reason where the strategy was the last to be asked.
                    break
                done = wait(self.running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda future: self.running[future].number):
                    self._finish(self.running.pop(future), future.result())
            for trial in self.again:
                study.store.save_trial(study.job_id, trial.model_copy(update={"state": TrialState.CANCELLED}))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _wants_more(self) -> bool:
        study, budget = self.study, self.study.job.budget
        if study.finish_now:
            study.stop_reason = "it was asked to finish with what there is"
        elif self.exhausted:
            study.stop_reason = "every plan that the strategy asks for was tried"
        elif len(self.history) + len(self.running) >= budget.trials:
            study.stop_reason = f"the budget of {budget.trials} trials is spent"
        elif self.history and study.seconds >= budget.search_seconds:
            study.stop_reason = f"the budget of {budget.seconds:g} s is spent (a part of it is kept for certifying)"
        elif study.job.stop == "first" and any(trial.feasible for trial in self.history):
            study.stop_reason = "the first feasible trial was asked for"
        else:
            return True
        return False

    def _start(self, pool: ThreadPoolExecutor) -> bool:
        asked = self.study.clock()
        trial = self._next()
        if trial is None:
            return False
        trial = trial.model_copy(update={"timings": {"ask": self.study.clock() - asked}})
        self.digests.add(trial.plan_digest)
        self.study.store.save_trial(self.study.job_id, trial)
        timed = self._worth_timing(trial.assignment)
        future = pool.submit(self.study.evaluate, self.problem, trial.number, trial.assignment, self.aims, timed)
        self.running[future] = trial
        return True

    def _next(self) -> TrialResult | None:
        """A trial that was cut off, else the strategy's next answer that is not known yet."""
        if self.again:
            return self.again.pop(0)
        asked = [*self.history, *self.running.values()]
        for _ in range(MAX_REPEATS if len(self.digests) < self.problem.space.size - 1 else 0):
            attempt, self.attempt = self.attempt, self.attempt + 1
            assignment = self.study.strategy(self.problem, asked, attempt)
            if assignment is None:
                break
            plan = plan_of(self.problem.space, assignment, self.study.job.seed)
            if plan.digest() not in self.digests and not plan.identity:
                number = max((trial.number for trial in asked), default=-1) + 1
                return TrialResult(
                    number=number, state=TrialState.RUNNING, assignment=assignment, plan_digest=plan.digest(), attempt=attempt
                )
        self.exhausted = True
        return None

    def _worth_timing(self, assignment: Assignment) -> bool:
        """Only a candidate whose predicted latency can compete is timed, unless its latency is limited; and of those that run the
        same kernels, only the first."""
        job = self.study.job
        if any(constraint.metric == "latency_ms" for constraint in job.constraints):
            return True
        if self._twin(assignment) is not None:
            return False
        if "latency" not in job.objectives:
            return False
        index = job.objectives.index("latency")
        rivals = [self.problem.predict(trial.assignment)[index] for trial in self.history if trial.speedup is not None]
        return self.problem.predict(assignment)[index] <= NEAR * min(rivals, default=float("inf"))

    def _twin(self, assignment: Assignment) -> TrialResult | None:
        """A timed trial that runs the same kernels: only ranges differ, and those take no time."""
        return self.timed.get(kernels_of(self.problem.space, assignment))

    def _with_latency_of_twin(self, trial: TrialResult) -> TrialResult:
        twin = self._twin(trial.assignment) if trial.speedup is None and trial.feasible else None
        if twin is None:
            return trial
        note = f"latency as measured for trial {twin.number}, which runs the same kernels"
        measurements = trial.measurements | {"latency_ms": twin.measurements["latency_ms"]}
        return trial.model_copy(update={"speedup": twin.speedup, "measurements": measurements, "notes": (*trial.notes, note)})

    def _finish(self, started: TrialResult, trial: TrialResult) -> None:
        trial = self._with_latency_of_twin(trial)
        gain = self.problem.predicted_gain(trial.assignment)
        timings = started.timings | trial.timings
        trial = trial.model_copy(update={"attempt": started.attempt, "timings": timings, "predicted_gain": gain})
        self.study.store.save_trial(self.study.job_id, trial)
        self.table.append(trial)
        self.history.append(trial)
        if trial.speedup is not None:
            self.timed.setdefault(kernels_of(self.problem.space, trial.assignment), trial)
        self.study.save_clock()
        self.study.tell(
            "search",
            done=len(self.history),
            total=self.study.job.budget.trials,
            trial=trial,
            best=best_so_far(self.history, self.problem),
            seconds_left=self._seconds_left(),
        )

    def _seconds_left(self) -> float:
        budget, study = self.study.job.budget, self.study
        spent = sum(sum(trial.timings.values()) for trial in self.history) / budget.parallel
        by_trials = spent / len(self.history) * (budget.trials - len(self.history))
        return max(0.0, min(by_trials, budget.seconds - study.seconds))


def kernels_of(space: SearchSpace, assignment: Assignment) -> frozenset[tuple[str, str]]:
    """(layer, kind of scheme or choice) of every compressed layer: what decides which kernels run, and on how much. Zeros are multiplied
    like other numbers."""
    found = set()
    for layer, choices in space.decode(assignment).items():
        for step, choice in choices.items():
            if step == QUANTIZE:
                found.add((layer, QuantScheme.parse(str(choice)).kind))
            elif step != SPARSIFY:
                found.add((layer, str(choice)))
    return frozenset(found)


def best_so_far(history: list[TrialResult], problem: Problem) -> TrialResult | None:
    """The best feasible trial by the first objective; without one, the one that misses by least."""
    ranked = [trial for trial in history if trial.violation is not None]
    feasible = [trial for trial in ranked if trial.feasible]
    if feasible:
        return min(feasible, key=lambda trial: merit(trial, problem))
    return min(ranked, key=lambda trial: trial.violation or 0.0, default=None)


def merit(trial: TrialResult, problem: Problem) -> float:
    """The first objective, smaller is better: measured speed where there is one, else as the search sees it."""
    if problem.objectives[0] == "latency":
        return -trial.speedup.value if trial.speedup is not None else 0.0
    measured = trial.measurements.get(f"{problem.objectives[0]}_bytes")
    return measured.value if measured is not None else problem.values(trial)[0]


__all__ = ["Searched", "Study", "best_so_far", "merit"]
