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
    """The body of one reply, between its headers, which name no length, and its end."""

    __slots__ = ("_clock", "_cycle", "_flow", "_write", "last_s")

    def __init__(self, cycle: RequestResponseCycle, cork: Cork, clock: Callable[[], float]) -> None:
        self._cycle = weakref.ref(cycle)  # its scope knows us, and it lives for as long as the application does
        self._flow = cycle.flow
        self._write = cork.send
        self._clock = clock
        self.last_s = 0.0
        """When something was written last, by `clock`."""

    @property
    def has_room(self) -> bool:
        """Whether the client takes what it is sent."""
        return not (self._flow.write_paused or self._is_gone())

    def write(self, piece: bytes) -> bool:
        """Sends `piece`, which has at least one byte; whether there is room for more."""
        if self._is_gone():
            return False
        self.last_s = self._clock()
        self._write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return not self._flow.write_paused

    async def room(self) -> None:
        """Returns once there is room for more. Raises: `ClientGone`."""
        await self._flow.drain()
        if self._is_gone():
            raise ClientGone

    def _is_gone(self) -> bool:
        cycle = self._cycle()
        return cycle is None or cycle.disconnected
