"""The session of a browser: begin it with an API key, look at it, end it. What proves it is a cookie that no script can read."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from server import logs
from server.api.answers import json_of, ready
from server.api.bodies import check_type, small
from server.api.guards import COOKIE, Viewer, bearer, check_rate, refuse_other_pages, refuse_strangers, session_token
from server.api.problems import ERRORS, parsed
from server.api.services import Services, ServicesDep
from server.auth import caller_of
from server.sessions import HERE, NewSession, view_of
from server.store.database import Conflict
from tuner.wire import SessionView, SignIn

MOST_BYTES = 1024
NO_STORE = {"Cache-Control": "no-store"}
NOT_NEEDED = "this server has no API keys and needs none: whoever sits at its machine may do everything. Go on without signing in."
EXAMPLE = {"key": "acc_key0f3a9c1e77b24d58_…"}
# The body is read by the handler, as that of a new key is.
BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": SignIn.model_json_schema(), "example": EXAMPLE}}}
}
SET_COOKIE = {"Set-Cookie": {"description": f"The cookie `{COOKIE}`.", "schema": {"type": "string"}}}
BEGUN: dict[int | str, dict[str, Any]] = {201: json_of(SessionView, "The session has begun.", 201)[201] | {"headers": SET_COOKIE}}
ENDED: dict[int | str, dict[str, Any]] = {204: {"description": "There is no session any more.", "headers": SET_COOKIE}}

router = APIRouter(tags=["session"])


@router.post("/session", status_code=201, responses=BEGUN | ERRORS(401, 403, 408, 409, 413, 415, 422, 429), openapi_extra=BODY)
async def sign_in(request: Request, services: ServicesDep) -> Response:
    """Begin a session of this browser with an API key. It lives for 12 hours at most, and never longer than the key."""
    # Also without a cookie: another page must not sign somebody in as somebody else. What is no browser says nothing of pages.
    if {"origin", "sec-fetch-site"} & set(request.headers):
        refuse_other_pages(request)
    if services.anonymous:
        refuse_strangers(request)
        raise Conflict(NOT_NEEDED)
    check_type(request, ("application/json",), 'Send a JSON body like {"key": "acc_…"}.', needed=True)
    key = parsed(SignIn, await small(request, MOST_BYTES)).key.strip()
    holder = await run_in_threadpool(services.keys.holder, key)
    logs.key_id.set(holder.id)
    check_rate(caller_of(holder), services)
    made = await run_in_threadpool(services.sessions.make, holder)
    answer = ready(made.view, 201, NO_STORE)
    _set_cookie(answer, request, made)
    return answer


@router.get("/session", responses=json_of(SessionView, "Who asks."))
def show_session(request: Request, services: ServicesDep, _: Viewer) -> Response:
    """Show who asks: by a session, by an API key, or from the machine of a server without keys."""
    return ready(_who(request, services), headers=NO_STORE)


@router.delete("/session", status_code=204, response_class=Response, responses=ENDED | ERRORS(403))
async def sign_out(request: Request, services: ServicesDep) -> Response:
    """End the session of this browser, if there is one."""
    token = session_token(request)
    if token is not None:
        refuse_other_pages(request)
        await run_in_threadpool(services.sessions.end, token)
    answer = Response(status_code=204, headers=NO_STORE)
    answer.delete_cookie(COOKIE, **_place(request))
    return answer


def _who(request: Request, services: Services) -> SessionView:
    key, token = bearer(request), session_token(request)
    if key is not None:
        holder = services.keys.holder(key)
        return view_of(holder, holder.expires)
    if token is None or services.anonymous:
        return HERE
    return services.sessions.view(token)


def _set_cookie(answer: Response, request: Request, made: NewSession) -> None:
    answer.set_cookie(COOKIE, made.token, max_age=made.seconds, **_place(request))


def _place(request: Request) -> dict[str, Any]:
    """Where the cookie counts. Under a path prefix other programs share our host, and it is not for them."""
    path = f"{request.scope.get('root_path', '')}/"
    return {"path": path, "secure": request.url.scheme == "https", "httponly": True, "samesite": "strict"}
