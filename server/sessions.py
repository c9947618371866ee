"""Sessions of browsers: begun with an API key, proved by a cookie from then on.

What proves a session has 256 random bits, and what is kept is its SHA-256, as with keys. A browser that holds it does not hold the key:
what is stolen from a browser is worth something for hours at most, and makes no new sessions."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from server.auth import ANONYMOUS, Caller, Unauthorized, caller_of, check_good, digest
from tuner.store import Clock, utc_now
from tuner.wire import KeyView, SessionView

if TYPE_CHECKING:
    from server.store.sessions import SessionStore, StoredSession

LIFETIME = timedelta(hours=12)
"""How long a session lives at most; never longer than its key."""
OVER = "the session in this browser is over, or not known here. Sign in again with an API key."
HERE = SessionView(key_id=None, name=ANONYMOUS.name, role=ANONYMOUS.role, anonymous=True)
"""How a server without keys calls whoever asks."""


@dataclass(frozen=True)
class NewSession:
    """A session that has just begun: the only time that what proves it is told."""

    token: str = field(repr=False)
    view: SessionView
    seconds: int
    """How long it lives."""


class Sessions:
    """Nothing is remembered between calls, so a session ends with the next request after its key was revoked or it was signed out."""

    def __init__(self, rows: SessionStore, now: Clock = utc_now) -> None:
        self._rows, self._now = rows, now

    def make(self, key: KeyView) -> NewSession:
        """A new session of somebody who has just shown this key, as `Keys.holder` tells."""
        now = self._now()
        expires = min(now + LIFETIME, key.expires or now + LIFETIME)
        token = secrets.token_urlsafe(32)
        self._rows.add(token_sha256=digest(token), key_id=key.id, created=now, expires=expires)
        return NewSession(token, view_of(key, expires), max(int((expires - now).total_seconds()), 0))

    def caller(self, token: str) -> Caller:
        """Whose session this is. Unauthorized where there is none, or no longer."""
        return caller_of(self._found(token).key)

    def view(self, token: str) -> SessionView:
        """The same for people to read."""
        found = self._found(token)
        return view_of(found.key, found.expires)

    def end(self, token: str) -> None:
        """From now on it opens nothing. Nothing happens where there is none."""
        self._rows.remove(digest(token))

    def _found(self, token: str) -> StoredSession:
        found, now = self._rows.find(digest(token)), self._now()
        if found is None:
            raise Unauthorized(OVER)
        check_good(found.key, now)
        if found.expires <= now:
            raise Unauthorized(OVER)
        return found


def view_of(key: KeyView, expires: datetime | None) -> SessionView:
    """Who holds the key, and how long what was shown of it is good."""
    return SessionView(key_id=key.id, name=key.name, role=key.role, expires=expires)
