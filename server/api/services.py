"""What the handlers work with: opened by `server.service`, kept by the application."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from server.api.drawn import Drawn
from server.api.rates import Buckets

if TYPE_CHECKING:
    from server.api.hub import EventHub
    from server.artifacts import Artifacts
    from server.auth import Keys
    from server.gate import Gate
    from server.sessions import Sessions
    from server.settings import Settings
    from server.store.database import Database
    from server.store.events import EventReader
    from server.store.files import FileStore
    from server.store.jobs import JobStore
    from server.store.trial_lists import TrialReader


@dataclass(frozen=True)
class Services:
    """One for the process. anonymous: is a caller without a key let in? Only from this machine, see `server.api.guards`."""

    settings: Settings
    database: Database
    jobs: JobStore
    trials: TrialReader
    events: EventReader
    files: FileStore
    keys: Keys
    sessions: Sessions
    artifacts: Artifacts
    gate: Gate
    hub: EventHub
    anonymous: bool
    buckets: Buckets = field(default_factory=Buckets)
    drawn: Drawn = field(default_factory=Drawn)


# A coroutine, because FastAPI would hand a plain function to a thread.
async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
