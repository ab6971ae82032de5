"""The cluster as files: streamed answers beside the cluster's door, ten thousand nodes, a thousand readers of events.

Answers are read by a process of its own, from a server in the process of the cluster, which the door is in too. The
other servers are processes of their own, over a cluster in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import uvloop

from bench import ending
from bench.harness import Report, interleave, model, percentile
from llambo.cluster.api import Cluster
from llambo.cluster.control import ClusterEvent
from llambo.core.types import Done, GenerateRequest, LoadOptions, Sampling
from llambo.namespace.server import Namespace
from llambo.ninep.client import AsyncClient, AsyncFile
from llambo.ninep.server import FileServer
from tests.namespace.namespace_world import NODE, FakeCluster

QUESTION = "What is distributed computing?"
ROUNDS = 9
ENTRIES = 10_000
READERS = 1000
LOOKS = 7
_BUILT_IN = Path(__file__).parent.parent / "src/llambo/data/built-in.gguf"


@contextlib.asynccontextmanager
async def _served(model_path: Path) -> AsyncIterator[tuple[Cluster, str]]:
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as home:
        os.environ["LLAMBO_HOME"] = home
        async with Cluster() as cluster:
            namespace = Namespace(cluster, cluster, cluster, home=Path(home), request_stop=lambda: None)
            await cluster.load(str(model_path), options=LoadOptions(ctx=1024, slots=2))
            async with namespace, FileServer(namespace.attach) as server:
                address = await server.listen(f"unix!{home}/styx")
                yield cluster, address


def _request(tokens: int) -> GenerateRequest:
    return GenerateRequest.from_prompt(QUESTION, sampling=Sampling(max_tokens=tokens, seed=1, temperature=1.5))


async def _door(cluster: Cluster, tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens a second, through the door."""
    started = time.perf_counter()
    first = 0.0
    async for event in cluster.generate(_request(tokens)):
        first = first or time.perf_counter() - started
        if isinstance(event, Done):
            return first, event.tokens / (time.perf_counter() - started)
    raise AssertionError


async def _read(address: str) -> None:
    """The reader's process: for each number of tokens on standard input one answer, and what it took."""
    loop = asyncio.get_running_loop()
    async with await AsyncClient.connect(address) as client, client.open("clone", "rw") as ctl:
        path = f"sessions/{(await ctl.read()).decode().strip()}"
        while tokens := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            first, rate = await _stream(client, ctl, path, int(tokens))
            sys.stdout.write(f"{first} {rate}\n")
            sys.stdout.flush()


async def _stream(client: AsyncClient, ctl: AsyncFile, path: str, tokens: int) -> tuple[float, float]:
    """As `_door`, through `sessions/N/stream`: from the opening, which sends the prompt, to its end."""
    await ctl.write(f"clear\nmax_tokens {tokens}\nseed 1\ntemperature 1.5\n")
    await client.write_file(f"{path}/prompt", QUESTION)
    started = time.perf_counter()
    first = 0.0
    async with client.open(f"{path}/stream") as stream:
        async for _ in stream.follow():
            first = first or time.perf_counter() - started
    took = time.perf_counter() - started
    status = (await client.read_file(f"{path}/status")).decode()
    count = int(dict(line.partition(" ")[::2] for line in status.splitlines())["tokens"])
    return first, count / took


@contextlib.asynccontextmanager
async def _reader(address: str) -> AsyncIterator[Callable[[int], Awaitable[tuple[float, float]]]]:
    """The reader's process; what is given asks it for one answer of so many tokens."""
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.namespace", "read", address,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdin is not None
    assert reader.stdout is not None
    say, hear = reader.stdin, reader.stdout

    async def stream(count: int) -> tuple[float, float]:
        say.write(f"{count}\n".encode())
        first, rate = map(float, (await hear.readline()).split())
        return first, rate

    try:
        yield stream
    finally:
        say.close()
        await reader.wait()


async def _streams(report: Report, name: str, path: Path, tokens: int, firsts: int) -> None:
    async with _served(path) as (cluster, address), _reader(address) as stream:
        await _door(cluster, 4)
        await stream(4)
        pairs = [(await _door(cluster, 4), await stream(4)) for _ in range(firsts)]
        one, two = percentile([one[0] for one, _ in pairs], 0.5), percentile([two[0] for _, two in pairs], 0.5)
        over = percentile([two[0] - one[0] for one, two in pairs], 0.5)
        report.add(
            f"{name}: first token of sessions/N/stream over the cluster's door, median of {firsts}",
            f"{over * 1e3:.2f} ms more ({two * 1e3:.2f} and {one * 1e3:.2f} ms)",
            "<= 2 ms",
        )

        async def through_door() -> float:
            return (await _door(cluster, tokens))[1]

        async def through_stream() -> float:
            return (await stream(tokens))[1]

        one, two, ratio = await interleave(through_door, through_stream, ROUNDS)
        figure = f"{ratio:.3f} ({two:,.0f} of {one:,.0f} tokens/s)"
        report.add(f"{name}: tokens/s of sessions/N/stream against the cluster's door", figure, ">= 0.95")


async def _serve(directory: str) -> None:
    """The process of the cluster in memory: SIGUSR1 is an event."""
    cluster = FakeCluster()
    cluster.by_id = {f"n{number}": replace(NODE, id=f"n{number}") for number in range(1, ENTRIES + 1)}
    namespace = Namespace(cluster, cluster, cluster, home=Path(directory), request_stop=lambda: None)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: cluster.publish(ClusterEvent(time.time(), "tick")))
    async with namespace, FileServer(namespace.attach) as server:
        await server.listen(f"unix!{directory}/styx")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[tuple[str, psutil.Process]]:
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        command = [sys.executable, "-m", "bench.namespace", directory]
        with ending.process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise SystemExit("the namespace did not start")
            yield f"unix!{directory}/styx", psutil.Process(server.pid)


async def _listing(report: Report) -> None:
    async with _server() as (address, _):
        for msize in (8192, 1 << 20):
            async with await AsyncClient.connect(address, msize=msize) as client:
                times = []
                for _ in range(LOOKS):
                    started = time.perf_counter()
                    assert len(await client.ls("nodes")) == ENTRIES
                    times.append(time.perf_counter() - started)
                figure = f"{max(times):.2f} s ({percentile(times, 0.5):.2f} s in the middle)"
                report.add(f"listing of {ENTRIES:,} nodes, msize {msize}, slowest of {LOOKS}", figure, "<= 1 s")
        async with await AsyncClient.connect(address) as client:
            times = []
            for _ in range(LOOKS):
                started = time.perf_counter()
                size = len(await client.read_file("status.json"))
                times.append(time.perf_counter() - started)
            figure = f"{percentile(times, 0.5) * 1e3:.0f} ms ({size / 2**20:.1f} MiB)"
            report.add(f"status.json of {ENTRIES:,} nodes", figure)


async def _events(report: Report) -> None:
    async with _server() as (address, process):
        before = process.memory_info().rss
        clients = [await AsyncClient.connect(address) for _ in range(READERS)]
        async with contextlib.AsyncExitStack() as stack:
            files = [await stack.enter_async_context(client.open("events")) for client in clients]
            times = []
            for _ in range(LOOKS):
                readers = [asyncio.ensure_future(file.read()) for file in files]
                for client in clients:
                    await client.stat("/")  # its read, sent before, is blocked on the server now
                each = (process.memory_info().rss - before) / READERS / 1024
                started = time.perf_counter()
                process.send_signal(signal.SIGUSR1)
                lines = await asyncio.gather(*readers)
                times.append(time.perf_counter() - started)
                assert all(line.endswith(b" tick\n") for line in lines)
        for client in clients:
            await client.close()
    report.add(
        f"an event to {READERS:,} blocked readers, slowest of {LOOKS}", f"{max(times) * 1e3:.0f} ms", "<= 500 ms"
    )
    report.add("the server's memory for each of them", f"{each:.1f} KiB", "<= 40 KiB")


def streams(report: Report) -> None:
    """Answers through `sessions/N/stream` and through the door, in turns."""
    uvloop.run(_streams(report, "built-in", _BUILT_IN, 400, 100))
    uvloop.run(_streams(report, "125M Q8_0", model("small"), 64, 20))


def listing(report: Report) -> None:
    """The directory of ten thousand nodes."""
    uvloop.run(_listing(report))


def events(report: Report) -> None:
    """A thousand connections that wait for an event."""
    uvloop.run(_events(report))


PARTS = {"styx-streams": streams, "styx-listing": listing, "styx-events": events}

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["read", address]:
            uvloop.run(_read(address))
        case [directory]:
            uvloop.run(_serve(directory))
