"""What can be mounted: a tree of files, and a server of one, reached over 9P2000."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from llambo.core.errors import Unreachable
from llambo.ninep.client import AsyncClient
from llambo.ninep.messages import Stat


class File(Protocol):
    """An open file."""

    async def read(self, count: int | None = None, offset: int | None = None) -> bytes:
        """One read; b"" at the end. Without `offset`, where the last ended."""
        ...

    async def write(self, data: bytes | str) -> int:
        """Writes all of `data`."""
        ...


class Files(Protocol):
    """A tree of files: an `AsyncClient`, or one of this process."""

    def open(self, path: str, mode: str | int = "r") -> AbstractAsyncContextManager[File]:
        """The file at `path`."""
        ...

    async def stat(self, path: str) -> Stat:
        """The directory entry of a file."""
        ...

    async def ls(self, path: str = "/") -> list[Stat]:
        """The entries of a directory."""
        ...

    async def remove(self, path: str) -> None:
        """Removes a file."""
        ...

    async def close(self) -> None:
        """Gives it back."""
        ...


class Server:
    """A mounted server. One that was lost is dialled anew at the next use; what was open on it is gone.

    `secret` is a token, which goes before the path in aname, and is shown nowhere.
    """

    def __init__(self, address: str, path: str = "", secret: str = "") -> None:
        self.address = address
        self._path = path
        self._aname = "/".join(part for part in (secret, path.strip("/")) if part)
        self._client: AsyncClient | None = None
        self._is_doubtful = False

    def __str__(self) -> str:
        return f"{self.address} {self._path}".rstrip()

    async def client(self) -> AsyncClient:
        """The connection. Raises: `Unreachable`, and what the server refuses to attach with."""
        if self._is_doubtful and self._client is not None:
            try:
                await self._client.stat("/")
            except Unreachable:
                await self.close()
        if self._client is None:
            self._client = await AsyncClient.connect(self.address, aname=self._aname)
        self._is_doubtful = False
        return self._client

    @contextlib.asynccontextmanager
    async def open(self, path: str, mode: str | int = "r") -> AsyncIterator[File]:
        """See `Files.open`."""
        with self._watched():
            async with (await self.client()).open(path, mode) as file:
                yield file

    async def stat(self, path: str) -> Stat:
        """See `Files.stat`."""
        with self._watched():
            return await (await self.client()).stat(path)

    async def ls(self, path: str = "/") -> list[Stat]:
        """See `Files.ls`."""
        with self._watched():
            return await (await self.client()).ls(path)

    async def remove(self, path: str) -> None:
        """See `Files.remove`."""
        with self._watched():
            await (await self.client()).remove(path)

    async def close(self) -> None:
        """Hangs up."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Unreachable:
            self._is_doubtful = True
            raise
