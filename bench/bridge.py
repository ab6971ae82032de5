"""The bridge against the node's own server: round trips, streams, memory, and answering while a model loads.

python -m bench ping streams memory load
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench.harness import MODELS, Report, bridge_process, interleave, model, percentile
from llambo import AsyncBridge, Bridge
from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import Attempt, StreamEnd, Upstream, open_upstream
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
    attempt = Attempt(PROMPT, sampling=Sampling(max_tokens=tokens, temperature=0))
    async with aclosing(upstream.stream(attempt)) as events:
        async for event in events:
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
    threads = llama.threads_for(gguf.read(path).tensor_bytes)  # as the bridge chooses
    request = NodeRequest("native", str(path), LoadOptions(ctx=CTX, slots=SLOTS, threads=threads))
    launcher = LocalLauncher(MODELS / "run")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(launcher.close)
        node = await launcher.spawn(request, timeout_s=120)
        upstream = open_upstream(node)
        stack.push_async_callback(upstream.close)
        socket, _ = stack.enter_context(bridge_process())
        bridge = await stack.enter_async_context(AsyncBridge.connect(socket))
        await bridge.load_model(str(path), ctx=CTX, slots=SLOTS)
        asks: dict[str, Callable[[], Coroutine[Any, Any, int]]] = {
            "binary": lambda: _binary(bridge, tokens),
            "text": lambda: _text(socket, tokens),
        }
        for streams, (protocol, ask) in itertools.product((1, SLOTS), asks.items()):
            native, bridged, ratio = await interleave(
                partial(_rate, lambda: _native(upstream, tokens), streams), partial(_rate, ask, streams), rounds
            )
            what = f"{name}, {streams} stream{'s' if streams > 1 else ''}, {protocol}"
            report.add(what, f"{ratio:.3f} of native ({bridged:.0f} of {native:.0f} tokens/s)", ">= 0.95")


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
