"""The whole cluster: many nodes, failover, warm conversations, and the door against a node's own server.

python -m bench.cluster [hundred] [thousand] [failover] [chats] [door]
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench.chats import chats
from bench.harness import MODELS, Report, interleave, model, percentile
from llambo.cluster.api import Cluster
from llambo.cluster.failover import Attempt, StreamEnd
from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import open_upstream
from llambo.core import config
from llambo.core.types import Done, GenerateRequest, LoadOptions, Message, Sampling, TokenEvent
from llambo.engine import gguf, llama

QUESTION = "What is distributed computing?"


@asynccontextmanager
async def _cluster(**sections: Any) -> AsyncIterator[Cluster]:
    """A cluster with a home of its own."""
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as home:
        os.environ["LLAMBO_HOME"] = home
        async with Cluster(config.Settings.model_validate(sections)) as cluster:
            yield cluster


async def _answer(cluster: Cluster, request: GenerateRequest) -> tuple[str, Done]:
    text = ""
    async for event in cluster.generate(request):
        if isinstance(event, Done):
            return text, event
        assert isinstance(event, TokenEvent)
        text += event.text
    raise AssertionError


def _tiny_question(tokens: int = 4) -> GenerateRequest:
    return GenerateRequest.from_prompt(QUESTION, sampling=Sampling(max_tokens=tokens, temperature=0))


async def _many(report: Report, count: int, ready_s: float) -> None:
    """`count` tiny nodes of the built-in model: ready, every one answering, ended."""
    async with _cluster() as cluster:
        await cluster.spawn(1, node_type="tiny")
        slowest = 0.0

        async def look() -> None:
            nonlocal slowest
            while True:
                started = time.perf_counter()
                await asyncio.sleep(0.01)
                cluster.cluster_status()
                slowest = max(slowest, time.perf_counter() - started - 0.01)

        looking = asyncio.create_task(look())
        started = time.perf_counter()
        await cluster.spawn(count - 1, node_type="tiny")
        report.add(f"{count} tiny nodes ready", f"{time.perf_counter() - started:.2f} s", f"<= {ready_s:g} s")
        cluster.set_strategy("round-robin")
        turns = asyncio.Semaphore(100)

        async def ask() -> str:
            async with turns:
                return (await _answer(cluster, _tiny_question()))[1].node

        answered = Counter(await asyncio.gather(*(ask() for _ in range(count))))
        looking.cancel()
        report.add(f"of {count} nodes have answered, 100 requests at a time", str(len(answered)), str(count))
        report.add("slowest look at the status meanwhile", f"{slowest * 1e3:.0f} ms", "<= 200 ms")
        nodes = await cluster.nodes()
        unshared = [node.uss_bytes / 2**20 for node in nodes]
        threads = psutil.Process(nodes[0].pid).num_threads()
        report.add(
            "private memory of a node (median, most; threads)",
            f"{statistics.median(unshared):.1f} MiB, {max(unshared):.1f} MiB; {threads}",
            "<= 12 MiB",
        )
        started = time.perf_counter()
        await cluster.close()
        report.add(f"{count} nodes ended", f"{time.perf_counter() - started:.2f} s", "<= 5 s")
        left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        sockets = list(Path(os.environ["LLAMBO_HOME"]).rglob("*.sock"))
        report.add("processes and sockets left", f"{len(left)} and {len(sockets)}", "0 and 0")


def hundred(report: Report) -> None:
    """A hundred tiny nodes, in the event loop that the daemon has."""
    uvloop.run(_many(report, 100, 5))


def thousand(report: Report) -> None:
    """A thousand tiny nodes, in the event loop that the daemon has."""
    uvloop.run(_many(report, 1000, 90))


SCHEMA = (
    '{"type":"object","properties":{"title":{"type":"string","minLength":20,"maxLength":60},'
    '"words":{"type":"array","items":{"type":"string","maxLength":20},"minItems":3,"maxItems":6}},'
    '"required":["title","words"],"additionalProperties":false}'
)


async def _trial(cluster: Cluster, request: GenerateRequest, kill_at: int) -> tuple[bool, float, int]:
    """Kills the node that answers after `kill_at` tokens: whether the text is the same, the pause, the failovers."""
    whole, _ = await _answer(cluster, request)
    text, count, pause = "", 0, 0.0
    killed = 0.0
    async with aclosing(cluster.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                return text == whole, pause, event.failovers
            assert isinstance(event, TokenEvent)
            text += event.text
            count += 1
            if killed and not pause:
                pause = time.perf_counter() - killed
            if count == kill_at:
                busy = next(node for node in cluster._world.nodes.values() if node.busy)
                place = cluster._runtime.place_of(busy.id)
                assert place is not None
                os.kill(place.handle.pid, signal.SIGKILL)
                killed = time.perf_counter()
    raise AssertionError


async def _failovers(report: Report) -> None:
    chance = random.Random(7)
    kinds: list[tuple[str, int, dict[str, Any], Sampling]] = [
        ("greedy (continue)", 50, {}, Sampling(max_tokens=200, temperature=0)),
        ("seeded (replay)", 20, {}, Sampling(max_tokens=200, temperature=0.8, seed=11)),
        ("JSON schema (replay)", 20, {"json_schema": SCHEMA}, Sampling(max_tokens=200, seed=5)),
    ]
    async with _cluster() as cluster:
        await cluster.spawn(3, node_type="medium")
        for name, trials, bounds, sampling in kinds:
            same, pauses, failovers = 0, [], 0
            # An answer that was whole before its node died tells nothing: such a trial does not count.
            for number in range(20 * trials):
                if failovers == trials:
                    break
                question = f"{QUESTION} Say it in {number + 2} words, and then explain llama.cpp."
                seeded = Sampling(
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    seed=None if sampling.seed is None else sampling.seed + number,
                )
                request = GenerateRequest(messages=(Message("user", question),), sampling=seeded, **bounds)
                is_same, pause, count = await _trial(cluster, request, chance.randint(1, 12))
                if count:
                    same += is_same
                    failovers += 1
                    pauses.append(pause)
                while cluster.cluster_status().nodes.ready < 3:
                    for info in await cluster.nodes():
                        if info.state == "dead":
                            await cluster.restart(info.id)
                    await asyncio.sleep(0.02)
            report.add(f"{name}: texts the same after kill -9", f"{same} of {failovers}", f"{trials} of {trials}")
            report.add(
                f"{name}: kill to the next token, median and slowest",
                f"{statistics.median(pauses) * 1e3:.0f} ms, {max(pauses) * 1e3:.0f} ms",
                "<= 1 s",
            )


def failover(report: Report) -> None:
    """Nodes killed in the middle of answers."""
    asyncio.run(_failovers(report))


async def _compare_door(report: Report, name: str, path: Path, tokens: int, rounds: int) -> None:
    streams = 8
    threads = llama.threads_for(gguf.read(path).tensor_bytes)
    options = LoadOptions(ctx=1024, slots=streams, threads=threads)
    attempt = Attempt(QUESTION, sampling=Sampling(max_tokens=tokens, temperature=0))
    launcher = LocalLauncher(MODELS / "run")
    handle = await launcher.spawn(NodeRequest("native", str(path), options), timeout_s=120)
    upstream = open_upstream(handle)

    async def native() -> int:
        async with aclosing(upstream.stream(attempt)) as events:
            async for event in events:
                if isinstance(event, StreamEnd):
                    return event.tokens
        raise AssertionError

    try:
        async with _cluster() as cluster:
            await cluster.load(str(path), options=options)
            request = GenerateRequest(raw_prompt=QUESTION, sampling=Sampling(max_tokens=tokens, temperature=0))

            async def door() -> int:
                return (await _answer(cluster, request))[1].tokens

            async def rate(ask: Callable[[], Awaitable[int]]) -> float:
                started = time.perf_counter()
                return sum(await asyncio.gather(*(ask() for _ in range(streams)))) / (time.perf_counter() - started)

            one, other, ratio = await interleave(lambda: rate(native), lambda: rate(door), rounds)
            figure = f"{ratio:.3f} of native ({other:.0f} of {one:.0f} tokens/s)"
            report.add(f"{name}, {streams} streams through the cluster's door", figure, ">= 0.97")
            alone = [(await _answer(cluster, request))[1].ttft_ms for _ in range(50)]
            report.add(f"{name}, time to first token through the door, p50", f"{percentile(alone, 0.5):.1f} ms")
    finally:
        await launcher.close()
        await upstream.close()


def door(report: Report) -> None:
    """The door against the node's own server, the same client code in the same process."""
    asyncio.run(_compare_door(report, "125M Q8_0", model("small"), 64, 7))
    built_in = Path(__file__).parent.parent / "src/llambo/data/built-in.gguf"
    asyncio.run(_compare_door(report, "built-in", built_in, 400, 9))


PARTS = {"hundred": hundred, "thousand": thousand, "failover": failover, "chats": chats, "door": door}
