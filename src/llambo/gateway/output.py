"""The body of a streamed reply, written at once: what our connections offer beside ASGI's `send`.

An ASGI message goes through a coroutine of every layer between the endpoint and the connection, and its sender must be
a task. For a token that is most of its cost. So the headers and the end of a stream go by `send`, and what is between
them by `Output`, from wherever it comes in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from llambo.gateway.cork import Cork

EXTENSION = "llambo.output"
"""Where an ASGI scope has the `Output` of its reply, among the extensions."""


class ClientGone(Exception):
    """Nobody is there any more to be told anything."""


class Output:
    """The body of one reply, between its headers, which name no length, and its end.

    To a client of HTTP/1.0 it is not `is_chunked`.
    """

    __slots__ = ("_clock", "_cycle", "_flow", "_is_chunked", "_write", "last_s")

    def __init__(
        self, cycle: RequestResponseCycle, cork: Cork, clock: Callable[[], float], *, is_chunked: bool = True
    ) -> None:
        self._cycle = weakref.ref(cycle)  # its scope knows us, and it lives for as long as the application does
        self._flow = cycle.flow
        self._write = cork.send
        self._clock = clock
        self._is_chunked = is_chunked
        self.last_s = 0.0
        """When something was written last, by `clock`."""

    def begin(self) -> None:
        """Before the headers are sent. Without chunks the end of the connection is the body's (RFC 9112, 6.1)."""
        if not self._is_chunked and (cycle := self._cycle()) is not None:
            cycle.chunked_encoding = False

    @property
    def has_room(self) -> bool:
        """Whether the client takes what it is sent."""
        return not (self._flow.write_paused or self._is_gone())

    def write(self, piece: bytes) -> bool:
        """Sends `piece`, which has at least one byte; whether there is room for more."""
        if self._is_gone():
            return False
        self.last_s = self._clock()
        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)
        return not self._flow.write_paused

    async def room(self) -> None:
        """Returns once there is room for more. Raises: `ClientGone`."""
        await self._flow.drain()
        if self._is_gone():
            raise ClientGone

    def _is_gone(self) -> bool:
        cycle = self._cycle()
        return cycle is None or cycle.disconnected
