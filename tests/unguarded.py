"""Walks an application's routes and looks for guards."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from server.api.guards import is_public


def unguarded(app: FastAPI) -> list[str]:
    """Every route that anybody may call and that is not public, as "GET,POST /path". What is mounted counts: it has no guards."""
    return [
        f"{','.join(sorted(route.methods or ('ANY',)))} {route.path}"
        for route in iter_route_contexts(app.routes)
        if not _guarded(getattr(route, "dependant", None))
        and not all(is_public(method, route.path or "") for method in route.methods or ("ANY",))
    ]


def roles(app: FastAPI) -> dict[str, str]:
    """{"GET /path": the role that its guard asks for}."""
    return {
        f"{method} {route.path}": found[0]
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
        if (found := _roles(getattr(route, "dependant", None)))
    }


def _guarded(dependant: Dependant | None) -> bool:
    return bool(_roles(dependant))


def _roles(dependant: Dependant | None) -> list[str]:
    if dependant is None:
        return []
    own = [role for role in [getattr(dependant.call, "role", None)] if role]
    return own + [role for inner in dependant.dependencies for role in _roles(inner)]
