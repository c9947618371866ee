"""How the tables came to be, step by step. To change them: edit models.py and add a file to versions/."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def migrate(connection: Connection, found: str, *, unwritten: bool) -> None:
    """From the revision `found` to the newest, within the caller's transaction. unwritten: the database may not say that it is of it."""
    config = configure(connection)
    if unwritten:
        command.stamp(config, found)
    command.upgrade(config, "head")


def configure(connection: Connection) -> Config:
    """Alembic's settings, without a file of its own: the scripts lie in this package."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
