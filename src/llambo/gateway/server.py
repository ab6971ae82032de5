"""uvicorn on the gateway's listeners, inside a loop that runs already.

Owns the start and the orderly end of what serves HTTP. The application and its guard know nothing of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Protocol

from uvicorn.config import Config

from llambo.core.sections import Gateway as GatewaySettings
from llambo.core.tokens import TokenStore
from llambo.gateway.connection import Connection, Limits
from llambo.gateway.guard import App, Guard
from llambo.gateway.listen import BACKLOG, Listener, open_listeners, tls_context
from llambo.gateway.shared import ClockedState
from llambo.gateway.websocket_connection import WebSocketConnection

_KEEP_ALIVE_S = 60
_CLOSE_S = 2.0
_LAST_WORDS_S = 0.5
_EVENTS_PATH = "/ws/events"

_log = logging.getLogger("llambo.gateway")


class _Accepting(Protocol):
    def close(self) -> None: ...


class GatewayServer:
    """Serves `app` behind its guard.

    `end_streams` ends the streams that a stop cuts off, each with an error, and tells how many there were.
    """

    def __init__(self, app: App, settings: GatewaySettings, tokens: TokenStore, end_streams: Callable[[], int]) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._end_streams = end_streams
        self._limits = Limits(
            settings.max_body, settings.header_timeout, settings.write_timeout, settings.max_connections
        )
        self._state = ClockedState()
        self._listeners: list[Listener] = []
        self._servers: list[_Accepting] = []
        self._guard: Guard | None = None
        self._stop_began_s = 0.0
        self._deadline_s = float("inf")
        self._hurry = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where HTTP is spoken: "http://127.0.0.1:5641", "unix!/path"."""
        return tuple(listener.url for listener in self._listeners)

    async def start(self) -> None:
        """Listens; returns once clients can connect.

        Raises: `NameInUse`, `BadConfig`, `Refused`, each naming the address or the key.
        """
        tls = tls_context(self._settings)
        self._listeners = await open_listeners(self._settings, self._tokens)
        hosts = {listener.host.lower() for listener in self._listeners if listener.host}
        self._guard = Guard(self._app, self._settings, self._tokens, hosts=hosts)
        try:
            await self._listen(self._config(self._guard), tls)
        except BaseException:
            self._stop_listening()
            raise

    async def _listen(self, config: Config, tls: ssl.SSLContext | None) -> None:
        def connection() -> Connection:
            return Connection(config, self._state, self._limits)

        loop = asyncio.get_running_loop()
        # A client that does not get on with TLS is as slow as one that sends no header.
        handshake_s = self._settings.header_timeout if tls else None
        for listener in self._listeners:
            for bound in listener.sockets:
                server: _Accepting
                if listener.is_unix:
                    server = await loop.create_unix_server(connection, sock=bound, backlog=BACKLOG)
                else:
                    server = await loop.create_server(
                        connection,
                        sock=bound,
                        backlog=BACKLOG,
                        ssl=tls,
                        ssl_handshake_timeout=handshake_s,
                        ssl_shutdown_timeout=_CLOSE_S if tls else None,
                    )
                self._servers.append(server)

    def _config(self, guard: Guard) -> Config:
        config = Config(
            guard,
            http=Connection,
            ws=WebSocketConnection,
            ws_max_size=self._settings.max_body,
            ws_per_message_deflate=False,  # a compressor is 300 KiB per client, and tokens are short
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            workers=1,  # else uvicorn reads an environment variable that may hold anything
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        config.load()
        return config

    def request_stop(self) -> None:
        """Answers what is new with 503, and lets go of clients that wait for nothing."""
        if self._guard is None or self._guard.stopping.is_set():
            return
        self._guard.stopping.set()
        self._stop_began_s = asyncio.get_running_loop().time()
        for connection in list(self._state.connections):
            match connection:
                case WebSocketConnection():
                    if connection.path == _EVENTS_PATH:  # it would never end by itself
                        connection.shutdown()
                case Connection() if not connection.is_busy:
                    connection.shutdown()

    async def stop(self, drain_s: float) -> None:
        """Ends; answers in flight may go on until `drain_s` seconds after the stop was asked for. A second call may
        hurry the first. Nothing is left then: no connection, no socket, no task.
        """
        if self._guard is None:
            return
        self.request_stop()
        self._deadline_s = min(self._deadline_s, self._stop_began_s + drain_s)
        self._hurry.set()
        if self._finishing is None:
            self._finishing = asyncio.get_running_loop().create_task(self._finish())
        await asyncio.shield(self._finishing)

    async def _finish(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._state.tasks and loop.time() < self._deadline_s:
                self._hurry.clear()
                await self._any_end(self._deadline_s - loop.time(), or_hurry=True)
            self._stop_listening()
            if self._end_streams():
                await self._last_words()
            for connection in list(self._state.connections):
                try:
                    connection.shutdown()
                except Exception:  # of one of them: the others, and what stops after us, have their turn
                    _log.exception("a connection could not be told of the end")
                connection.transport.close()
            await self._all_end(_CLOSE_S)
            for connection in list(self._state.connections):
                connection.transport.abort()  # its client reads nothing
            if self._state.tasks:
                _log.error("%d requests did not end by themselves", len(self._state.tasks))
                for task in list(self._state.tasks):
                    task.cancel()
                await self._all_end(_CLOSE_S)
        finally:
            self._stop_listening()

    async def _last_words(self) -> None:
        """Lets streams that were ended say so; a client that does not read is not waited for."""
        await asyncio.wait(set(self._state.tasks), timeout=_LAST_WORDS_S)

    async def _all_end(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._state.tasks:
                    await self._any_end(timeout_s, or_hurry=False)
                await self._state.connections.none_left.wait()

    async def _any_end(self, timeout_s: float, *, or_hurry: bool) -> None:
        """Returns once a request has ended, or the deadline moved."""
        with self._hurrying(or_hurry) as hurry:
            await asyncio.wait({*self._state.tasks, *hurry}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    @contextlib.contextmanager
    def _hurrying(self, wanted: bool) -> Iterator[set[asyncio.Task[bool]]]:
        if not wanted:
            yield set()
            return
        task = asyncio.get_running_loop().create_task(self._hurry.wait())
        try:
            yield {task}
        finally:
            task.cancel()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        for listener in self._listeners:
            listener.close()
