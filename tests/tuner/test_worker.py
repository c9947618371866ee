from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import tiny_job

from tuner.errors import DataError, JobError, TrialError
from tuner.plan import make_plan
from tuner.preflight import search_aims
from tuner.results import Certificate, Findings, Preflight, TrialResult
from tuner.worker import Calls, serve

GOOD = "u8-asym-minmax/s8-sym-channel"


class Some:
    def __init__(self, settings: dict[str, Any], progress: Callable[[int, int], None]) -> None:
        self.settings, self.progress = settings, progress

    def add(self, one: int, other: int) -> int:
        return one + other + int(self.settings["extra"])

    def slowly(self) -> None:
        self.progress(1, 2)

    def breaks(self, kind: str) -> None:
        raise {
            "trial": TrialError("boom", step="build", kind="KeyError"),
            "data": DataError("no rows", field="data.validation"),
            "job": JobError("no job"),
            "other": ValueError("strange"),
            "silent": ValueError(),
        }[kind]


def answers(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    lines = [{"extra": 10}, *requests]
    serve(Some, io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), sent.append)
    return sent


def test_every_request_gets_one_reply() -> None:
    assert answers({"call": "add", "args": {"one": 1, "other": 2}}, {"call": "slowly", "args": {}}) == [
        {"result": 13},
        {"progress": [1, 2]},
        {"result": None},
    ]


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("trial", {"error": {"type": "KeyError", "message": "boom", "step": "build"}}),
        ("data", {"input_error": {"type": "DataError", "message": "no rows", "field": "data.validation"}}),
        ("job", {"input_error": {"type": "JobError", "message": "no job", "field": None}}),
        ("other", {"error": {"type": "ValueError", "message": "strange", "step": "breaks"}}),
        ("silent", {"error": {"type": "ValueError", "message": "ValueError", "step": "breaks"}}),
    ],
)
def test_errors_are_replies_and_the_next_request_is_answered(kind: str, reply: dict[str, Any]) -> None:
    found = answers({"call": "breaks", "args": {"kind": kind}}, {"call": "add", "args": {"one": 0, "other": 0}})
    assert found == [reply, {"result": 10}]


def test_a_request_that_cannot_be_understood_is_answered() -> None:
    unknown, lacking = answers({"call": "multiply", "args": {}}, {"call": "add", "args": {"one": 1}})
    assert (unknown["error"]["type"], unknown["error"]["step"]) == ("AttributeError", "multiply")
    assert lacking["error"]["type"] == "TypeError"


def test_a_whole_job_in_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that goes in and comes out is JSON and reads back as what it was."""
    monkeypatch.setattr("tuner.certify.LATENCY_SECONDS", 0.05)
    monkeypatch.setattr("tuner.certify.LATENCY_BLOCKS", 3)
    job = tiny_job(tmp_path)
    plan = make_plan({"fc2": {"quantize": GOOD}}, 0)
    shown = {"number": 4, "plan": plan.model_dump(mode="json")}
    trial = shown | {"assignment": {"fc2": GOOD}, "aims": {"top1": 0.02}, "measure_latency": False}
    requests = [
        {"call": "prepare", "args": {}},
        {"call": "baseline", "args": {"notes": ["a note"]}},
        {"call": "calibrate", "args": {}},
        {"call": "survey", "args": {}},
        {"call": "aims", "args": {"discordance": 0.01}},
        {"call": "evaluate", "args": trial},
        {"call": "certify", "args": shown | {"attempt": 1, "path": str(tmp_path / "4.onnx")}},
    ]
    sent: list[str] = []
    made: list[Calls] = []

    def start(_: dict[str, Any], progress: Callable[[int, int], None]) -> Calls:
        made.append(Calls(job, tmp_path / "cache", progress))
        return made[0]

    lines = io.StringIO("".join(json.dumps(line) + "\n" for line in [{}, *requests]))
    serve(start, lines, lambda message: sent.append(json.dumps(message)))
    replies = [json.loads(line) for line in sent]
    results = [reply["result"] for reply in replies if "result" in reply]
    assert len(results) == len(requests)
    assert any("progress" in reply for reply in replies)
    assert list(results.pop(0)) == ["notes"]
    assert Preflight.model_validate(results[0]).rows["holdout"] == 400
    assert Preflight.model_validate(results[0]).notes[0] == "a note"
    assert results[1]["rows"] == 128
    assert [row.layer for row in Findings.model_validate(results[2]).sensitivity] == ["fc1", "fc2", "fc3"]
    assert results[3] == search_aims(made[0].evaluator, 0.01) == {"top1": 0.02}
    assert TrialResult.model_validate(results[4]).plan_digest == plan.digest()
    assert Certificate.model_validate(results[5]).outcome.trial == 4
