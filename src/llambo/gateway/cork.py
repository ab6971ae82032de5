"""What answers are written through: headers and ends wait for the end of the loop's turn, and go out with what follows.

Each piece that is sent wakes its reader, which on a busy machine may take the processor from us at once. The headers of
a reply and its first bytes mostly come in one turn of the loop, and wake it once. What is sent while an answer runs
goes out at once: to hold that too costs more than it saves.
"""

from __future__ import annotations

import asyncio

MOST_BYTES = 64 * 2**10
"""What is held at most: more is sent at once, so that the transport can say that its client is behind."""


class Cork:
    """Stands for `transport` where an answer is written."""

    __slots__ = ("_held", "_held_bytes", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, piece: bytes) -> None:
        """Sends `piece` with what is sent next, or with the loop's next turn."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes >= MOST_BYTES:
            self.flush()

    def send(self, piece: bytes) -> None:
        """Sends `piece` now, and what is held before it."""
        if self._held:
            self._held.append(piece)
            self.flush()
        else:
            self._transport.write(piece)

    def flush(self) -> None:
        """Sends what is held; nothing where the connection is gone."""
        held = self._held
        if not held:
            return
        self._held, self._held_bytes = [], 0
        if not self._transport.is_closing():
            self._transport.writelines(held)

    def close(self) -> None:
        """Closes the connection once everything is sent."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport.is_closing()
