"""Jobs and trials in a database. Only this package imports SQLAlchemy."""

from server.store.sql import SqlTrialStore, sqlite_url

__all__ = ["SqlTrialStore", "sqlite_url"]
