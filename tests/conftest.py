"""One thread for numerical libraries and a cache of its own for the whole session, set before anything is imported."""

from __future__ import annotations

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="accutune-tests-")

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ACCUTUNE_CACHE"] = _CACHE.name

from chromium import browser  # noqa: E402
from postgres import postgres_server, postgres_url  # noqa: E402

__all__ = ["browser", "postgres_server", "postgres_url"]
