"""Files that are read as they grow: streams of pieces, and lines sent to every reader.

Reads wait; being cancelled there is how they are flushed. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from llambo.ninep.files import Text, cut_text, to_bytes
from llambo.ninep.tree import READABLE, Handle, Node, Result


class StreamHandle(Handle):
    """Reads pieces as they come, in the order of the reads, whatever their offsets; each read waits for a piece.

    A piece longer than asked for is given in parts, text in whole characters. A piece b"" is the end, and stays it. A
    read that is flushed cancels its wait: with a queue that loses nothing, with an async generator it ends the stream.
    """

    __slots__ = ("_at_end", "_close", "_left", "_next", "_turn")

    def __init__(self, next_piece: Callable[[], Awaitable[bytes]], close: Callable[[], Result[None]] | None = None):
        self._next = next_piece
        self._close = close
        self._left = b""
        self._at_end = False
        self._turn = asyncio.Lock()

    def read(self, offset: int, count: int) -> Result[bytes]:
        """The next piece, or what is left of the last one."""
        if self._turn.locked():
            return self._wait(count)
        if self._left or self._at_end:
            return self._take(count)
        return self._wait(count)

    async def _wait(self, count: int) -> bytes:
        async with self._turn:
            if not self._left and not self._at_end:
                self._left = await self._next()
                self._at_end = not self._left
            return self._take(count)

    def _take(self, count: int) -> bytes:
        piece = cut_text(self._left[:count], count >= len(self._left))
        self._left = self._left[len(piece) :]
        return piece

    def close(self) -> Result[None]:
        """Tells whoever makes the pieces that nobody reads them any more."""
        return self._close() if self._close is not None else None


def iterate(pieces: AsyncIterator[Text]) -> StreamHandle:
    """A handle that reads an async iterator to its end, and closes it where it can be closed (as generators can)."""

    async def next_piece() -> bytes:
        async for piece in pieces:
            if piece:
                return to_bytes(piece)
        return b""

    close = getattr(pieces, "aclose", None)
    return StreamHandle(next_piece, close)


class StreamFile(Node):
    """A file whose every opening starts a stream of its own. `open_stream` gives its handle, or the pieces alone."""

    def __init__(
        self,
        name: str,
        open_stream: Callable[[], Result[StreamHandle | AsyncIterator[Text]]],
        perm: int = READABLE,
        **facts: Any,
    ) -> None:
        super().__init__(name, perm, **facts)
        self._open_stream = open_stream

    def open(self, mode: int) -> Result[Handle]:
        """Starts the stream."""
        opened = self._open_stream()
        return _later(opened) if isinstance(opened, Awaitable) else _handle(opened)


def _handle(opened: StreamHandle | AsyncIterator[Text]) -> Handle:
    return opened if isinstance(opened, StreamHandle) else iterate(opened)


async def _later(opened: Awaitable[StreamHandle | AsyncIterator[Text]]) -> Handle:
    return _handle(await opened)


class Broadcast:
    """Sends lines to whoever reads: each reader gets what is sent from its opening on, in a queue of its own.

    A reader that lets more than `capacity` lines wait loses the oldest, and is told by a line `lost N` in their place.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._readers: set[_Reader] = set()

    def __len__(self) -> int:
        return len(self._readers)

    def send(self, line: str) -> None:
        """Gives one line, without its line end, to every reader."""
        data = line.encode("utf-8", "replace") + b"\n"
        for reader in self._readers:
            reader.put(data)

    def end(self) -> None:
        """Every present reader reads what waits for it, then the end of the file."""
        for reader in self._readers:
            reader.end()
        self._readers.clear()

    def open(self) -> StreamHandle:
        """A new reader."""
        reader = _Reader(self._capacity)
        self._readers.add(reader)
        return StreamHandle(reader.next_piece, lambda: self._readers.discard(reader))


class _Reader:
    __slots__ = ("_capacity", "_is_ended", "_lines", "_lost", "_wakeup")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._is_ended = False
        self._wakeup: asyncio.Future[None] | None = None

    def put(self, line: bytes) -> None:
        self._lines.append(line)
        if len(self._lines) > self._capacity:
            self._lines.popleft()
            self._lost += 1
        self._wake()

    def end(self) -> None:
        self._is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def next_piece(self) -> bytes:
        # A flush can only come while nothing has been taken yet, so it loses no line.
        while not self._lines and not self._is_ended:
            self._wakeup = asyncio.get_running_loop().create_future()
            try:
                await self._wakeup
            finally:
                self._wakeup = None
        lost = b"lost %d\n" % self._lost if self._lost else b""
        piece = lost + b"".join(self._lines)
        self._lines.clear()
        self._lost = 0
        return piece
