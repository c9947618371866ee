"""Who may pass. Every route but those in PUBLIC has a guard; a test walks the router and looks."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from server import logs
from server.api.services import Services, services_of
from server.auth import ANONYMOUS, MALFORMED, MISSING, Caller, Forbidden, TooMany, Unauthorized
from tuner.wire import Role

PUBLIC = frozenset({"/healthz", "/readyz", "/api/v1/openapi.json"})
"""The only routes that anybody may call."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MAKE_A_KEY = "Make an API key (tuner keys create NAME) and send it as 'Authorization: Bearer acc_…'."

Guard = Callable[..., Awaitable[Caller]]


def needs(role: Role) -> Guard:
    """The dependency that lets pass, and tells, a caller who may do what `role` may. It carries its role as an attribute."""

    # No dependencies of its own: resolving each takes as long as everything that is done here.
    async def guard(request: Request) -> Caller:
        services = await services_of(request)
        logs.job_id.set(request.path_params.get("job_id"))
        caller = await identify(request, services)
        logs.key_id.set(caller.id)
        if wait := services.buckets.take(caller.id, services.settings.requests_per_minute):
            most = services.settings.requests_per_minute
            raise TooMany(f"a key may make {most} requests per minute, and this one has. Wait {wait} s, then go on more slowly.", wait)
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
    """Who asks. Unauthorized without a good key, except on a server without keys for this machine's own programs."""
    header = request.headers.get("authorization")
    if header is None:
        if not services.anonymous:
            raise Unauthorized(MISSING)
        refuse_strangers(request)
        return ANONYMOUS
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized(MALFORMED)
    return await run_in_threadpool(services.keys.caller, key.strip())


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
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
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
