"""How HTTP is read from a connection: the web server's own way, with a limit on the head of a request and our errors."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.api.problems import KINDS, problem

HEAD_BYTES = 1 << 16
"""Address and header fields of one request, together. All of it is in memory before anybody is known to ask."""

UNREADABLE = (
    "this is no HTTP/1.1 request that can be read, or it says two things about its length. "
    "Check the client, and any proxy that it goes through."
)
TOO_LARGE = f"address and header fields of a request may have {HEAD_BYTES:,} bytes together; send fewer or shorter ones."


class TooLarge(Exception):
    """The head of the request is over the limit."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _head = 0
    """Bytes of the address and of whole header fields, of this request."""
    _pending = 0
    """Bytes that came while the head was not complete."""
    _open = False
    """Is it not complete?"""
    _too_large = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._open or self._too_large:
            return
        self._pending += len(data)
        if self._pending > HEAD_BYTES:
            self._too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._head, self._pending, self._open = 0, 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._open = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse the request and close the connection; nothing behind it could be read."""
        status, detail = (431, TOO_LARGE) if self._too_large else (400, UNREADABLE)
        answer = problem(status, KINDS[status][1], detail, headers={"Connection": "close"})
        fields = b"".join(b"%s: %s\r\n" % field for field in (*self.server_state.default_headers, *answer.raw_headers))
        self.transport.write(STATUS_LINE[status] + fields + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEAD_BYTES:
            self._too_large = True
            raise TooLarge
