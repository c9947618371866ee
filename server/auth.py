"""API keys: how they are made, kept and recognised, and what their holders may do.

A key reads `acc_<id>_<secret>`. The id finds its row with one indexed read. The secret has 256 random bits, and what is kept is its
SHA-256. A slow hash would gain nothing: it protects secrets that can be guessed, as people's passwords can, and would cost a tenth
of a second on every request."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from search_spaces.schemes import Frozen
from tuner.errors import AccutuneError
from tuner.store import Clock, utc_now
from tuner.wire import ROLES, KeyRequest, KeyView, NewKey, Role

if TYPE_CHECKING:
    from server.store.keys import KeyStore

# Ids have no underscore, so that the text of a key falls into its parts in one way only.
_KEY = re.compile(r"acc_([a-z0-9]{1,40})_([A-Za-z0-9_-]{1,200})")
_NOBODYS = hashlib.sha256(secrets.token_bytes(32)).hexdigest()

MISSING = (
    "this needs an API key and none was shown. Send the header 'Authorization: Bearer acc_…'; "
    "who runs this server makes keys with: tuner keys create NAME"
)
MALFORMED = "the Authorization header holds no API key of this service. It must read 'Bearer acc_…', with the whole key as it was shown."
UNKNOWN = (
    "the API key is not valid: it is unknown here, or a part of it is wrong. Check that it was copied whole and belongs to this server, "
    "or ask an admin for a new one."
)


class Unauthorized(AccutuneError):
    """Nobody knows who asks: HTTP 401."""


class Forbidden(AccutuneError):
    """Who asks may not do this: HTTP 403."""


class TooMany(AccutuneError):
    """Who asks has used up what is theirs: HTTP 429. `retry_after`: seconds until it may be worth trying again."""

    def __init__(self, message: str, retry_after: int = 60) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Caller(Frozen):
    """Who asks. id: of the key; None on a server without keys."""

    id: str | None
    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Does the caller's role include `role`?"""
        return ROLES.index(self.role) >= ROLES.index(role)


ANONYMOUS = Caller(id=None, name="local", role="admin")
"""Whoever sits at the machine of a server that only that machine can reach."""


class Keys:
    """Nothing is remembered between calls, so a key that any process revokes is refused from the next request on."""

    def __init__(self, rows: KeyStore, now: Clock = utc_now) -> None:
        self._rows, self._now = rows, now

    def make(self, request: KeyRequest) -> NewKey:
        """A new key. Its text is in the answer and nowhere else."""
        created = self._now()
        key_id, secret = f"key{secrets.token_hex(8)}", secrets.token_urlsafe(32)
        view = self._rows.add(
            id=key_id,
            name=request.name,
            role=request.role,
            secret_sha256=digest(secret),
            created=created,
            expires=created + timedelta(days=request.days) if request.days else None,
        )
        return NewKey(key=f"acc_{key_id}_{secret}", **view.model_dump())

    def caller(self, key: str) -> Caller:
        """Who holds this key. Unauthorized says why it is refused, but of an id that is shown without its secret tells nothing."""
        return caller_of(self.holder(key))

    def holder(self, key: str) -> KeyView:
        """The same with all that lists show of the key."""
        parts = _KEY.fullmatch(key)
        if parts is None:
            raise Unauthorized(MALFORMED)
        stored = self._rows.get(parts[1])
        # For an id that nobody has, the same work: the time an answer takes tells no ids.
        same = hmac.compare_digest(digest(parts[2]), stored.secret_sha256 if stored else _NOBODYS)
        if stored is None or not same:
            raise Unauthorized(UNKNOWN)
        check_good(stored, self._now())
        return stored

    def list(self) -> tuple[KeyView, ...]:
        return self._rows.list()

    def revoke(self, key_id: str) -> KeyView:
        """Refuse the key from now on, for good. NotFound where there is none of that id."""
        return self._rows.revoke(key_id)


def caller_of(key: KeyView) -> Caller:
    return Caller(id=key.id, name=key.name, role=key.role)


def check_good(key: KeyView, now: datetime) -> None:
    """Unauthorized for a key that was revoked or has expired."""
    if key.revoked is not None:
        raise Unauthorized(_over(key, "was revoked", key.revoked))
    if key.expires is not None and key.expires <= now:
        raise Unauthorized(_over(key, "expired", key.expires))


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _over(key: KeyView, how: str, moment: datetime) -> str:
    return f"the API key '{key.name}' {how} on {moment:%Y-%m-%d at %H:%M} UTC. Ask an admin of this server for a new one."
