"""Jobs, trials, files, keys and events in a database. Only this package imports SQLAlchemy."""

from server.store.database import sqlite_url
from server.store.trials import SqlTrialStore

__all__ = ["SqlTrialStore", "sqlite_url"]
