"""The child process that hosts an evaluator: warm between trials, and gone without harm when one of them breaks it.

It reads one JSON request per line and answers each with one JSON reply; what libraries print goes to its log. It ends when its
parent does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from search_spaces.schemes import Frozen
from tuner.certify import certify
from tuner.errors import InputError, TrialError, disk_error, is_full
from tuner.evaluator import Evaluator
from tuner.job import JobSpec
from tuner.layer_profiles import write_profiles
from tuner.limits import end_with_parent, limit_files, limit_memory
from tuner.plan import CompressionPlan
from tuner.preflight import baseline, check_job, search_aims
from tuner.results import Assignment
from tuner.survey import survey

Send = Callable[[dict[str, Any]], None]
Call = Callable[..., Any]


class Calls:
    """What a worker can be asked. Arguments and results are plain JSON values."""

    def __init__(self, job: JobSpec, cache: Path, progress: Callable[[int, int], None]) -> None:
        self.evaluator = Evaluator(job, cache)
        self._progress = progress

    def prepare(self) -> dict[str, list[str]]:
        return {"notes": check_job(self.evaluator)}

    def baseline(self, notes: list[str]) -> Frozen:
        return baseline(self.evaluator, notes, self._progress)

    def calibrate(self) -> dict[str, int]:
        return {"tensors": len(self.evaluator.statistics), "rows": len(self.evaluator.roles.calibration)}

    def survey(self) -> Frozen:
        found = survey(self.evaluator, self._progress)
        write_profiles(self.evaluator, found)
        return found

    def aims(self, discordance: float) -> dict[str, float]:
        return search_aims(self.evaluator, discordance)

    def evaluate(
        self, number: int, plan: CompressionPlan, assignment: Assignment, aims: dict[str, float], measure_latency: bool, full: bool = False
    ) -> Frozen:
        return self.evaluator.evaluate(
            number, plan, assignment, aims=aims, measure_latency=measure_latency, full=full, progress=self._progress
        )

    def certify(self, number: int, plan: CompressionPlan, attempt: int, path: str) -> Frozen:
        return certify(self.evaluator, number, plan, attempt, Path(path))


def serve(calls: Callable[[dict[str, Any], Callable[[int, int], None]], Any], requests: IO[str], send: Send) -> None:
    """Answer requests until there are no more. The first line starts the worker: it is handed to `calls` for the object
    whose methods are called."""
    target = calls(json.loads(requests.readline()), lambda done, total: send({"progress": [done, total]}))
    for line in requests:
        request = json.loads(line)
        try:
            result = getattr(target, request["call"])(**_typed(request["args"]))
            send({"result": result.model_dump(mode="json") if isinstance(result, Frozen) else result})
        except TrialError as error:
            send({"error": {"type": error.kind, "message": str(error), "step": error.step}})
        except InputError as error:
            send(_refused(error))
        except OSError as error:
            send(_broken(error, request["call"]) if not is_full(error) else _refused(disk_error(error, request["call"])))
        except Exception as error:  # A worker must answer whatever happens; its parent records it.
            send(_broken(error, request["call"]))


def _refused(error: InputError) -> dict[str, Any]:
    return {"input_error": {"type": type(error).__name__, "message": str(error), "field": error.field}}


def _broken(error: Exception, step: str) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "message": str(error) or type(error).__name__, "step": step}}


def _typed(arguments: dict[str, Any]) -> dict[str, Any]:
    plan = arguments.get("plan")
    return arguments if not isinstance(plan, dict) else arguments | {"plan": TypeAdapter(CompressionPlan).validate_python(plan)}


def talk(start: Callable[[dict[str, Any], Callable[[int, int], None]], Any]) -> None:
    """Serve as a child process: requests on standard input, replies on what was standard output, until the parent is gone."""

    def begin(settings: dict[str, Any], progress: Callable[[int, int], None]) -> Any:
        end_with_parent(settings.get("parent"))
        return start(settings, progress)

    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    serve(begin, sys.stdin, send)


def main() -> None:
    """Entry point of `python -m tuner.worker`."""
    # Threads that wait must sleep: on a machine with other work, threads that spin made training forty times slower. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def start(settings: dict[str, Any], progress: Callable[[int, int], None]) -> Calls:
        limit_files(settings["file_gb"])
        if settings["memory_gb"]:
            limit_memory(settings["memory_gb"])
        return Calls(JobSpec.model_validate(settings["job"]), Path(settings["cache"]), progress)

    talk(start)


if __name__ == "__main__":
    main()
