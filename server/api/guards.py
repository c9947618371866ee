"""Who may pass. Every route but the public ones has a guard; a test walks the router and looks."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from server import logs
from server.api.services import Services, services_of
from server.auth import ANONYMOUS, MALFORMED, MISSING, Caller, Forbidden, TooMany, Unauthorized
from tuner.wire import Role

PUBLIC = frozenset({"/healthz", "/readyz", "/api/v1/openapi.json"})
"""The addresses that anybody may call."""
PUBLIC_CALLS = frozenset({"POST /api/v1/session", "DELETE /api/v1/session", "GET /signin", "GET /static/{digest}/{name}"})
"""What else anybody may call, at addresses that are guarded otherwise."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MAKE_A_KEY = "Make an API key (tuner keys create NAME) and send it as 'Authorization: Bearer acc_…'."

COOKIE = "accutune_session"
"""Proves the session of a browser."""
OTHER_PAGE = (
    "this does not come from a page of this server, and nothing else may begin, use or end the session of a browser to change something. "
    "Open this server's address in the browser and do it there; programs send an API key as 'Authorization: Bearer acc_…' instead."
)

Guard = Callable[..., Awaitable[Caller]]


def is_public(method: str, path: str) -> bool:
    """May anybody call this?"""
    return path in PUBLIC or f"{method} {path}" in PUBLIC_CALLS


def needs(role: Role) -> Guard:
    """The dependency that lets pass, and tells, a caller who may do what `role` may. It carries its role as an attribute."""

    # No dependencies of its own: resolving each takes as long as everything that is done here.
    async def guard(request: Request) -> Caller:
        services = await services_of(request)
        logs.job_id.set(request.path_params.get("job_id"))
        caller = await identify(request, services)
        logs.key_id.set(caller.id)
        check_rate(caller, services)
        if not caller.may(role):
            raise Forbidden(
                f"this needs the role '{role}', and the API key '{caller.name}' has the role '{caller.role}'. "
                "Use another key, or ask an admin for one."
            )
        return caller

    guard.__name__ = f"needs_{role}"
    setattr(guard, "role", role)  # noqa: B010  # A plain assignment to a function's attribute does not pass the type checker.
    return guard


async def identify(request: Request, services: Services) -> Caller:
    """Who asks. Unauthorized without a good key or session, except on a server without keys for this machine's own programs."""
    look_up = proof(request, services)
    if look_up is not None:
        return await run_in_threadpool(look_up)
    if not services.anonymous:
        raise Unauthorized(MISSING)
    refuse_strangers(request)
    return ANONYMOUS


def proof(request: Request, services: Services) -> Callable[[], Caller] | None:
    """Looks up who asks, by the API key and else by the session that the request came with; None where it came with neither.

    A session is none on a server without keys. With one, whatever changes something must come from a page of ours."""
    key = bearer(request)
    if key is not None:
        return partial(services.keys.caller, key)
    token = None if services.anonymous else session_token(request)
    if token is None:
        return None
    if request.method not in SAFE:
        refuse_other_pages(request)
    return partial(services.sessions.caller, token)


def bearer(request: Request) -> str | None:
    """The key in the Authorization header; None without that header."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized(MALFORMED)
    return key.strip()


def session_token(request: Request) -> str | None:
    """What the cookie proves a session with. The first of that name: browsers send the one of the longest path first, which is ours
    where another server's path lies above."""
    for part in ";".join(request.headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return None


def check_rate(caller: Caller, services: Services) -> None:
    """TooMany for who has asked too often."""
    most = services.settings.requests_per_minute
    if wait := services.buckets.take(caller.id, most):
        raise TooMany(f"a key may make {most} requests per minute, and this one has. Wait {wait} s, then go on more slowly.", wait)


def refuse_other_pages(request: Request) -> None:
    """Forbidden unless the browser says that a page of this server sends this.

    Not every browser sends Sec-Fetch-Site, and none does over plain HTTP to another machine; Origin comes with every change."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    ours = is_from(origin, request.headers.get("host", "")) if site is None else site == "same-origin"
    if not ours:
        raise Forbidden(OTHER_PAGE)


def is_from(origin: str | None, host: str) -> bool:
    """Does an Origin header name the host and port that a Host header names?"""
    place = (origin or "").partition("://")[2].lower()
    return bool(place) and place == host.lower()


def refuse_strangers(request: Request) -> None:
    """Forbidden for what a page of some website makes a browser on this machine send. No key protects a server without keys.

    A name of the website's own that leads to this machine (DNS rebinding) is told by the Host header, a request that is sent
    across from another page by Sec-Fetch-Site and Origin."""
    host = request.headers.get("host", "")
    if not is_loopback(host):
        raise Forbidden(
            f"without API keys this server answers only to localhost, 127.0.0.1 and [::1], got Host '{host[:100]}'. {MAKE_A_KEY}"
        )
    if request.method in SAFE:
        return
    origin = request.headers.get("origin")
    foreign = origin is not None and not is_from(origin, host)
    if foreign or request.headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden(f"without API keys this server takes no changes from another website's page. {MAKE_A_KEY}")


def is_loopback(host: str) -> bool:
    """Does a Host header, with or without a port, name this machine?"""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def may_change(caller: Caller, owner: str | None) -> None:
    """Forbidden unless what belongs to `owner` is the caller's own, or the caller is an admin."""
    if caller.may("admin") or (caller.id is not None and caller.id == owner):
        return
    raise Forbidden("this belongs to another API key, and only its owner or an admin may change it. Ask one of them, or send your own.")


Viewer = Annotated[Caller, Depends(needs("viewer"))]
Submitter = Annotated[Caller, Depends(needs("submitter"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
