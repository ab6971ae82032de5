"""The bridge against the node's own server: round trips, streams, memory, and answering while a model loads.

python -m bench.bridge [ping] [streams] [memory] [load]
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil

from bench.harness import MODELS, Report, bridge_process, interleave, model, percentile
from llambo import AsyncBridge, Bridge
from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import StreamEnd, Upstream
from llambo.core.types import LoadOptions, Sampling
from llambo.engine import gguf, llama, models

PROMPT = "What is distributed computing?"
SLOTS = 8
CTX = 1024


def ping(report: Report) -> None:
    """Round trips of the synchronous client, one at a time."""
    with bridge_process() as (socket, _), Bridge.connect(socket) as bridge:
        for _ in range(2000):
            bridge.ping()
        times: list[float] = []
        for _ in range(20_000):
            started = time.perf_counter()
            bridge.ping()
            times.append((time.perf_counter() - started) * 1e6)
    report.add("PING round trip, p50", f"{percentile(times, 0.5):.0f} us", "<= 100 us")
    report.add("PING round trip, p99", f"{percentile(times, 0.99):.0f} us", "<= 500 us")


async def _native(upstream: Upstream, tokens: int) -> int:
    async for event in upstream.stream(PROMPT, Sampling(max_tokens=tokens, temperature=0)):
        if isinstance(event, StreamEnd):
            return event.tokens
    raise AssertionError


async def _binary(bridge: AsyncBridge, tokens: int) -> int:
    async with aclosing(bridge.stream(PROMPT, max_tokens=tokens, temperature=0, raw=True)) as stream:
        async for token in stream:
            if token.final:
                return token.tokens or 0
    raise AssertionError


async def _text(socket: str, tokens: int) -> int:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"INFER_STREAM max_tokens={tokens} temperature=0 raw=true {PROMPT}\n".encode())
    async for line in reader:
        event = json.loads(line)
        if event.get("final"):
            writer.close()
            await writer.wait_closed()
            return int(event["tokens"])
    raise AssertionError


async def _rate(ask: Callable[[], Coroutine[Any, Any, int]], streams: int) -> float:
    started = time.perf_counter()
    counts = await asyncio.gather(*(ask() for _ in range(streams)))
    return sum(counts) / (time.perf_counter() - started)


async def _compare(report: Report, name: str, path: Path, tokens: int, rounds: int) -> None:
    launcher = LocalLauncher(MODELS / "run")
    threads = llama.threads_for(gguf.read(path).tensor_bytes)  # as the bridge chooses
    node = await launcher.spawn(
        NodeRequest("native", str(path), LoadOptions(ctx=CTX, slots=SLOTS, threads=threads)), timeout_s=120
    )
    upstream = Upstream(node.name, node.socket_path)
    try:
        with bridge_process() as (socket, _):
            async with AsyncBridge.connect(socket) as bridge:
                await bridge.load_model(str(path), ctx=CTX, slots=SLOTS)
                for streams in (1, SLOTS):
                    for protocol, ask in (
                        ("binary", lambda: _binary(bridge, tokens)),
                        ("text", lambda: _text(socket, tokens)),
                    ):
                        native, bridged, ratio = await interleave(
                            lambda streams=streams: _rate(lambda: _native(upstream, tokens), streams),
                            lambda streams=streams, ask=ask: _rate(ask, streams),
                            rounds,
                        )
                        what = f"{name}, {streams} stream{'s' if streams > 1 else ''}, {protocol}"
                        rates = f"{bridged:.0f} of {native:.0f} tokens/s"
                        report.add(what, f"{ratio:.3f} of native ({rates})", ">= 0.95")
    finally:
        await upstream.close()
        await launcher.close()


def streams(report: Report) -> None:
    """Tokens per second through the bridge over those of the node's own server, in turns."""
    built_in = models.resolve("built-in", home=Path("/nonexistent"), offline=True, progress=None)
    asyncio.run(_compare(report, "125M Q8_0", model("small"), 64, 7))
    asyncio.run(_compare(report, "built-in", built_in, 400, 9))


def memory(report: Report) -> None:
    """What ten rounds of LOAD and FREE leave in the bridge, and whether the node is gone."""
    path = str(model("small"))
    with bridge_process() as (socket, pid), Bridge.connect(socket) as bridge:
        process = psutil.Process(pid)
        for _ in range(2):  # imports and pools are there after these
            bridge.load_model(path)
            bridge.infer("hello", max_tokens=4)
            bridge.free_model()
        zygote_only = len(process.children(recursive=True))
        before = process.memory_info().rss
        for _ in range(10):
            bridge.load_model(path)
            bridge.infer("hello", max_tokens=4)
            bridge.free_model()
        grown = process.memory_info().rss / before - 1
        report.add("RSS of the bridge after ten LOAD/FREE rounds", f"{grown:+.2%}", "<= 2 %")
        left = len(process.children(recursive=True)) - zygote_only
        report.add("nodes left after FREE", str(left), "0")


def load(report: Report) -> None:
    """The slowest PING while a model of half a billion parameters loads."""
    path = str(model("medium"))
    with bridge_process() as (socket, _), Bridge.connect(socket) as bridge, Bridge.connect(socket) as other:
        loading = threading.Thread(target=bridge.load_model, args=(path,))
        times: list[float] = []
        started = time.perf_counter()
        loading.start()
        while loading.is_alive():
            sent = time.perf_counter()
            other.ping()
            times.append((time.perf_counter() - sent) * 1e3)
        took = time.perf_counter() - started
        loading.join()
    report.add(f"slowest of {len(times)} PINGs during a LOAD of {took:.1f} s", f"{max(times):.1f} ms", "<= 10 ms")


PARTS = {"ping": ping, "streams": streams, "memory": memory, "load": load}
