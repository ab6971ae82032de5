"""9P beside the raw socket it runs on: small and large reads, a long directory, and a thousand blocked readers.

The server is a process of its own. What is compared with an echo is measured in turns with it: the same loop, the same
kind of socket, the same sizes, and no protocol between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial

import psutil
import uvloop

from bench import ending
from bench.harness import Report, interleave
from llambo.ninep import messages as m
from llambo.ninep.client import AsyncClient
from llambo.ninep.files import StaticDirectory, TextFile
from llambo.ninep.messages import MAX_MSIZE
from llambo.ninep.server import FileServer
from llambo.ninep.streams import Broadcast, StreamFile
from llambo.ninep.wire import encode

SMALL = b"state ready\n"
LARGE_BYTES = 64 << 20
PIECE_BYTES = MAX_MSIZE - m.IO_HEADER_BYTES
ENTRIES = 10_000
READERS = 1000
ROUNDS = 7
REQUEST_BYTES = 23  # of a Tread


async def _serve(directory: str) -> None:
    """The server's process: a tree to measure on one socket, an echo of the same sizes on another."""
    large = bytes(LARGE_BYTES)
    events = Broadcast()

    def fire(offset: int, data: bytes) -> None:
        events.send(data.decode())

    root = StaticDirectory(
        "/",
        [
            TextFile("small", lambda: SMALL),
            TextFile("large", lambda: large),
            StaticDirectory("nodes", [TextFile(f"node-{number}", lambda: SMALL) for number in range(ENTRIES)]),
            StreamFile("events", events.open),
            TextFile("fire", None, fire),
        ],
    )
    loop = asyncio.get_running_loop()
    async with FileServer(lambda uname, aname, peer: root) as server:
        await server.listen(f"unix!{directory}/9p")
        echo = await loop.create_unix_server(_Echo, f"{directory}/echo")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)
        echo.close()


class _Echo(asyncio.Protocol):
    """Answers each request of 23 bytes: its first byte says whether with a small or a large answer."""

    _ANSWERS = (bytes(11 + len(SMALL)), bytes(11 + PIECE_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._size = 0

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        count, self._size = divmod(self._size, REQUEST_BYTES)
        self._transport.write(self._ANSWERS[data[0]] * count)  # type: ignore[attr-defined]


class _Raw(asyncio.BufferedProtocol):
    """A client of bytes: `exchange` sends, and gives the answer once as many bytes as are due are there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._buffer = bytearray(MAX_MSIZE)
        self._view = memoryview(self._buffer)
        self._there = self._due = 0
        self._done: asyncio.Future[bytes] | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._there :]

    def buffer_updated(self, nbytes: int) -> None:
        self._there += nbytes
        if self._there >= self._due and self._done is not None:
            self._done.set_result(bytes(self._view[: self._there]))
            self._done = None

    def exchange(self, data: bytes, due: int) -> asyncio.Future[bytes]:
        self._there, self._due = 0, due
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(data)  # type: ignore[attr-defined]
        return self._done


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[tuple[str, psutil.Process]]:
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        command = [sys.executable, "-m", "bench.ninep", directory]
        with ending.process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise SystemExit("the file server did not start")
            yield directory, psutil.Process(server.pid)


async def _client(directory: str) -> AsyncClient:
    return await AsyncClient.connect(f"unix!{directory}/9p")


async def _raw(path: str) -> _Raw:
    _, raw = await asyncio.get_running_loop().create_unix_connection(_Raw, path)
    return raw


async def _reads(client: AsyncClient, fid: int, in_flight: int, count: int) -> float:
    """Small reads a second through our client, `in_flight` at a time."""

    async def reader(number: int) -> None:
        for _ in range(number):
            await client.request(lambda tag: m.Tread(tag, fid, 0, 4096))

    started = time.perf_counter()
    await asyncio.gather(*(reader(count // in_flight) for _ in range(in_flight)))
    return count / (time.perf_counter() - started)


async def _pipelined(raw: _Raw, request: bytes, in_flight: int, due: int, rounds: int) -> float:
    """Answers a second where `in_flight` requests are sent together."""
    data = request * in_flight
    started = time.perf_counter()
    for _ in range(rounds):
        await raw.exchange(data, due * in_flight)
    return rounds * in_flight / (time.perf_counter() - started)


async def _small(report: Report) -> None:
    async with _server() as (directory, _), await _client(directory) as client:
        echo = await _raw(f"{directory}/echo")
        async with client.open("small") as file:
            for in_flight, count, wanted in ((1, 20_000, ">= 8,000/s"), (64, 64 * 500, ">= 40,000/s")):
                raw = partial(_pipelined, echo, bytes(REQUEST_BYTES), in_flight, 11 + len(SMALL), count // in_flight)
                ours = partial(_reads, client, file.info.fid, in_flight, count)
                echoed, rate, ratio = await interleave(raw, ours, ROUNDS)
                what = f"9P small reads, {in_flight} in flight, Python at both ends"
                report.add(what, f"{rate:,.0f}/s ({ratio:.2f} of an echo's {echoed:,.0f}/s)", wanted)
        await _small_server(report, directory)


async def _small_server(report: Report, directory: str) -> None:
    """The server alone: 64 reads sent together, as bytes made before."""
    raw = await _raw(f"{directory}/9p")
    hello: tuple[tuple[m.Message, int], ...] = (
        (m.Tversion(m.NOTAG, 8192, m.VERSION), 19),
        (m.Tattach(0, 0, m.NOFID, "", ""), 20),
        (m.Twalk(0, 0, 1, ("small",)), 22),
        (m.Topen(0, 1, 0), 24),
    )
    for message, due in hello:
        await raw.exchange(encode(message), due)
    data = b"".join(encode(m.Tread(tag, 1, 0, 4096)) for tag in range(64))
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(500):
            await raw.exchange(data, 64 * (11 + len(SMALL)))
        rates.append(500 * 64 / (time.perf_counter() - started))
    report.add("9P small reads, 64 in flight, the server alone", f"{statistics.median(rates):,.0f}/s", ">= 40,000/s")


async def _large(report: Report) -> None:
    async with _server() as (directory, _), await _client(directory) as client:
        echo = await _raw(f"{directory}/echo")
        request = b"\1" + bytes(REQUEST_BYTES - 1)
        pieces = LARGE_BYTES // PIECE_BYTES

        async def raw() -> float:
            return await _pipelined(echo, request, 1, 11 + PIECE_BYTES, pieces) * PIECE_BYTES / 1e6

        async with client.open("large") as file:

            async def sequential() -> float:
                started = time.perf_counter()
                for piece in range(pieces):
                    await file.read(offset=piece * PIECE_BYTES)
                return pieces * PIECE_BYTES / (time.perf_counter() - started) / 1e6

            echoed, rate, ratio = await interleave(raw, sequential, ROUNDS)
        report.add("9P sequential reads, msize 1 MiB", f"{rate:,.0f} MB/s", ">= 300 MB/s")
        report.add("the same over a raw echo", f"{ratio:.2f} of {echoed:,.0f} MB/s", ">= 0.5")


async def _listing(report: Report) -> None:
    async with _server() as (directory, _):
        for msize in (8192, MAX_MSIZE):
            async with await AsyncClient.connect(f"unix!{directory}/9p", msize=msize) as client:
                times = []
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    assert len(await client.ls("nodes")) == ENTRIES
                    times.append(time.perf_counter() - started)
            what = f"9P listing of {ENTRIES:,} entries, msize {msize}"
            report.add(what, f"{statistics.median(times):.2f} s", "<= 1 s")


async def _blocked(report: Report) -> None:
    async with _server() as (directory, process), await _client(directory) as client:
        before = process.memory_info().rss
        clients = [await _client(directory) for _ in range(READERS)]
        async with contextlib.AsyncExitStack() as stack:
            files = [await stack.enter_async_context(client.open("events")) for client in clients]
            readers = [asyncio.ensure_future(file.read()) for file in files]
            await client.stat("events")
            times = []
            for _ in range(ROUNDS):
                for other in clients:
                    await other.stat("/")  # its read, sent before, is blocked on the server now
                started = time.perf_counter()
                await client.write_file("fire", b"now", "a")
                assert await asyncio.gather(*readers) == [b"now\n"] * READERS
                times.append(time.perf_counter() - started)
                readers = [asyncio.ensure_future(file.read()) for file in files]
            for other in clients:
                await other.stat("/")
            each = (process.memory_info().rss - before) / READERS / 1024
            await client.write_file("fire", b"end", "a")
            await asyncio.gather(*readers)
        for other in clients:
            await other.close()
    slowest = max(times) * 1e3
    report.add(f"9P event to {READERS:,} blocked readers, slowest of {ROUNDS}", f"{slowest:.0f} ms", "<= 500 ms")
    report.add("the server's memory for each of them", f"{each:.1f} KiB", "<= 40 KiB")


def small(report: Report) -> None:
    """Round trips of a read of a few bytes, one at a time and 64 in flight."""
    uvloop.run(_small(report))


def large(report: Report) -> None:
    """Sequential reads of a large file, in turns with a raw echo of the same sizes."""
    uvloop.run(_large(report))


def listing(report: Report) -> None:
    """A directory of ten thousand entries."""
    uvloop.run(_listing(report))


def blocked(report: Report) -> None:
    """A thousand connections with a blocking read each."""
    uvloop.run(_blocked(report))


PARTS = {"9p-small": small, "9p-large": large, "9p-listing": listing, "9p-blocked": blocked}

if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
