"""Jobs that must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hostile.world import Case, World

JSON = {"Content-Type": "application/json"}
UPLOAD = "and write the id that it answers"


def job(label: str, says: str, /, status: int = 422, key: str = "submitter", **changes: Any) -> Case:
    """A job in which something is changed."""
    return Case(f"job: {label}", status, says, lambda world: world.submit(world.job(**changes), key))


def filled(name: str, says: str, change: Callable[[World], dict[str, Any]], status: int = 422) -> Case:
    """The same, where the change has ids in it."""
    return Case(f"job: {name}", status, says, lambda world: world.submit(world.job(**change(world))))


def on(file: str, says: str, name: str | None = None) -> Case:
    """A job whose validation rows come from another file."""

    def change(world: World) -> dict[str, Any]:
        return {"data": {"validation": {"file": world.ids[file]}}}

    return filled(name or file, says, change)


def rows(name: str, says: str, validation: list[int], holdout: list[int]) -> Case:
    def change(world: World) -> dict[str, Any]:
        file = world.ids["rows"]
        return {"data": {"validation": {"file": file, "rows": validation}, "holdout": {"file": file, "rows": holdout}}}

    return filled(name, says, change)


def body(name: str, content: bytes | Callable[[World], bytes], says: str, status: int = 422, **headers: str) -> Case:
    """A body as it stands."""

    def send(world: World) -> Any:
        sent = content(world) if callable(content) else content
        return world.send("POST", world.jobs, content=sent, headers={**JSON, **headers})

    return Case(f"body of a job: {name}", status, says, send)


def text(world: World, **changes: Any) -> str:
    return json.dumps(world.job(**changes))


def padded(world: World) -> bytes:
    """A good job in ten million bytes."""
    return text(world).encode() + b" " * 10**7


def budget(written: str) -> Callable[[World], bytes]:
    """A budget with a value that Python would not write."""
    return lambda world: text(world, budget={"seconds": "@"}).replace('"@"', written).encode()


def same_key(world: World) -> Any:
    """The key of a job that was submitted before, with another body."""
    return world.submit(world.job(seed=77), "owner", **{"Idempotency-Key": "once"})


def keyed(name: str, key: str) -> Case:
    says = "Correct this and send the request again"
    return Case(f"Idempotency-Key: {name}", 422, says, lambda world: world.submit(world.job(), **{"Idempotency-Key": key}))


FILES = [
    on("NaN labels", "Repair or leave out such rows"),
    on("labels out of range", "Number the classes from 0, or leave the row out"),
    on("float labels", "labels must be whole numbers in 0..4"),
    on("one-hot labels", "Use argmax over one-hot labels"),
    on("infinite input", "Repair or leave out such rows"),
    on("wide rows", "Save the rows in that shape", "wrong shapes"),
    on("float64 rows", "Save the array as float32 (array.astype('float32'))", "wrong dtypes"),
    on("no labels", "needs labels, and the validation data has no array 'labels'"),
    on("misnamed", "It holds: X, labels", "missing model input"),
    on("fewer labels", "Save one entry per row in each"),
    on("one row again and again", "Give more rows, or name a holdout"),
    on("a null", "Fill or drop them"),
    on("corrupt", "write it again", "data that is damaged inside"),
    filled("a second input that the data lack", "for the model's input 'z'", lambda world: {"model": world.ids["two inputs"]}),
    filled(
        "holdout equal to validation by content",
        "Give the holdout other rows, or remove the repeated ones",
        lambda world: {
            "data": {
                "validation": {"file": world.ids["rows"], "rows": [0, 150]},
                "holdout": {"file": world.ids["the same rows"], "rows": [0, 150]},
            }
        },
    ),
    rows("overlapping splits", "Give holdout other rows or leave it out", [0, 200], [100, 300]),
    rows("rows out of range", "Use an end of at most 300", [0, 200], [200, 10**9]),
    rows("rows reversed", "first < end, got [200, 100]; the split would be empty", [200, 100], [200, 300]),
    rows("rows below zero", "greater than or equal to 0, got -5", [-5, 100], [200, 300]),
    filled("a dataset as model", "Send the file with POST /api/v1/models?name=", lambda world: {"model": world.ids["rows"]}),
    filled("a model as data", UPLOAD, lambda world: {"data": {"validation": {"file": world.ids["model"]}}}),
    filled("a job as model", UPLOAD, lambda world: {"model": world.ids["done"]}),
    job("unknown model", "Send the file with POST /api/v1/models?name=", model="mdl-0000000000000000"),
    job("unknown data", UPLOAD, data={"validation": {"file": "dat-0000000000000000"}}),
    job("a path as model", "no path and no URL is ever opened", model="/etc/passwd"),
    job("a path upward as data", "no path and no URL is ever opened", data={"validation": {"file": "../../accutune.db"}}),
    job("a URL as model", "no path and no URL is ever opened", model="http://169.254.169.254/latest/meta-data"),
    job("a file URL as data", "no path and no URL is ever opened", data={"validation": {"file": "file:///etc/passwd"}}),
    job("a null byte as model", "no path and no URL is ever opened", model="mdl-0\0"),
    job("a line break behind the id", "no path and no URL is ever opened", model="mdl-0000000000000000\n"),
    job("an endless id", "no path and no URL is ever opened", model="m" * 100_000),
    job("a direction mark as model", "no path and no URL is ever opened", model="\u202e"),
]

FIELDS = [
    job("unknown metric", "Did you mean 'top1'?", metrics=["top-1"]),
    job("unknown metric of a constraint", "Did you mean 'top1'?", constraints=[{"metric": "top_1", "max_drop": 0.1}]),
    job("unknown strategy", "Did you mean 'random'?", strategy="randon"),
    job("unknown space", "Did you mean 'int8'?", space="int-8"),
    job("unknown runtime", "Did you mean 'onnxruntime-cpu'?", target={"runtime": "onnxruntime-gpu"}),
    job("unknown objective", "Did you mean 'latency'?", objectives=["latencie"]),
    job("unknown key", "Did you mean 'constraints'?", constraint=[]),
    job("unknown key of the budget", "Did you mean 'trials'?", budget={"trails": 5}),
    job("a class of Python as key", "unknown key '__class__'", __class__="os.system"),
    job("a text as number", "budget.trials", budget={"trials": "many"}),
    job("a list as model", "model must be a text", model=["m"]),
    job("a number as data", "data must be a mapping", data=5),
    job("null as constraints", "constraints must be a list", constraints=None),
    job("no constraint", "constraints must have at least one entry", constraints=[]),
    job("a constraint without a bound", "needs exactly one of max_drop, at_least, at_most", constraints=[{"metric": "top1"}]),
    job("a target beyond the possible", "at most 1", constraints=[{"metric": "top1", "at_least": 90}]),
    job("no constraint on accuracy", "add one like {metric: top1, max_drop: 0.01}", constraints=[{"metric": "size_bytes", "at_most": 9}]),
    job("too many trials", "less than or equal to 100000", budget={"trials": 10**9}),
    job("too long a budget", "less than or equal to 31622400", budget={"seconds": 1e300}),
    job("trials without end", "less than or equal to 31622400", budget={"trial_seconds": 1e12}),
    job("more at once than the server allows", "ACCUTUNE_PARALLEL", budget={"parallel": 200}),
    job("an integer of a thousand digits", "seed", seed=10**1000),
    job("another version", "version", version=2),
    job("a name like a path", "name: String should match pattern", name="../../etc/passwd"),
    job("a null byte in the name", "name: String should match pattern", name="a\0b"),
    job("a very long name", "name: String should match pattern", name="n" * 10_000),
    job("a name with a line break behind it", "name: String should match pattern", name="tiny\n"),
    job("markup as name", "name: String should match pattern", name="<script>alert(1)</script>"),
    job("20,000 wrong constraints", "constraints.0", constraints=[{"metric": 1}] * 20_000),
    Case("job: nothing given", 422, "is missing and has no default; add it", lambda world: world.submit({})),
]

BODIES = [
    body("NaN", budget("NaN"), "see /api/v1/openapi.json for an example"),
    body("Infinity", budget("Infinity"), "see /api/v1/openapi.json for an example"),
    body("a number too large for a float", budget("1e999"), "less than or equal to 31622400"),
    body("infinity as text", budget('"Infinity"'), "less than or equal to 31622400"),
    body("a number of 10,000 digits", budget("9" * 10_000), "see /api/v1/openapi.json for an example"),
    body("nested 100,000 deep", b'{"space":' + b"[" * 100_000, "see /api/v1/openapi.json for an example"),
    body("10 MB", padded, "the body may have 1,048,576 bytes at most; send less", 413),
    body("invalid UTF-8", b'{"model": "\xff\xfe"}', "see /api/v1/openapi.json for an example"),
    body("half a surrogate", b'{"model": "\\ud800"}', "see /api/v1/openapi.json for an example"),
    body("UTF-16", lambda world: text(world).encode("utf-16"), "see /api/v1/openapi.json for an example"),
    body("broken JSON", lambda world: text(world).encode()[:-5], "see /api/v1/openapi.json for an example"),
    body("YAML", b"model: mdl-1\n", "see /api/v1/openapi.json for an example"),
    body("empty", b"", "see /api/v1/openapi.json for an example"),
    body("a list", b"[1, 2]", "must be a JSON object with at least model, data and constraints, got a list"),
    body("null", b"null", "must be a JSON object with at least model, data and constraints, got a null"),
    body("wrong type", b"model=1", "-H 'Content-Type: application/json'", 415, **{"Content-Type": "application/x-www-form-urlencoded"}),
    body("YAML by its type", b"model: m", "-H 'Content-Type: application/json'", 415, **{"Content-Type": "application/yaml"}),
    body("gzip", b"\x1f\x8b\x08" + bytes(20), "see /api/v1/openapi.json for an example", 422, **{"Content-Encoding": "gzip"}),
]

KEYS = [
    keyed("with blanks", "a b"),
    keyed("too long", "k" * 201),
    keyed("empty", ""),
    Case("Idempotency-Key: with another body", 409, "choose a new key for a new one", same_key),
]


def only_asked(case: Case) -> Case:
    """The same job, of which is only asked what it would do."""
    return replace(case, name=f"check of a {case.name}", send=lambda world: case.send(replace(world, jobs="/checks")))


CASES = [*FILES, *FIELDS, *BODIES, *KEYS, *map(only_asked, [*FILES, *FIELDS, *BODIES])]
