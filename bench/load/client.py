"""Sends the requests of a workload to one server, and sees to it that each one ends, in time, in an outcome.

Owns connections and moments (seconds of `time.perf_counter`). What is sent is `plan`'s business, what comes back
`wire`'s. It does little for a token, because it may share its processors with the server that it measures.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

from bench.load.plan import PATHS, Workload
from bench.load.wire import BROKEN_OFF, TIMEOUT, UNREACHABLE, Outcome, ReplyReader

_CONNECTING_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server: `host` and `port`, or a Unix `socket_path`. `prefix` comes before every path."""

    host: str
    port: int
    socket_path: str = ""
    prefix: str = ""
    secure: bool = False

    @classmethod
    def parse(cls, url: str) -> Target:
        """Reads `http://HOST[:PORT]`, `https://…` or `unix:///PATH`; a `/v1` at the end may be there.

        Raises: `ValueError` with what would be right.
        """
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return cls("localhost", 0, socket_path=unquote(parts.path))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no server: give http://HOST:PORT, https://HOST[:PORT] or unix:///PATH")
        secure = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or (443 if secure else 80), prefix=prefix, secure=secure)

    def __str__(self) -> str:
        if self.socket_path:
            return f"unix://{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.prefix}"


async def run(
    target: Target,
    workload: Workload,
    *,
    requests: int,
    streams: int = 8,
    arrivals_s: Sequence[float] | None = None,
    timeout_s: float = 120.0,
    api_key: str = "",
) -> list[Outcome]:
    """Sends requests 0 to `requests` - 1 and returns their outcomes in that order.

    Without `arrivals_s` the loop is closed: `streams` clients, each with one request at a time. With it the loop is
    open: request i is sent `arrivals_s[i]` after the start, whatever became of the others, and every latency counts
    from that moment, also where this process was late. A request that has not ended after `timeout_s` has failed.
    """
    client = _Client(target, workload, timeout_s=timeout_s, api_key=api_key)
    try:
        if arrivals_s is None:
            return await _closed(client, requests, streams)
        return await _open(client, arrivals_s[:requests])
    finally:
        client.close()


async def _closed(client: _Client, requests: int, streams: int) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            outcomes[number] = await client.ask(number, time.perf_counter())

    numbers = iter(range(requests))
    async with asyncio.TaskGroup() as workers:
        for _ in range(min(streams, requests)):
            workers.create_task(work(numbers))
    return [outcomes[number] for number in range(requests)]


async def _open(client: _Client, arrivals_s: Sequence[float]) -> list[Outcome]:
    start = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        tasks = []
        for number, arrival_s in enumerate(arrivals_s):
            planned_s = start + arrival_s
            ahead_s = planned_s - time.perf_counter()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            tasks.append(requests.create_task(client.ask(number, planned_s)))
    return [task.result() for task in tasks]


class _Client:
    """Requests over connections that are kept while the server keeps them."""

    def __init__(self, target: Target, workload: Workload, *, timeout_s: float, api_key: str) -> None:
        self._target = target
        self._workload = workload
        self._timeout_s = timeout_s
        self._ssl = ssl.create_default_context() if target.secure else None
        self._idle: list[_Connection] = []
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        host = f"[{target.host}]" if ":" in target.host else target.host
        self._head = (
            f"POST {target.prefix}{PATHS[workload.endpoint]} HTTP/1.1\r\n"
            f"Host: {host}{f':{target.port}' if target.port else ''}\r\n"
            f"{key}Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def close(self) -> None:
        """Closes every connection that is kept."""
        for connection in self._idle:
            connection.close()

    async def ask(self, number: int, planned_s: float) -> Outcome:
        """Sends request `number`; never raises."""
        body = self._workload.body(number)
        data = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        reader = ReplyReader(streams=self._workload.streams)
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                reader = await self._exchange(data, reader)
        except TimeoutError:
            so_far = f"after {reader.outcome.tokens} tokens" if reader.has_begun else "nothing came"
            reader.give_up(TIMEOUT, f"no end within {self._timeout_s:g} s, {so_far}", time.perf_counter())
        except OSError as error:
            reader.give_up(UNREACHABLE, str(error) or type(error).__name__, time.perf_counter())
        reader.outcome.planned_s = planned_s
        reader.outcome.sent_s = sent_s
        return reader.outcome

    async def _exchange(self, data: bytes, reader: ReplyReader) -> ReplyReader:
        """Returns the reader that has the reply: a kept connection may have ended before it was used again."""
        while self._idle:
            connection = self._idle.pop()
            if connection.has_ended:
                continue
            await self._over(connection, data, reader)
            if reader.has_begun or reader.outcome.reason != BROKEN_OFF:
                return reader
            reader = ReplyReader(streams=self._workload.streams)
        connection = await self._connect()
        await self._over(connection, data, reader)
        return reader

    async def _over(self, connection: _Connection, data: bytes, reader: ReplyReader) -> None:
        try:
            await connection.ask(data, reader)
        except BaseException:
            connection.close()
            raise
        if reader.can_reuse and not connection.has_ended:
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        target = self._target
        connection = _Connection()
        async with asyncio.timeout(_CONNECTING_S):
            if target.socket_path:
                await loop.create_unix_connection(lambda: connection, target.socket_path)
            else:
                await loop.create_connection(lambda: connection, target.host, target.port, ssl=self._ssl)
        return connection


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self.has_ended = False
        self._transport: asyncio.Transport | None = None
        self._reader: ReplyReader | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(self, data: bytes, reader: ReplyReader) -> None:
        """Returns once the reply is over, or the connection."""
        assert self._transport is not None
        self._reader = reader
        self._done = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(data)
            await self._done
        finally:
            self._reader = None

    def close(self) -> None:
        """Drops the connection at once."""
        self.has_ended = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._reader is None:
            self.close()  # nobody asked
        elif self._reader.feed(data, time.perf_counter()):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.has_ended = True
        if self._reader is not None:
            self._reader.close(time.perf_counter())
            self._end()

    def _end(self) -> None:
        self._reader = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
