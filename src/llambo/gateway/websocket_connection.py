"""A client's WebSocket on the wire: uvicorn's, with an end for handshakes that cannot be and clients that do not read.

`connection` hands it over once its header is there; what is said on it is `websocket`'s business.
"""

from __future__ import annotations

import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from llambo.gateway.unread import Unread

# uvicorn logs every refused WebSocket: see `connection`.
_log = logging.getLogger("llambo.gateway.http")


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A connection that was taken over from `Connection`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.logger = _log
        self._unread: Unread | None = None

    def begin(self, write_timeout_s: float, *, refusal: bytes) -> None:
        """The handshake's header was read. Where the library does not take it, the client is told, and that was it.

        `refusal` is what it is told where the library has no words. A client that takes nothing for `write_timeout_s`
        is gone from then on.
        """
        self._unread = Unread(self.transport, write_timeout_s)
        if not self.handshake_initiated:
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()) or refusal)
            self.transport.close()

    @property
    def path(self) -> str:
        """What was asked for; "" before the handshake."""
        return self.scope["path"] if self.handshake_initiated else ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if self._unread is not None:
            self._unread.stop()
        super().connection_lost(exc)

    # --- a client that does not read ---

    def pause_writing(self) -> None:
        """The client is behind: nothing more is written until it has taken some."""
        super().pause_writing()
        if self._unread is not None:
            self._unread.watch()

    def resume_writing(self) -> None:
        """The client has taken some."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.stop()
        self._watch_the_end()

    def data_received(self, data: bytes) -> None:
        """Takes what the client says; its goodbye, or a fault of its, closes the connection."""
        super().data_received(data)
        self._watch_the_end()

    async def run_asgi(self) -> None:
        """Closes the connection when the application has ended."""
        await super().run_asgi()
        self._watch_the_end()
        if self.close_timer is not None:  # it waits for the client's goodbye, so long
            self.loop.call_later(self.close_timeout, self._watch_the_end)

    def keepalive_timeout(self) -> None:
        """The client has left a ping unanswered."""
        super().keepalive_timeout()
        self._watch_the_end()

    def _watch_the_end(self) -> None:
        """A closed connection lives on for as long as something is unread, and that is not for ever."""
        if self._unread is not None and self.transport.is_closing():
            self._unread.watch()
