"""What all lists share: cursors, and texts from outside that a database can be asked for."""

from __future__ import annotations

import base64
import json
from typing import Any

from tuner.errors import JobError

LARGEST = 2**31 - 1
"""What an integer column of either database holds."""
SHOWN = 80


def write_cursor(*parts: Any) -> str:
    """The parts, which JSON can hold, as one word that fits into a URL."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def read_cursor(text: str) -> list[Any]:
    """What `write_cursor` was given; JobError for anything else."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise foreign_cursor(text) from None
    if not isinstance(parts, list):
        raise foreign_cursor(text)
    return parts


def foreign_cursor(text: str) -> JobError:
    return JobError(
        f"cursor must be what an earlier page of this very list gave as `next`, got '{text[:SHOWN]}'. "
        "Leave it out to begin at the first page.",
        field="cursor",
    )


def plain(text: str) -> str:
    """`text` without what PostgreSQL cannot hold (NUL) or UTF-8 cannot write, so that asking for it finds nothing instead of failing."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def searchable(*names: str) -> str:
    """Names as searches compare them: without regard to case, and with a line break between them, which no search has."""
    return "\n".join(names).casefold()


def storable_number(number: int) -> bool:
    """Can an integer column hold it?"""
    return 0 <= number <= LARGEST
