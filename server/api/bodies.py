"""Reads request bodies bit by bit, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from server.api.problems import WrongType
from server.artifacts import TooLarge

IDLE_SECONDS = 30.0
"""How long a sender may be silent in the middle of a body."""


async def chunks(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives. A sender that needs more than `seconds`, or falls silent, gets a 408 and is cut off."""
    stream = request.stream()
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while True:
        try:
            async with asyncio.timeout(min(IDLE_SECONDS, end - clock())):
                chunk = await anext(stream, b"")
        except TimeoutError:
            slow = f"the body did not arrive in time: within {seconds:g} s, and never silent for {IDLE_SECONDS:g} s. Send it again."
            raise HTTPException(408, slow, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection was closed before the body was complete; send it again") from None
        if not chunk:
            return
        yield chunk


async def small(request: Request, limit: int, seconds: float = IDLE_SECONDS) -> bytes:
    """A whole body of at most `limit` bytes. TooLarge beyond that."""
    refusal = TooLarge(f"the body may have {limit:,} bytes at most; send less")
    if (announced(request) or 0) > limit:
        raise refusal
    body = bytearray()
    async for chunk in chunks(request, seconds):
        body += chunk
        if len(body) > limit:
            raise refusal
    return bytes(body)


def announced(request: Request) -> int | None:
    """The size that the sender says the body has; None where it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def check_type(request: Request, allowed: tuple[str, ...], remedy: str, *, needed: bool) -> None:
    """WrongType for a body of another media type. needed: it has to be said."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in allowed or (not given and not needed):
        return
    raise WrongType(f"Content-Type must be {allowed[0]}, got {given[:100] or 'none'}. {remedy}")
