"""What the connections of one server share: which are open, and the headers of every reply.

uvicorn's own makes the Date header ten times a second, and tells nobody when the last connection is gone.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any

from uvicorn.server import ServerState


class Connections(set[Any]):
    """Those that are open; `none_left` is set while there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.none_left = asyncio.Event()
        self.none_left.set()

    def add(self, connection: Any) -> None:
        """One more."""
        super().add(connection)
        self.none_left.clear()

    def discard(self, connection: Any) -> None:
        """One less."""
        super().discard(connection)
        if not self:
            self.none_left.set()

    def remove(self, connection: Any) -> None:
        """One less, whether it was there or not."""
        self.discard(connection)


class ClockedState(ServerState):
    """uvicorn's shared state, with a Date header that is made when it is needed instead of ten times a second."""

    connections: Connections

    def __init__(self) -> None:
        self._made_at = 0
        self._date: list[tuple[bytes, bytes]] = []
        super().__init__()
        self.connections = Connections()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every reply."""
        now = int(time.time())
        if now != self._made_at:
            self._made_at = now
            self._date = [(b"date", formatdate(now, usegmt=True).encode())]
        return self._date

    @default_headers.setter
    def default_headers(self, value: list[tuple[bytes, bytes]]) -> None:
        pass  # uvicorn's constructor sets it
