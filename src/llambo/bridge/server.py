"""A bridge as a service: its listeners, its clients, and an end that leaves nothing behind.

Owns the life cycle. What a client says is `session`'s business, what commands do is `service`'s.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path

from llambo.bridge.dial import parse_dial
from llambo.bridge.hangup import HangupWatch
from llambo.bridge.requests import Cause
from llambo.bridge.service import Service
from llambo.bridge.session import House, Session
from llambo.bridge.settings import BridgeSettings
from llambo.cluster.door import Door
from llambo.core.address import TcpAddress, UnixAddress
from llambo.core.errors import BadConfig, LlamboError, NameInUse, Refused
from llambo.core.tokens import TokenStore
from llambo.core.unix_socket import BoundSocket, bind_unix

_CANCEL_TIMEOUT_S = 5.0  # for cancelled requests to give their slots back
_FLUSH_TIMEOUT_S = 2.0  # for clients to take their last lines, once everything else is over

_log = logging.getLogger("llambo.bridge")


class BridgeServer:
    """The bridge protocol in front of `door`, on a Unix socket and, with `listen` (`tcp!HOST!PORT`), on TCP.

    Clients of the Unix socket may do everything: its mode, 0600, is their right. TCP clients need a token of `tokens`.
    The door belongs to the caller, who closes it after `stop`. `http` gives the address where the same cluster speaks
    HTTP, for STATUS.
    """

    def __init__(
        self,
        door: Door,
        socket_path: Path,
        *,
        listen: str = "",
        tokens: TokenStore | None = None,
        settings: BridgeSettings | None = None,
        http: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._socket_path = socket_path
        self._listen = listen
        self._tokens = tokens
        self._settings = settings or BridgeSettings()
        self._service = Service(door, http)
        self._house = House(self._service, self._settings, HangupWatch(), set())
        self._bound: BoundSocket | None = None
        self._servers: list[asyncio.Server] = []
        self._addresses: list[str] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients reach the bridge, as dial strings; the real port where port 0 was asked for."""
        return tuple(self._addresses)

    async def start(self) -> None:
        """Listens; returns once clients can connect. What was opened before a failure is closed again.

        Raises: `NameInUse`, `BadConfig`, `Refused`, each naming the address.
        """
        try:
            self._house.hangups.start()
            if self._listen:
                await self._start_tcp(self._listen)
            await self._start_unix()
        except BaseException:
            await self.stop(0)
            raise

    def request_stop(self) -> None:
        """Makes `serve` stop the bridge as QUIT does; for signal handlers of the loop."""
        self._service.request_stop()

    async def serve(self) -> None:
        """Serves until QUIT or `request_stop`, then stops; being cancelled stops at once."""
        try:
            await self._service.until_stop_requested()
            await self.stop()
        except asyncio.CancelledError:
            await self.stop(0)
            raise

    async def stop(self, drain_timeout_s: float | None = None) -> None:
        """Refuses what is new, lets answers in flight finish for `drain_timeout_s` (default: the settings'), ends the
        rest with an error, closes every connection and removes the socket file. A second call may hurry the first.
        """
        # Each step does nothing when it was done before, so calls may overlap.
        self._service.request_stop()
        for server in self._servers:
            server.close()
        if self._bound is not None:
            self._bound.remove_file()
        timeout_s = self._settings.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        if not await self._is_idle_within(timeout_s):
            self._service.requests.cancel_all(Cause.SHUTDOWN)
            if not await self._is_idle_within(_CANCEL_TIMEOUT_S):
                _log.error("requests in flight did not end when they were cancelled: left behind")
        await self._close_sessions()
        self._house.hangups.stop()
        for server in self._servers:
            await server.wait_closed()

    async def _is_idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._service.requests.until_idle()
        except TimeoutError:
            return False
        return True

    async def _close_sessions(self) -> None:
        sessions = self._house.sessions
        for session in tuple(sessions):
            session.finish()
        all_gone = asyncio.gather(*(session.gone.wait() for session in tuple(sessions)))
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await all_gone
        except TimeoutError:
            remaining = tuple(sessions)
            for session in remaining:
                session.abort()
            await asyncio.gather(*(session.gone.wait() for session in remaining))

    async def _start_unix(self) -> None:
        self._bound = bind_unix(self._socket_path, self._settings.max_connections)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: Session(self._house, None),
            sock=self._bound.socket,
            backlog=self._settings.max_connections,
        )
        self._servers.append(server)
        self._addresses.insert(0, str(UnixAddress(str(self._socket_path))))

    async def _start_tcp(self, dial: str) -> None:
        address = parse_dial(dial)
        if not isinstance(address, TcpAddress):
            raise BadConfig(f"{dial!r} is no TCP address: write tcp!HOST!PORT")
        tokens = self._tokens
        if tokens is None or not tokens.list():
            raise Refused(
                f"refusing to listen on {dial} without tokens: make one with `llamboctl token create --scope infer`"
            )
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: Session(self._house, tokens),
                None if address.host == "*" else address.host,
                address.port,
                backlog=self._settings.max_connections,
            )
        except OSError as error:
            raise _explain(dial, error) from error
        self._servers.append(server)
        for listener in server.sockets:
            host, port = listener.getsockname()[:2]
            self._addresses.append(str(TcpAddress(host, port)))
            if not ipaddress.ip_address(host).is_loopback:
                _log.warning("tcp!%s!%d has no TLS: tokens and texts can be read on the way", host, port)


def _explain(dial: str, error: OSError) -> LlamboError:
    text = f"cannot listen on {dial}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return Refused(text)
    return NameInUse(text) if "in use" in text else BadConfig(text)
