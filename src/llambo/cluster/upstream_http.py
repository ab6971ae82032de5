"""HTTP to one node: requests, event streams that notice when they stall, and a health check that costs next to nothing.

Owns the connections to a node and knows when it is lost. What is asked and answered is for `upstream_llama` and
`upstream_openai` to know.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp

from llambo.cluster.launch.base import UNIX
from llambo.cluster.upstream_json import encoded
from llambo.cluster.upstream_stream import ReplyStream
from llambo.core.errors import NodeLost

MAX_LINE_BYTES = 16 * 2**20
"""Of an event: llama.cpp's last one repeats the whole prompt."""
MAX_REPLY_BYTES = 64 * 2**20
_MAX_HEALTH_BYTES = 64 * 2**10


class BadStatus(Exception):
    """The server answered with another status than 200; for the clients of this module alone, which know the words."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class NodeHttp:
    """The HTTP server of `who` ("node n1") at `address` (`unix://PATH` or a URL without a slash at its end).

    Nothing is opened before the first request. Requests go out with `api_key` as bearer token; redirects are not
    followed, so that it goes nowhere else.
    """

    def __init__(self, who: str, address: str, *, api_key: str = "") -> None:
        self.who = who
        self._socket_path = address.removeprefix(UNIX) if address.startswith(UNIX) else ""
        self._base = "http://node" if self._socket_path else address
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._in_flight: set[_InFlight | ReplyStream] = set()
        self._is_closing = False

    async def close(self) -> None:
        """Ends what is in flight with `NodeLost`, as every new request; returns once the connections are closed."""
        self._is_closing = True
        for request in self._in_flight:
            request.end(self._stopped())  # first: aiohttp leaves a reader waiting whose session is closed under it
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, *, timeout_s: float | None) -> bytes:
        """The body at `path`. Raises: `NodeLost`, `BadStatus`."""
        async with self._timed(timeout_s), self._request("GET", path, None) as response:
            return await _whole(response)

    async def post(self, path: str, body: dict[str, Any], *, timeout_s: float | None) -> bytes:
        """The body of the reply; `timeout_s` None waits for as long as the connection stands.

        Raises: `NodeLost`, `BadStatus`.
        """
        async with self._timed(timeout_s), self._request("POST", path, body) as response:
            return await _whole(response)

    @asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any], *, stall_s: float) -> AsyncIterator[EventStream]:
        """The events of the reply. Raises: `NodeLost`, `BadStatus`, while it is being read too."""
        async with self._request("POST", path, body, header_timeout_s=stall_s) as response:
            if response.status != 200:
                async with self._timed(stall_s):
                    await _whole(response)
            events = EventStream(response.content, self.who, stall_s)
            try:
                yield events
            finally:
                events.stop()

    @asynccontextmanager
    async def reply(
        self, method: str, path: str, body: bytes | None, *, stall_s: float | None, connect_s: float
    ) -> AsyncIterator[ReplyStream]:
        """The reply from its headers on, whatever its status, on a connection of its own that ends with the block.

        Raises: `NodeLost`, while it is being read too.
        """
        self._check_open()
        lines = [*self._head(method, path), "Content-Type: application/json", f"Content-Length: {len(body or b'')}"]
        stream = ReplyStream(self.who, "\r\n".join([*lines, "", ""]).encode() + (body or b""), stall_s=stall_s)
        self._in_flight.add(stream)
        try:
            try:
                async with self._timed(connect_s):
                    await self._connect(stream)
            except (OSError, ssl.SSLError, UnicodeError) as error:
                raise self._stopped() if self._is_closing else self._lost(f"does not answer: {_words(error)}") from None
            await stream.head()
            yield stream
        finally:
            stream.close()
            self._in_flight.discard(stream)

    async def check(self, path: str, expected: bytes, *, timeout_s: float) -> None:
        """Returns once `path` has answered 200 with `expected` somewhere in its body.

        A request by hand on a bare connection: a third of what a session's request costs, and every node gets one in
        each interval. Raises: `NodeLost`.
        """
        exchange = _Exchange("\r\n".join([*self._head("GET", path), "", ""]).encode(), expected)
        try:
            async with asyncio.timeout(timeout_s):
                transport = await self._connect(exchange)
                try:
                    reply = await exchange.done
                finally:
                    transport.abort()
        except TimeoutError:
            raise NodeLost(f"{self.who} gave no sign of health within {timeout_s:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise NodeLost(f"{self.who} does not answer: {_words(error)}") from None
        if reply is not None:
            raise NodeLost(f"{self.who} is not well: its server says {reply}")

    def _head(self, method: str, path: str) -> list[str]:
        """The lines that begin a request by hand."""
        host = "node" if self._socket_path else urlsplit(self._base).netloc
        prefix = "" if self._socket_path else urlsplit(self._base).path
        key = self._headers.get("Authorization")
        return [
            f"{method} {prefix}{path} HTTP/1.1",
            f"Host: {host}",
            "Connection: close",
            *([f"Authorization: {key}"] if key else []),
        ]

    async def _connect(self, exchange: asyncio.Protocol) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        if self._socket_path:
            return (await loop.create_unix_connection(lambda: exchange, self._socket_path))[0]
        url = urlsplit(self._base)
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if secure else 80)
        return (await loop.create_connection(lambda: exchange, host, port, ssl=secure or None))[0]

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None, *, header_timeout_s: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request in flight; whatever goes wrong with the connection or the reply's form is `NodeLost`."""
        data = None if body is None else encoded(body)
        self._check_open()
        in_flight = _InFlight()
        self._in_flight.add(in_flight)
        try:
            request = self._open_session().request(
                method, f"{self._base}{path}", data=data, headers=self._headers, allow_redirects=False
            )
            async with self._timed(header_timeout_s) as in_flight.headers:
                response = in_flight.response = await request
            async with response:
                self._check_open()
                yield response
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            # UnicodeError: a host name that cannot be looked up.
            raise self._stopped() if self._is_closing else self._lost(f"does not answer: {_words(error)}") from None
        finally:
            self._in_flight.discard(in_flight)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The server closes a connection after each stream; one kept alive would now and then be a dead one.
            connector = (
                aiohttp.UnixConnector(self._socket_path, limit=0, force_close=True)
                if self._socket_path
                else aiohttp.TCPConnector(limit=0, force_close=True)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    @asynccontextmanager
    async def _timed(self, timeout_s: float | None) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                yield timeout
        except TimeoutError as error:  # ours, that of `_InFlight.end`, or the system's for the connection
            if self._is_closing:
                raise self._stopped() from None
            raise self._lost(_words(error) if timeout_s is None else f"gave nothing for {timeout_s:g} s") from None

    def _check_open(self) -> None:
        if self._is_closing:
            raise self._stopped()

    def _stopped(self) -> NodeLost:
        return self._lost("was stopped")

    def _lost(self, what: str) -> NodeLost:
        return NodeLost(f"{self.who} {what}")


class _InFlight:
    """A request that waits for its headers, under the time limit `headers`, and then for the rest of `response`."""

    def __init__(self) -> None:
        self.headers: asyncio.Timeout | None = None
        self.response: aiohttp.ClientResponse | None = None

    def end(self, error: NodeLost) -> None:
        """Whoever reads gets `error`, now or with the next read."""
        if self.response is None:
            if self.headers is not None:
                self.headers.reschedule(0)
            return
        self.response.content.set_exception(error)
        connection = self.response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # a goodbye by TLS would wait for a server that hangs


class EventStream:
    """The payloads of server-sent events; comments (pings) are passed over.

    While a read waits, the time since the last `progress` is watched; `stall_s` seconds of it are `NodeLost`. Time that
    the reader spends elsewhere does not count.
    """

    def __init__(self, content: aiohttp.StreamReader, who: str, stall_s: float) -> None:
        self._content = content
        self._who = who
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._lines: list[bytes] = []  # in reverse
        self._waits_since: float | None = None
        self._timer = self._loop.call_later(stall_s, self._look)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        if self._waits_since is None:
            self._waits_since = self._loop.time()
        while True:
            while self._lines:
                line = self._lines.pop()
                if line.startswith(b"data:"):
                    return line[5:].strip()
            piece = await self._content.readany()
            if not piece:
                raise StopAsyncIteration
            self._split(piece)

    def progress(self) -> None:
        """The last payload brought the answer on."""
        self._waits_since = None

    def stop(self) -> None:
        """Ends the watch."""
        self._timer.cancel()

    def _split(self, piece: bytes) -> None:
        if b"\n" not in piece:
            self._pending += piece
            if len(self._pending) > MAX_LINE_BYTES:
                raise NodeLost(f"{self._who} streams a line of more than {MAX_LINE_BYTES} bytes")
            return
        *lines, rest = piece.split(b"\n")
        if self._pending:
            lines[0] = bytes(self._pending) + lines[0]
        self._pending = bytearray(rest)
        self._lines = lines[::-1]

    def _look(self) -> None:
        waited = 0.0 if self._waits_since is None else self._loop.time() - self._waits_since
        if waited >= self._stall_s:
            self._content.set_exception(NodeLost(f"{self._who} gave nothing for {self._stall_s:g} s"))
            return
        self._timer = self._loop.call_later(self._stall_s - waited, self._look)


class _Exchange(asyncio.Protocol):
    """One request and as much of its reply as is needed; `done` gives None, or what was wrong with it."""

    def __init__(self, request: bytes, expected: bytes) -> None:
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._expected = expected
        self._reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports write and are no subclass of asyncio's that do.
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head, found, body = self._reply.partition(b"\r\n\r\n")
        if found and self._is_ok(head) and self._expected in body:
            self._finish(None)
        elif len(self._reply) > _MAX_HEALTH_BYTES:
            self._finish("too much")

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not self.done.done():
            self.done.set_exception(error)
        first_line = self._reply.partition(b"\r\n")[0][:80].decode(errors="replace")
        self._finish(f"{first_line!r}" if first_line else "nothing")

    @staticmethod
    def _is_ok(head: bytes) -> bool:
        return head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))

    def _finish(self, fault: str | None) -> None:
        if not self.done.done():
            self.done.set_result(fault)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """The body, bounded. Raises: `BadStatus`."""
    body = bytearray()
    while piece := await response.content.readany():
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            raise aiohttp.ClientPayloadError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
    if response.status != 200:
        raise BadStatus(response.status, bytes(body))
    return bytes(body)


def _words(error: BaseException) -> str:
    """What went wrong, without aiohttp's repetition of where."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, socket.gaierror | ssl.SSLError):
        return os.strerror(cause.errno)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
