"""A file server: its listeners and limits. What one client says is `connection`'s business.

Knows addresses and sockets, and nothing of what the files are.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass, field

from llambo.core.address import TcpAddress, UnixAddress
from llambo.core.errors import BadConfig, LlamboError, NameInUse, Refused
from llambo.ninep.address import parse_address
from llambo.ninep.connection import Connection, House
from llambo.ninep.requests import Limits
from llambo.ninep.tree import AttachCallback

_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server accepts; times in seconds, sizes in bytes.

    `hello_timeout_s` is how long a client may take to agree on a version, `write_timeout_s` how long it may leave its
    answers unread once `write_buffer_bytes` of them wait.
    """

    max_connections: int = 4096
    hello_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    write_buffer_bytes: int = 64 << 10
    limits: Limits = field(default_factory=Limits)


class FileServer:
    """Serves over 9P2000 what `attach(uname, aname, peer)` gives as the root of each client's tree.

    An async context manager: leaving it closes.
    """

    def __init__(self, attach: AttachCallback, settings: ServerSettings | None = None) -> None:
        self._settings = settings or ServerSettings()
        self._house = House(
            attach,
            self._settings.limits,
            self._settings.max_connections,
            self._settings.hello_timeout_s,
            self._settings.write_timeout_s,
            self._settings.write_buffer_bytes,
        )
        self._servers: list[asyncio.Server] = []
        self._addresses: list[str] = []
        self._files: list[tuple[str, tuple[int, int]]] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients reach it, as dial strings; the real port where port 0 was asked for."""
        return tuple(self._addresses)

    @property
    def connection_count(self) -> int:
        """Clients connected now."""
        return len(self._house.connections)

    async def listen(self, address: str) -> str:
        """Listens on `unix!PATH` (mode 0600) or `tcp!HOST!PORT`, and returns the address that clients dial.

        Raises: `NameInUse` also for a path that exists, `BadConfig`, `Refused`, each naming the address.
        """
        parsed = parse_address(address)
        try:
            match parsed:
                case UnixAddress(path):
                    return await self.listen_on(_bind_unix(path))
                case TcpAddress(host, port):
                    return await self.listen_on(await _bind_tcp(host, port))
        except OSError as error:
            raise _explain(address, error) from error

    async def listen_on(self, listener: socket.socket) -> str:
        """Listens on a bound socket, which is the server's from now on with its file; returns what clients dial."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        if listener.family == socket.AF_UNIX:
            path = listener.getsockname()
            server = await loop.create_unix_server(self._connection, sock=listener, backlog=_BACKLOG)
            facts = os.stat(path)  # noqa: PTH116 - of a socket just bound
            self._files.append((path, (facts.st_dev, facts.st_ino)))
            dial = str(UnixAddress(path))
        else:
            server = await loop.create_server(self._connection, sock=listener, backlog=_BACKLOG)
            host, port = listener.getsockname()[:2]
            dial = str(TcpAddress(host, port))
        self._servers.append(server)
        self._addresses.append(dial)
        return dial

    async def close(self) -> None:
        """Stops listening, hangs up on every client, and returns once all that they had open is closed."""
        for server in self._servers:
            server.close()
        for path, inode in self._files:
            _remove_own(path, inode)
        self._files.clear()
        await self._house.close()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    async def __aenter__(self) -> FileServer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _connection(self) -> Connection:
        return Connection(self._house)


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode comes from the umask: a chmod afterwards would leave a moment for others to connect.
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


async def _bind_tcp(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    wanted = None if host == "*" else host
    found = await loop.getaddrinfo(wanted, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and wanted is None:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_own(path: str, inode: tuple[int, int]) -> None:
    try:
        facts = os.lstat(path)
        if (facts.st_dev, facts.st_ino) == inode:
            os.unlink(path)  # noqa: PTH108 - as it was bound
    except OSError:
        pass  # somebody removed it before


def _explain(address: str, error: OSError) -> LlamboError:
    text = f"cannot listen on {address}: {error.strerror or error}"
    match error.errno:
        case errno.EADDRINUSE:
            return NameInUse(text)
        case errno.EACCES | errno.EPERM:
            return Refused(text)
        case _:
            return BadConfig(text)
