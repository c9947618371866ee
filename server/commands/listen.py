"""How `tuner serve` listens, greets and ends."""

from __future__ import annotations

import errno
import gc
import logging
import socket
import threading
from collections.abc import Sequence

import typer
import uvicorn

from server.app import create_app
from server.commands import FAILED
from server.commands.protocol import Protocol
from server.logs import configure
from server.service import Service
from tuner.errors import JobError

BACKLOG = 2048
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
HOSTS = "Use 127.0.0.1 for this machine alone, or 0.0.0.0 for all its addresses."

log = logging.getLogger("accutune.server")


def listen(service: Service) -> None:
    """Serve until a signal says stop. Event streams end at once then, and running jobs are left to be taken up again."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            # What was imported stays for ever. Looking through it again at every collection makes requests wait.
            gc.collect()
            gc.freeze()
            log.info(_greeting(service, sockets or []))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            log.info("stopping; running jobs go on after the next start")
            await super().shutdown(sockets)

        def handle_exit(self, *_: object) -> None:
            service.services.hub.close()
            # Requests that wait for the gate are answered now. In a thread of its own, since this may have interrupted anything.
            threading.Thread(target=service.services.gate.close, daemon=True).start()
            # Not the library's own way, which ends the process by the signal once more, before anything is closed.
            self.force_exit = self.should_exit
            self.should_exit = True

    settings = service.services.settings
    # Before any job is started: where the port is taken, none must be.
    sockets = bind(settings.host, settings.port)
    configure(settings.log_format, settings.log_level)
    config = uvicorn.Config(
        create_app(service.services, service.metrics, service.scheduler),
        http=Protocol,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    try:
        Server(config).run(sockets)
    except SystemExit:  # It could not start, as the log says; its status would read as a missed target.
        raise typer.Exit(FAILED) from None


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address that `host` stands for, all on one port. JobError says why where there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise JobError(f"host '{host}' is not known ({error.strerror}). {HOSTS}", field="host") from None
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    for family, _, _, _, address in found:
        try:
            sockets.append(socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG))
            port = sockets[0].getsockname()[1]
        except OSError as error:
            refused = error
            if error.errno not in ABSENT:
                break
    if sockets and (refused is None or refused.errno in ABSENT):  # A name may stand for an address that this machine does not use.
        return sockets
    for opened in sockets:
        opened.close()
    raise _no_socket(host, port, refused)


def _no_socket(host: str, port: int, error: OSError | None) -> JobError:
    if error is None or error.errno in ABSENT:
        return JobError(f"host '{host}' is no address of this machine. {HOSTS}", field="host")
    if error.errno == errno.EADDRINUSE:
        return JobError(
            f"port {port} on {host} is in use by another program. Choose another with --port; 0 takes a free one.", field="port"
        )
    if error.errno == errno.EACCES:
        return JobError(f"port {port} may not be used by this user. Choose one above 1023 with --port.", field="port")
    return JobError(f"port {port} on {host} cannot be listened on: {error.strerror}. Choose another with --port or --host.", field="port")


def _greeting(service: Service, sockets: Sequence[socket.socket]) -> str:
    """One line: where the server listens, where its data is, and who may call."""
    services = service.services
    settings = services.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = sockets[0].getsockname()[1] if sockets else settings.port
    callers = "callers need no key, since only this machine can reach it" if services.anonymous else "callers need an API key"
    return f"serving http://{host}:{port}; data in {settings.data_dir.resolve()}; database {services.database.shown}; {callers}"
