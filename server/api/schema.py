"""The OpenAPI document: what the framework writes, with our errors and the bodies that are read as streams."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from server.api.guards import COOKIE, is_public
from server.api.problems import ERRORS
from tuner.job import JobSpec
from tuner.wire import Problem

PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
EVERYWHERE = (422, 503)
GUARDED = (401, 403, 429)
KEY = {"type": "http", "scheme": "bearer", "bearerFormat": "acc_…", "description": "An API key, made with `tuner keys create`."}
SESSION = {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "The session of a browser, begun with `POST /api/v1/session`."}
TAGS = [
    {"name": "models", "description": "ONNX models to be compressed."},
    {"name": "datasets", "description": "Arrays of rows to calibrate, search and certify with."},
    {"name": "jobs", "description": "A job compresses one model until a budget is spent."},
    {"name": "trials", "description": "What a job has tried."},
    {"name": "results", "description": "What a job has found."},
    {"name": "catalogue", "description": "What this server can do."},
    {"name": "keys", "description": "Who may use this server."},
    {"name": "session", "description": "Signing in with a browser."},
    {"name": "health", "description": "For those who operate it."},
]


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every answer in it that the service gives."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": KEY, "session": SESSION}
    schemas = components.setdefault("schemas", {})
    for name, schema in _own_schemas().items():
        schemas.setdefault(name, schema)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if isinstance(operation, dict) and "responses" in operation:
                _complete(operation, public=is_public(method.upper(), path))
    return document


def _complete(operation: dict[str, Any], *, public: bool) -> None:
    responses = operation["responses"]
    if not public:
        operation["security"] = [{"key": []}, {"session": []}]
    # What the framework writes for an invalid request is not what is answered.
    responses.pop("422", None)
    missing = [status for status in (*EVERYWHERE, *(() if public else GUARDED)) if str(status) not in responses]
    responses |= {str(status): answer for status, answer in ERRORS(*missing).items()}
    responses["default"] = {"description": "Any other error.", "content": {"application/problem+json": PROBLEM}}


def _own_schemas() -> dict[str, Any]:
    """The types that stand in bodies which the framework does not read itself."""
    types: list[tuple[type[BaseModel], JsonSchemaMode]] = [(JobSpec, "validation"), (Problem, "serialization")]
    _, written = models_json_schema(types, ref_template="#/components/schemas/{model}")
    own: dict[str, Any] = written["$defs"]
    return own
