"""Errors as answers: what each becomes, that it names the way out, and that nothing inner leaks."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from server.api import problems
from server.api.problems import DEFAULT_REMEDY, ERRORS, KINDS, TooLarge, WrongType, parsed
from server.auth import Forbidden, TooMany, Unauthorized
from server.logs import RequestLog
from server.metrics import route_template
from server.store.database import Conflict, LeaseLost, NotFound, StorageFull
from tests.api_parts import ask
from tuner.errors import DataError, InputError, JobError, ModelError, PlanError, StorageError, UnknownName, WrongKind
from tuner.job import parse_job
from tuner.wire import KeyRequest, Problem

JOB = {"model": "m", "data": {"validation": {"file": "d"}}, "constraints": [{"metric": "top1", "max_drop": 0.01}]}


def app_raising(fail: Callable[[], object]) -> FastAPI:
    """An application whose /it does `fail`, as the service's own is put together."""
    app = FastAPI(redirect_slashes=False)
    problems.install(app)
    app.add_middleware(RequestLog, route_of=route_template)
    app.get("/it")(lambda: fail())
    return app


def raised(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def answered(fail: Callable[[], object] | Exception) -> tuple[Problem, dict[str, str]]:
    answer = ask(app_raising(raised(fail) if isinstance(fail, Exception) else fail), "/it")
    assert answer.headers["content-type"] == "application/problem+json"
    body = Problem.model_validate(answer.json())
    assert (answer.status_code, answer.headers["x-request-id"]) == (body.status, body.request_id)
    return body, dict(answer.headers)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Unauthorized("say"), 401, "unauthorized"),
        (Forbidden("say"), 403, "forbidden"),
        (NotFound("say"), 404, "not-found"),
        (Conflict("say"), 409, "conflict"),
        (TooLarge("say"), 413, "too-large"),
        (WrongType("say"), 415, "wrong-type"),
        (WrongKind("say"), 415, "wrong-type"),
        (TooMany("say"), 429, "too-many"),
        (HTTPException(408, "say"), 408, "too-slow"),
        (HTTPException(400, "say"), 400, "bad-request"),
    ],
)
def test_what_goes_wrong_becomes_a_status(error: Exception, status: int, kind: str) -> None:
    body, _ = answered(error)
    assert (body.status, body.type, body.title, body.detail) == (status, f"urn:problem-type:accutune:{kind}", KINDS[status][1], "say")


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (JobError("say"), "The job cannot be used"),
        (UnknownName("metric", "x", []), "The job cannot be used"),
        (ModelError("say"), "The model cannot be used"),
        (DataError("say"), "The data cannot be used"),
        (PlanError("say"), "The plan cannot be used"),
        (InputError("say"), "The request cannot be used"),
    ],
)
def test_every_input_error_is_a_422(error: InputError, title: str) -> None:
    body, _ = answered(error)
    assert (body.status, body.title, body.detail) == (422, title, str(error))


def test_headers_that_go_with_a_status() -> None:
    assert answered(Unauthorized("x"))[1]["www-authenticate"] == "Bearer"
    assert answered(TooMany("x", 7))[1]["retry-after"] == "7"
    assert answered(StorageError("x"))[1]["retry-after"] == "5"
    assert answered(HTTPException(408, "x", {"Connection": "close"}))[1]["connection"] == "close"


@pytest.mark.parametrize(
    ("message", "field", "item"),
    [
        (
            "max_drop must be below 1, got 2.5; give a fraction",
            "constraints.0",
            {"field": "constraints.0", "value": "2.5", "rule": "max_drop must be below 1, got 2.5", "remedy": "give a fraction"},
        ),
        (
            "file must be an id, got 'a.npz'. Send it first. Then write its id.",
            "data.file",
            {
                "field": "data.file",
                "value": "a.npz",
                "rule": "file must be an id, got 'a.npz'. Send it first",
                "remedy": "Then write its id.",
            },
        ),
        (
            "the graph has no nodes",
            None,
            {"field": "request", "value": None, "rule": "the graph has no nodes", "remedy": DEFAULT_REMEDY},
        ),
        (
            "unknown metric 'top'. Did you mean 'top1'? Known: top1, top5.",
            "metrics",
            {"field": "metrics", "value": None, "rule": "unknown metric 'top'", "remedy": "Did you mean 'top1'? Known: top1, top5."},
        ),
    ],
)
def test_a_message_is_taken_apart(message: str, field: str | None, item: dict[str, str | None]) -> None:
    body, _ = answered(JobError(message, field=field))
    assert [item.model_dump() for item in body.errors] == [item]


def test_a_job_with_several_faults_lists_each() -> None:
    wrong = {**JOB, "seed": "x", "strategi": "auto", "data": {}}
    body, _ = answered(lambda: parse_job(wrong))
    assert [(item.field, item.value) for item in body.errors] == [("data.validation", None), ("seed", "x"), ("strategi", None)]
    assert body.errors[0].rule == "data.validation is missing and has no default"
    assert body.errors[0].remedy == "add it"
    assert body.errors[2].rule == "strategi: unknown key 'strategi'"
    assert body.errors[2].remedy.startswith("Did you mean 'strategy'? Known: ")


def test_thousands_of_faults_are_not_all_listed() -> None:
    body, _ = answered(lambda: parse_job({**JOB, "metrics": [1] * 5000}))
    assert len(body.errors) == 50
    assert len(body.detail) < 4100


def test_what_utf8_cannot_write_does_no_harm() -> None:
    assert answered(lambda: parse_job({**JOB, "\ud800": 1}))[0].status == 422
    assert answered(JobError("got '\udfff'; no", field="\ud800"))[0].errors[0].value == "?"


def cause(error: Exception, because: BaseException) -> Exception:
    error.__cause__ = because
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageError("/srv/secret broke"), 503),
        (cause(StorageError("/srv/secret broke"), OSError(errno.EACCES, "no")), 503),
        (cause(StorageError("/srv/secret broke"), OSError(errno.ENOSPC, "no")), 507),
        (StorageFull("/srv/secret broke"), 507),
    ],
)
def test_storage_that_fails_is_told_to_the_operator(error: Exception, status: int, caplog: pytest.LogCaptureFixture) -> None:
    body, _ = answered(error)
    assert body.status == status
    assert "/srv" not in body.model_dump_json()
    assert "storage failed: /srv/secret broke" in caplog.messages


@pytest.mark.parametrize(
    "error", [RuntimeError("s3cret"), ValueError("s3cret"), LeaseLost("s3cret"), OSError("s3cret"), KeyError("s3cret")]
)
def test_what_nobody_foresaw_is_told_to_the_log_alone(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(app_raising(raised(error)), "/it")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json() == {
        "type": "urn:problem-type:accutune:internal",
        "title": "Internal error",
        "status": 500,
        "detail": "the server failed in a way that nobody foresaw. Its log tells more under the request_id; quote that when you report it.",
        "errors": [],
        "request_id": answer.headers["x-request-id"],
    }
    assert not any(text in f"{answer.headers}{answer.text}" for text in ("s3cret", "Error", "Traceback", ".py"))
    assert answer.headers["x-content-type-options"] == "nosniff"
    told = next(record for record in caplog.records if record.message == "unforeseen error")
    assert told.exc_info is not None
    assert told.exc_info[1] is error


def test_an_answer_that_breaks_half_way_is_cut_off() -> None:
    def chunks() -> Any:
        yield b"a"
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        ask(app_raising(lambda: StreamingResponse(chunks())), "/it")


def test_a_caller_who_went_away_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "accutune.http")
    # The client of the test complains that there was no answer; a real one is no longer there.
    with pytest.raises(AssertionError):
        ask(app_raising(raised(ClientDisconnect())), "/it")
    assert [record.levelname for record in caplog.records if record.message == "the caller went away"] == ["INFO"]


def typed() -> FastAPI:
    app = app_raising(lambda: 1)

    @app.post("/typed/{number}")
    def take(
        number: int,
        limit: Annotated[int, Query(ge=1)],
        x_it: Annotated[str, Header(max_length=3)],
        body: Annotated[dict[str, int], Body()],
    ) -> int:
        return number + limit + len(x_it) + len(body)

    @app.put("/typed/{number}")
    def put(number: int) -> int:
        return number

    return app


def test_what_the_framework_refuses_reads_like_our_own() -> None:
    answer = ask(typed(), "/typed/x?limit=0", "POST", headers={"X-It": "long one"}, json={"a": "b"})
    body = Problem.model_validate(answer.json())
    assert (answer.status_code, body.type) == (422, "urn:problem-type:accutune:invalid")
    assert [(item.field, item.value) for item in body.errors] == [("number", "x"), ("limit", "0"), ("x-it", "long one"), ("a", "b")]
    assert body.errors[1].rule == "Input should be greater than or equal to 1"
    assert body.detail.startswith("number: Input should be a valid integer, unable to parse string as an integer; limit: Input should be")


def test_what_is_missing_says_so() -> None:
    answer = ask(typed(), "/typed/1", "POST")
    assert [(item["field"], item["rule"], item["remedy"]) for item in answer.json()["errors"]] == [
        ("limit", "is missing", "Add it."),
        ("x-it", "is missing", "Add it."),
        ("body", "is missing", "Add it."),
    ]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"a": \xff}', b"[" * 100_000])
def test_a_body_that_is_no_json_is_a_422_too(body: bytes) -> None:
    answer = ask(typed(), "/typed/1?limit=1", "POST", content=body, headers={"Content-Type": "application/json", "X-It": "a"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [item["field"] for item in answer.json()["errors"]] == ["body"]
    assert "JSON" in answer.json()["errors"][0]["rule"]
    assert "JSON validator" in answer.json()["errors"][0]["remedy"]


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        (b"{}", [("name", "is missing")]),
        (b'{"name": "a", "rolle": 1}', [("rolle", "is not known here")]),
        (b'{"name": "a", "days": 0}', [("days", "Input should be greater than or equal to 1")]),
        (b"[]", [("body", "Input should be an object")]),
        (b"\xff", [("body", "must be valid JSON: expected value at line 1 column 1")]),
    ],
)
def test_a_body_that_a_handler_reads_is_refused_the_same_way(body: bytes, errors: list[tuple[str, str]]) -> None:
    found, _ = answered(lambda: parsed(KeyRequest, body))
    assert [(item.field, item.rule) for item in found.errors] == errors
    assert found.status == 422


def test_a_body_that_fits_is_read() -> None:
    assert parsed(KeyRequest, b'{"name": "ci", "days": 3}') == KeyRequest(name="ci", days=3)


def test_an_unknown_address_says_where_the_addresses_are() -> None:
    answer = ask(app_raising(lambda: 1), "/nothing/<script>")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["detail"] == "there is nothing at this address. All addresses are listed in /api/v1/openapi.json"


def test_a_wrong_method_says_which_are_right() -> None:
    answer = ask(typed(), "/typed/1", "DELETE")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, PUT")
    assert answer.json()["detail"] == "this address does not take DELETE, only POST, PUT. See /api/v1/openapi.json"


def test_an_answer_that_is_no_error_passes() -> None:
    answer = ask(app_raising(raised(HTTPException(304, headers={"ETag": '"x"'}))), "/it")
    assert (answer.status_code, answer.headers["etag"], answer.content) == (304, '"x"', b"")


def test_documented_errors_have_the_type_and_an_example() -> None:
    found = ERRORS(*KINDS)
    assert list(found) == list(KINDS)
    for status, entry in found.items():
        ((media_type, content),) = entry["content"].items()
        assert (media_type, content["schema"]) == ("application/problem+json", {"$ref": "#/components/schemas/Problem"})
        assert Problem.model_validate(content["example"]).status == status
    assert found[422]["content"]["application/problem+json"]["example"]["errors"][0]["field"] == "budget.trials"
    assert "Retry-After" in found[429]["headers"]
    assert json.dumps(found)
