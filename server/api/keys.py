"""API keys: make, list, revoke. For admins."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from server.api.bodies import check_type, small
from server.api.guards import Admin
from server.api.paths import ID
from server.api.problems import ERRORS, parsed
from server.api.services import ServicesDep
from tuner.wire import KeyRequest, KeyView, NewKey, Page

MOST_BYTES = 4096
NO_STORE = {"Cache-Control": "no-store"}
KeyId = Annotated[str, Path(pattern=f"^{ID}$", description="The id of the key, not the key itself.", examples=["key0f3a9c1e77b24d58"])]
# The body is read by the handler, so that nobody's is read before it is known who sends it.
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": KeyRequest.model_json_schema(), "example": {"name": "ci", "role": "submitter"}}},
    }
}

router = APIRouter(tags=["keys"])


@router.post("/keys", status_code=201, response_model=NewKey, responses=ERRORS(408, 413, 415, 422), openapi_extra=BODY)
async def make_key(request: Request, services: ServicesDep, _: Admin) -> Response:
    """Make an API key. This answer is the only place where it is ever shown."""
    check_type(request, ("application/json",), 'Send a JSON body like {"name": "ci", "role": "submitter"}.', needed=True)
    wanted = parsed(KeyRequest, await small(request, MOST_BYTES))
    made = await run_in_threadpool(services.keys.make, wanted)
    return Response(made.model_dump_json(), 201, NO_STORE, "application/json")


@router.get("/keys", response_model=Page[KeyView])
def list_keys(services: ServicesDep, _: Admin) -> Page[KeyView]:
    """List all API keys, the newest first, also those that expired or were revoked."""
    return Page[KeyView](items=services.keys.list())


@router.delete("/keys/{key_id:id}", response_model=KeyView, responses=ERRORS(404))
def revoke_key(key_id: KeyId, services: ServicesDep, _: Admin) -> KeyView:
    """Revoke an API key, for good: it is refused from the next request on."""
    return services.keys.revoke(key_id)
