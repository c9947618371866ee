"""How the tables came to be, step by step. To change them: edit models.py and add a file to versions/."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from server.store.schema import MIGRATIONS, REVISIONS


def migrate(connection: Connection, found: str) -> None:
    """From the revision `found` to the newest, within the caller's transaction."""
    config = configure(connection)
    if found == REVISIONS[0]:
        # Its tables may date from before revisions were written down.
        command.stamp(config, found)
    command.upgrade(config, "head")


def configure(connection: Connection) -> Config:
    """Alembic's settings, without a file of its own: the scripts lie in this package."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
