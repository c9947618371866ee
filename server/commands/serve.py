"""Commands for who operates a server: serve, db, gc, keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.console import print_table, say
from tuner.errors import JobError

if TYPE_CHECKING:
    from server.settings import Settings
    from server.store.keys import KeyStore

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the server's data.", show_default="./accutune-data")]
DatabaseUrl = Annotated[str | None, typer.Option("--database", help="postgresql+psycopg://… in place of SQLite.", show_default=False)]

db = typer.Typer(no_args_is_help=True, help="Look after the server's database.")
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8000")] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Jobs that run at once.", show_default="1")] = None,
) -> None:
    """Run the service: jobs in a browser and over REST, kept in a database, run one after the other.

    Every setting is an environment variable too (ACCUTUNE_HOST, …; see docs/operating.md). On an address that other machines can
    reach, callers need API keys: make the first with `tuner keys create`."""
    from server.commands.listen import listen
    from server.service import open_service

    settings = _settings(host=host, port=port, data_dir=data_dir, database_url=database, jobs=jobs)
    with open_service(settings) as service:
        listen(service)


@db.command("upgrade")
def db_upgrade(data_dir: DataDir = None, database: DatabaseUrl = None) -> None:
    """Bring the database to this version's schema. `tuner serve` does it by itself."""
    from server.service import open_database

    store = open_database(_settings(data_dir=data_dir, database_url=database))
    try:
        done = store.upgrade()
    finally:
        store.close()
    say(f"applied: {', '.join(done)}" if done else "the database is up to date")


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is.", show_default=False)],
    role: Annotated[str, typer.Option(help="viewer, submitter or admin.")] = "submitter",
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="How long it is good.", show_default="until it is revoked")] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
) -> None:
    """Make an API key and show it, this once."""
    from pydantic import ValidationError

    from server.auth import Keys
    from tuner.wire import ROLES, KeyRequest

    if role not in ROLES:
        raise JobError(f"--role must be one of {', '.join(ROLES)}, got '{role}'")
    try:
        wanted = KeyRequest.model_validate({"name": name, "role": role, "days": days})
    except ValidationError as error:
        raise JobError(f"the name must be letters, digits, '.', '_', '@', '-' or spaces, at most 100, got '{name}'") from error
    with _key_store(data_dir, database) as store:
        say(Keys(store).make(wanted).key)


@keys.command("list")
def keys_list(data_dir: DataDir = None, database: DatabaseUrl = None) -> None:
    """List the API keys; the secrets are not kept."""
    with _key_store(data_dir, database) as store:
        shown = [(k.id, k.name, k.role, _day(k.created), _day(k.expires), _day(k.revoked)) for k in store.list()]
    print_table(("id", "name", "role", "created", "expires", "revoked"), shown)


@keys.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as listed.", show_default=False)],
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
) -> None:
    """Revoke an API key, for good. A running server refuses it within seconds."""
    with _key_store(data_dir, database) as store:
        say(f"revoked: {store.revoke(key_id).name}")


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Really remove; without it, only say what would be removed.")] = False,
    hours: Annotated[float, typer.Option(min=0, help="Leave alone what is younger: it may be on its way in.")] = 24.0,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
) -> None:
    """Remove artefacts that no model, dataset or job refers to any more. The server may be running."""
    from server.artifacts import collect_garbage
    from server.service import open_artifacts, open_database
    from server.store.files import FileStore
    from tuner.store import utc_now

    settings = _settings(data_dir=data_dir, database_url=database)
    store = open_database(settings)
    try:
        store.check()
        references = FileStore(store).references
        old = timedelta(hours=hours)
        found = collect_garbage(open_artifacts(settings), references, older_than=old, now=utc_now(), dry_run=not delete)
    finally:
        store.close()
    what = f"{found.blobs:,} artefacts, {found.size_bytes / 1e6:,.1f} MB"
    say(f"removed {what}" if delete else f"would remove {what}; remove them with: tuner gc --delete")


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(gc)
    app.add_typer(db, name="db")
    app.add_typer(keys, name="keys")


def _settings(**given: Any) -> Settings:
    """The settings of the environment, less what the command line says otherwise."""
    from server.settings import load_settings

    return load_settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def _key_store(data_dir: Path | None, database: str | None) -> Iterator[KeyStore]:
    from server.service import open_database
    from server.store.keys import KeyStore

    store = open_database(_settings(data_dir=data_dir, database_url=database))
    try:
        store.upgrade()
        yield KeyStore(store)
    finally:
        store.close()


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else ""
