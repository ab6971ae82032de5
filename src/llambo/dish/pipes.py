"""What runs from one command to the next: pipes, files and buffers as things to read from and to write to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from llambo.core.errors import TooLarge

_PIECES = 64
"""How many pieces a pipe holds before its writer waits."""

MAX_INPUT_BYTES = 4 << 20
"""The most that a command takes in whole, such as a prompt."""


class PipeEnded(Exception):
    """The command at the other end of the pipe has ended; passed over in silence, as its own error is told."""


class SourceFailed(PipeEnded):
    """The command that writes the pipe has failed: what was read is not the whole."""


class Source(Protocol):
    """What a command reads."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The pieces as they come, to the end."""
        ...


class Sink(Protocol):
    """What a command writes to. `shows` says that a person sees it as it comes."""

    @property
    def shows(self) -> bool: ...  # noqa: D102

    async def write(self, data: bytes) -> None:
        """Takes `data`; waits while there is no room."""
        ...


class Pipe:
    """Both a sink and a source."""

    shows = False

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_PIECES)
        self._is_read = True
        self._has_failed = False

    async def write(self, data: bytes) -> None:
        """Raises: `PipeEnded` when nobody reads any more."""
        if not self._is_read:
            raise PipeEnded
        if data:
            await self._queue.put(data)

    async def end(self, *, failed: bool) -> None:
        """The writer has ended; when it failed, what it wrote is not the whole and the reader shall not act on it."""
        self._has_failed = failed
        if self._is_read:
            await self._queue.put(b"")

    def end_reading(self) -> None:
        """The reader has ended; a writer that waits for room goes on, to learn it at its next write."""
        self._is_read = False
        while not self._queue.empty():
            self._queue.get_nowait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises: `SourceFailed`."""
        while data := await self._queue.get():
            yield data
        if self._has_failed:
            raise SourceFailed


class Buffer:
    """A sink that keeps the last `limit_bytes` of what is written, and hands it on to whoever follows."""

    shows = False

    def __init__(self, limit_bytes: int = 1 << 20) -> None:
        self.data = bytearray()
        self._limit = limit_bytes
        self._changed = asyncio.Event()
        self._is_ended = False
        self._unread = 0

    async def write(self, data: bytes) -> None:
        """Takes it."""
        self.data += data
        self._unread += len(data)
        if len(self.data) > self._limit:
            del self.data[: len(self.data) - self._limit]
        self._changed.set()

    def end(self) -> None:
        """There is no more to come."""
        self._is_ended = True
        self._changed.set()

    def take(self) -> bytes:
        """What nobody has taken yet."""
        unread = min(self._unread, len(self.data))
        self._unread = 0
        return bytes(self.data[len(self.data) - unread :])

    async def follow(self, out: Sink) -> None:
        """Hands on what nobody has taken yet, and what comes, to the end."""
        while True:
            is_ended = self._is_ended
            self._changed.clear()
            if data := self.take():
                await out.write(data)
            elif is_ended:
                return
            else:
                await self._changed.wait()


class Bytes:
    """A source of what is known already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it."""
        if self._data:
            yield self._data


async def read_all(source: Source, limit_bytes: int = MAX_INPUT_BYTES) -> bytes:
    """The whole of a source. Raises: `TooLarge`."""
    data = bytearray()
    async for piece in source.pieces():
        data += piece
        if len(data) > limit_bytes:
            raise TooLarge(f"the input has more than {limit_bytes >> 20} MiB")
    return bytes(data)
