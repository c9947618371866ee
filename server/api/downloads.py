"""Sends artefacts: whole or in part, or not at all where the caller has them already."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from server.api.answers import file_of, matches, problems
from server.api.problems import KINDS, problem
from server.artifacts import Artifacts
from tuner.wire import ArtifactView

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; sandbox"
"""The report has styles and drawings of its own and nothing else; whatever a name in it might try, it runs no script."""

READING_THREADS = 8

_reading = anyio.CapacityLimiter(READING_THREADS)
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


class NotSatisfiable(Exception):
    """The range begins behind the end of the file."""


def send(request: Request, artifacts: Artifacts, file: ArtifactView, filename: str, *, inline: bool = False) -> Response:
    """The artefact as an answer to `request`: ETag and If-None-Match, one Range with If-Range, HEAD.

    The first bytes are fetched before the answer begins, so that what is missing or damaged is an error and no torn file."""
    etag = f'"{file.sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'{"inline" if inline else "attachment"}; filename="{_safe(filename)}"'
    if file.media_type.startswith("text/html"):
        headers["Content-Security-Policy"] = REPORT_POLICY
    try:
        part = _part(request, file.size_bytes, etag)
    except NotSatisfiable:
        return _not_satisfiable(file.size_bytes)
    start, end = part or (0, file.size_bytes)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    chunks = artifacts.open(file.sha256, start, end) if part else artifacts.open(file.sha256)
    return StreamingResponse(_sent(next(chunks, b""), chunks), status, headers, file.media_type)


def download(description: str, *media_types: str, lists: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that sends an artefact. lists: its JSON may be a list."""
    return {
        **file_of(description, *media_types, lists=lists),
        **file_of("The part that `Range` asked for.", *media_types, status=206, lists=lists),
        304: {"description": "The caller has it already."},
        **problems(404, 409, 416),
    }


async def _sent(first: bytes, rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    """All chunks, read by threads of their own: a slow object store must not hold up everything else that is asked."""
    yield first
    while (chunk := await anyio.to_thread.run_sync(next, rest, None, limiter=_reading)) is not None:
        yield chunk


def _part(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """[start, end) that the request asks for; None for the whole file, which also answers a range that cannot be read."""
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip().lower())
    if request.method != "GET" or asked is None or request.headers.get("if-range", etag).strip() != etag:
        return None
    first, last = asked.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise NotSatisfiable
    return start, end


def _not_satisfiable(size: int) -> Response:
    there = f"bytes 0 to {size - 1}" if size else "none, it is empty"
    detail = f"the range that was asked for has no byte of the file; what there is: {there}. Ask for a part of that, or for the whole file."
    return problem(416, KINDS[416][1], detail, headers={"Content-Range": f"bytes */{size}"})


def _safe(filename: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", filename)
