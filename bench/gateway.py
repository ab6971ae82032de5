"""The HTTP gateway against a node's own server: time to first token, tokens per second, processor time, memory.

Two things are compared over the same transport (a Unix socket), by the same client, in turns. Where a `llama-server`
is on PATH it takes part. The gateway is a daemon of its own; its nodes are other processes.

python -m bench gateway-first gateway-tokens gateway-cpu gateway-idle gateway-leak
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.gateway_world import (
    EVENTS,
    Daemon,
    allow_connections,
    chat_request,
    daemon,
    idle_clients,
    llama_server,
    native_server,
    settled_uss,
)
from bench.harness import Report, interleave, model, percentile
from bench.load import Outcome, Span, Target, Workload, run
from bench.source import MODEL as SOURCE
from bench.source import source_process

BUILT_IN = Path(__file__).parent.parent / "src/llambo/data/built-in.gguf"
STREAMS = 8
_MOST_SLOTS = 256
"""Of a node."""


async def _ask(target: Target, workload: Workload, requests: int, streams: int) -> list[Outcome]:
    """A closed loop in which nothing may fail."""
    outcomes = await run(target, workload, requests=requests, streams=streams)
    failed = [outcome for outcome in outcomes if outcome.reason]
    if failed:
        raise SystemExit(f"{len(failed)} requests to {target} failed: {failed[0].reason}: {failed[0].detail}")
    return outcomes


def _rate(outcomes: list[Outcome]) -> float:
    took_s = max(outcome.last_s for outcome in outcomes) - min(outcome.sent_s for outcome in outcomes)
    return sum(outcome.tokens for outcome in outcomes) / took_s


def _endless(tokens: int, **extra: object) -> Workload:
    """Answers of exactly so many tokens."""
    return Workload(max_tokens=Span(tokens, tokens), extra={"ignore_eos": True, **extra})


@asynccontextmanager
async def _natives(path: Path, *, slots: int, ctx: int) -> AsyncIterator[dict[str, Target]]:
    """What the gateway is compared with, by name."""
    async with AsyncExitStack() as stack:
        targets = {"native": await stack.enter_async_context(native_server(path, slots=slots, ctx=ctx))}
        other = await stack.enter_async_context(llama_server(path, slots=slots, ctx=ctx))
        yield targets | ({"llama-server": other} if other else {})


@contextmanager
def _source(slots: int, **sections: Any) -> Iterator[tuple[Daemon, Target]]:
    """A daemon whose nodes are sources of tokens, as many as that many slots take; gives it, and one of them."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="llambo-bench-"))
        sockets = [f"{directory}/source{number}.sock" for number in range(-(-slots // _MOST_SLOTS))]
        urls = [stack.enter_context(source_process(socket, min(slots, _MOST_SLOTS))) for socket in sockets]
        running = stack.enter_context(daemon(BUILT_IN, nodes=0, attach=urls, **sections))
        yield running, Target("localhost", 0, sockets[0])


# Time to first token.

_SPREAD = Span(12, 36)
"""Tokens of an answer: of several lengths, or all streams would begin and end together, again and again."""


async def _compare_first(
    report: Report, what: str, gateway: Target, other: Target, workload: Workload, *, requests: int, rounds: int
) -> None:
    async def first_ms(target: Target) -> list[float]:
        outcomes = await _ask(target, workload, requests, STREAMS)
        return [(outcome.first_s - outcome.sent_s) * 1e3 for outcome in outcomes]

    await first_ms(other)
    await first_ms(gateway)
    pairs = [(await first_ms(other), await first_ms(gateway)) for _ in range(rounds)]
    added = statistics.median(percentile(b, 0.5) - percentile(a, 0.5) for a, b in pairs)
    ones, others = [value for a, _ in pairs for value in a], [value for _, b in pairs for value in b]
    figures = f"{percentile(others, 0.5):.2f} over {percentile(ones, 0.5):.2f} ms"
    report.add(f"time to first token added by the gateway, p50, {what}", f"{added:.2f} ms ({figures})", "<= 1.5 ms")
    figures = f"{percentile(others, 0.99):.2f} over {percentile(ones, 0.99):.2f} ms"
    added = percentile(others, 0.99) - percentile(ones, 0.99)
    report.add(f"time to first token added by the gateway, p99, {what}", f"{added:.2f} ms ({figures})", "<= 8 ms")


async def _first(report: Report, *, requests: int = 64, rounds: int = 9) -> None:
    slots, ctx = STREAMS, 512
    with daemon(BUILT_IN, slots=slots, ctx=ctx) as running:
        async with _natives(BUILT_IN, slots=slots, ctx=ctx) as natives:
            for name, other in natives.items():
                what = f"{STREAMS} streams of the built-in model, against {name}"
                workload = Workload(max_tokens=_SPREAD, extra={"ignore_eos": True})
                await _compare_first(report, what, running.gateway, other, workload, requests=requests, rounds=rounds)
    with _source(2 * STREAMS) as (running, source):
        what = f"{STREAMS} streams of a source that answers at once"
        workload = Workload(model=SOURCE, max_tokens=_SPREAD, extra={"pace_ms": 5})
        await _compare_first(report, what, running.gateway, source, workload, requests=4 * requests, rounds=rounds)


def first(report: Report) -> None:
    """Time to first token through the gateway over that of the node's own server, at 8 streams."""
    uvloop.run(_first(report))


# Tokens per second.


@dataclass(frozen=True, slots=True)
class _Load:
    """So many streams with answers of so many tokens; `wanted` is the share of native."""

    name: str
    preset: str
    streams: int
    tokens: int
    wanted: str

    @property
    def path(self) -> Path:
        """The model's file."""
        return model(self.preset) if self.preset else BUILT_IN


_LOADS = (
    _Load("built-in", "", 8, 200, ">= 0.97"),
    _Load("built-in", "", 32, 64, ""),
    _Load("built-in", "", 128, 32, ">= 0.93"),
    _Load("125M Q8_0", "small", 8, 48, ">= 0.97"),
    _Load("125M Q8_0", "small", 128, 12, ">= 0.93"),
)


async def _compare_tokens(report: Report, load: _Load, gateway: Target, others: dict[str, Target], rounds: int) -> None:
    async def rate(target: Target) -> float:
        return _rate(await _ask(target, _endless(load.tokens), load.streams, load.streams))

    for name, other in others.items():
        one, two, ratio = await interleave(partial(rate, other), partial(rate, gateway), rounds)
        figure = f"{ratio:.3f} of {name} ({two:.0f} of {one:.0f} tokens/s)"
        report.add(f"{load.name}, {load.streams} streams through the gateway", figure, load.wanted)


async def _tokens(report: Report, *, rounds: int = 7, loads: tuple[_Load, ...] = _LOADS) -> None:
    slots, ctx = max(load.streams for load in loads), 256
    for path in dict.fromkeys(load.path for load in loads):
        with daemon(path, slots=slots, ctx=ctx) as running:
            async with _natives(path, slots=slots, ctx=ctx) as natives:
                for load in loads:
                    if load.path == path:
                        await _compare_tokens(report, load, running.gateway, natives, rounds)


def tokens(report: Report) -> None:
    """Tokens per second of many streams through the gateway over those of the node's own server."""
    uvloop.run(_tokens(report))


# Processor time.


async def _cpu_us(running: Daemon, workload: Workload, requests: int, streams: int) -> tuple[float, float]:
    """Microseconds of the daemon's process for a token, and the tokens per second."""
    await _ask(running.gateway, workload, streams, streams)
    before_s = running.cpu_s()
    outcomes = await _ask(running.gateway, workload, requests, streams)
    spent_s = running.cpu_s() - before_s
    return spent_s / sum(outcome.tokens for outcome in outcomes) * 1e6, _rate(outcomes)


async def _cpu(report: Report, *, rounds: int = 5, seconds: int = 15) -> None:
    what = "processor time of the gateway for a token"
    with _source(2 * STREAMS) as (running, _):
        # One by one: 8 streams of 50 tokens a second, at moments of their own; long ones, since what a stream costs to
        # set up is told apart below.
        paced = Workload(model=SOURCE, max_tokens=Span(50 * seconds, 50 * seconds), extra={"pace_ms": 20})
        full = Workload(model=SOURCE, max_tokens=Span(4000, 4000), extra={"pace_ms": 0})
        for name, workload, wanted in (("paced one by one", paced, "<= 60 us"), ("at full speed", full, "<= 15 us")):
            found = [await _cpu_us(running, workload, STREAMS, STREAMS) for _ in range(rounds)]
            cost, rate = (statistics.median(values) for values in zip(*found, strict=True))
            report.add(
                f"{what}, {name}, {STREAMS} streams of a source", f"{cost:.1f} us (at {rate:.0f} tokens/s)", wanted
            )
        one = Workload(model=SOURCE, max_tokens=Span(1, 1))
        found = [await _cpu_us(running, one, 100 * STREAMS, STREAMS) for _ in range(rounds)]
        cost, rate = (statistics.median(values) for values in zip(*found, strict=True))
        report.add("processor time of the gateway for a stream of one token", f"{cost:.0f} us (at {rate:.0f} a second)")
    with daemon(BUILT_IN, slots=STREAMS, ctx=512) as running:
        found = [await _cpu_us(running, _endless(300), STREAMS, STREAMS) for _ in range(rounds)]
        cost, rate = (statistics.median(values) for values in zip(*found, strict=True))
        report.add(f"{what}, {STREAMS} streams of the built-in model", f"{cost:.1f} us (at {rate:.0f} tokens/s)")


def cpu(report: Report) -> None:
    """What a relayed token costs the gateway's process: paced one by one, and as fast as it goes."""
    uvloop.run(_cpu(report))


# Memory.

_LONG = "1h"
_PATIENT: dict[str, Any] = {
    "load_balancer": {"timeout": _LONG},
    "gateway": {"ping_interval": _LONG},
    "orchestrator": {"queue_limit": 10_000, "queue_timeout": _LONG, "min_nodes": 0},
}


async def _idle_kib(running: Daemon, count: int, request: bytes, sign: bytes, *, queued: bool = False) -> float:
    """Private memory of the daemon for each of `count` idle clients, in KiB; the kernel's buffers are not in it."""
    few = count // 100  # who make what only the first ones need; many would leave memory for the others
    async with idle_clients(running.gateway, few, request, sign):
        await _queue(running, few if queued else 0)
    await _queue(running, 0)
    before = await settled_uss(running.process)
    async with idle_clients(running.gateway, count, request, sign):
        await _queue(running, count if queued else 0)
        grown = await settled_uss(running.process) - before
    await _queue(running, 0)
    return grown / count / 1024


async def _queue(running: Daemon, length: int) -> None:
    """Returns once so many requests wait for a slot."""
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(running.ask, "status"))["queued"] != length:
            await asyncio.sleep(0.1)


async def _idle(report: Report, *, count: int = 1000) -> None:
    with daemon(BUILT_IN) as running:
        report.add("idle daemon, resident", f"{running.process.memory_info().rss / 2**20:.0f} MiB", "<= 130 MiB")
        await _ask(running.gateway, _endless(16), 1, 1)
        report.add("the same after its first request", f"{running.process.memory_info().rss / 2**20:.0f} MiB")
        each = await _idle_kib(running, count, EVENTS, b" 101 ")
        report.add(f"each of {count} WebSocket clients of /ws/events", f"{each:.1f} KiB", "<= 40 KiB")
    silent = chat_request(Workload(model=SOURCE, max_tokens=Span(1000, 1000), extra={"pace_ms": 3_600_000}))
    with _source(count + STREAMS, **_PATIENT) as (running, _):
        each = await _idle_kib(running, count, silent, b" word")
        report.add(f"each of {count} clients of silent streams", f"{each:.1f} KiB", "<= 40 KiB")
    with _source(1, **_PATIENT) as (running, _):
        async with idle_clients(running.gateway, 1, silent, b" word"):  # has the only slot
            each = await _idle_kib(running, count, silent, b"", queued=True)
        report.add(f"each of {count} clients of streams that wait for a slot", f"{each:.1f} KiB", "<= 40 KiB")


def idle(report: Report) -> None:
    """What clients cost that only listen, and what the daemon takes that only waits."""
    allow_connections()
    uvloop.run(_idle(report))


async def _leak(report: Report, *, warm: int = 500, requests: int = 10_000) -> None:
    # With the configuration's defaults streams that ended are kept for a while: memory that grows to a bound.
    for what, sections in (("", {}), (", no stream kept for resuming", {"gateway": {"resume_window": "0s"}})):
        with _source(2 * STREAMS, **sections) as (running, _):
            workloads = [Workload(model=SOURCE, max_tokens=Span(1, 4), streams=streams) for streams in (True, False)]
            for workload in workloads:
                await _ask(running.gateway, workload, warm // 2, STREAMS)
            before = running.process.memory_info().rss
            for workload in workloads:
                await _ask(running.gateway, workload, requests // 2, STREAMS)
            after = running.process.memory_info().rss
        figures = f"{before / 2**20:.1f} to {after / 2**20:.1f} MiB"
        name = f"RSS of the daemon after {requests} requests{what}"
        report.add(name, f"{after / before - 1:+.2%} ({figures})", "<= 3 %")


def leak(report: Report) -> None:
    """What ten thousand requests leave in the daemon, half of them streams."""
    uvloop.run(_leak(report))


PARTS = {
    "gateway-first": first,
    "gateway-tokens": tokens,
    "gateway-cpu": cpu,
    "gateway-idle": idle,
    "gateway-leak": leak,
}
