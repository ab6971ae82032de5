"""A tree of this process in the place of a mounted server: nodes of `ninep.tree`, read and written without a wire."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from llambo.core.errors import LlamboError, NotFound, Refused
from llambo.ninep.calls import mode_of
from llambo.ninep.errors import NOT_FOUND, PERMISSION
from llambo.ninep.messages import OREAD, OTRUNC, OWRITE, Stat
from llambo.ninep.tree import READABLE, WRITABLE, Directory, Handle, Node, Result, walk

T = TypeVar("T")

_PIECE_BYTES = 64 << 10


class LocalFile:
    """An open file."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._offset = 0

    async def read(self, count: int | None = None, offset: int | None = None) -> bytes:
        """One read; b"" at the end."""
        at = self._offset if offset is None else offset
        data = bytes(await _settled(self._handle.read(at, count or _PIECE_BYTES)))
        if offset is None:
            self._offset += len(data)
        return data

    async def write(self, data: bytes | str) -> int:
        """Writes all of `data`."""
        raw = data.encode() if isinstance(data, str) else data
        if raw:
            await _settled(self._handle.write(self._offset, raw))
            self._offset += len(raw)
        return len(raw)


class LocalFiles:
    """The tree below `root`, which sees every client as its owner."""

    def __init__(self, root: Node) -> None:
        self._root = root

    @contextlib.asynccontextmanager
    async def open(self, path: str, mode: str | int = "r") -> AsyncIterator[LocalFile]:
        """The file at `path`. Raises: `NotFound`, `Refused`."""
        node = await self._walk(path)
        number = mode_of(mode)
        way = number & ~OTRUNC
        wanted = READABLE if way == OREAD else WRITABLE if way == OWRITE else READABLE | WRITABLE
        if node.perm & wanted & 0o600 != wanted & 0o600 or (node.is_directory and way != OREAD):
            raise Refused(PERMISSION)
        handle = await _settled(node.open(number))
        try:
            yield LocalFile(handle)
        finally:
            await _settled(handle.close())

    async def stat(self, path: str) -> Stat:
        """The directory entry of a file."""
        return (await self._walk(path)).stat()

    async def ls(self, path: str = "/") -> list[Stat]:
        """The entries of a directory, or the file's own where it is none."""
        node = await self._walk(path)
        return [entry.stat() for entry in node.entries()] if isinstance(node, Directory) else [node.stat()]

    async def remove(self, path: str) -> None:
        """Removes a file."""
        await _settled((await self._walk(path)).remove())

    async def close(self) -> None:
        """Nothing has to be given back."""

    async def _walk(self, path: str) -> Node:
        walked = await _settled(walk((self._root,), tuple(name for name in path.split("/") if name)))
        if walked.error is None:
            return walked.trail[-1]
        if isinstance(walked.error, NotFound):
            raise NotFound(f"{path}: {NOT_FOUND}")
        raise walked.error if isinstance(walked.error, LlamboError) else NotFound(f"{path}: {walked.error}")


async def _settled(result: Result[T]) -> T:
    return await result if isinstance(result, Awaitable) else result
