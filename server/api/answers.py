"""Answers that are ready as text: what is read often is not built up, validated and taken apart again by the framework."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import anyio.to_thread
from fastapi import Request, Response
from pydantic import BaseModel

from server.api.problems import ERRORS

JSON = "application/json"
PREFIX = "/api/v1"
SLOW_CALLS = 4
"""How many calls that may take long (inspections, rebuilding a model) run at once; reads keep the other threads."""

P = ParamSpec("P")
R = TypeVar("R")
_slow = anyio.CapacityLimiter(SLOW_CALLS)


def ready(content: BaseModel | str | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that is sent as it stands."""
    text = content.model_dump_json() if isinstance(content, BaseModel) else content
    return Response(text, status, headers, JSON)


def located(request: Request, path: str) -> str:
    """The URL path of something under /api/v1 as the caller has to write it, also behind a proxy that adds a prefix."""
    return f"{request.scope.get('root_path', '')}{PREFIX}{path}"


async def slowly(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a call that may take long in a thread, a few at a time."""
    return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=_slow)


problems = ERRORS
"""The part of `responses` that documents these errors."""


def json_of(model: Any, description: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The part of `responses` that documents an answer which the handler writes itself."""
    return {status: {"model": model, "description": description}}


def file_of(description: str, *media_types: str, status: int = 200, lists: bool = False) -> dict[int | str, dict[str, Any]]:
    """The same for a file; those in JSON are objects. lists: or lists."""
    json = {"type": ["object", "array"] if lists else "object"}
    schemas = {name: json if name == JSON else {"type": "string", "format": "binary"} for name in media_types}
    return {status: {"description": description, "content": {name: {"schema": schema} for name, schema in schemas.items()}}}


def matches(header: str | None, etag: str) -> bool:
    """Does an If-None-Match header name this ETag? Weak ones count too."""
    if header is None:
        return False
    return header.strip() == "*" or etag in re.findall(r'"[^"]*"', header)
