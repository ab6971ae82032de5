"""Fusion: what a vote costs over the slowest of its voters, and what writing a text together costs over writing alone.

The plain requests beside it are the very same ones, each to the same nodes, without anybody who compares them.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from dataclasses import replace

from bench.harness import Report, interleave, percentile
from llambo.cluster.api import Cluster
from llambo.core.fusion import FusionRequest
from llambo.core.types import Done, GenerateRequest, Sampling

QUESTION = "What is distributed computing?"
NODES, TOKENS, ROUNDS, VOTES = 3, 48, 15, 40
ALONE = GenerateRequest.from_prompt(QUESTION, sampling=Sampling(max_tokens=TOKENS, temperature=0))
TOLD = replace(ALONE, logprobs=True)
ALL = replace(ALONE, fusion=FusionRequest("quorum", NODES, NODES))  # so that the slowest is waited for
TOGETHER = replace(ALONE, fusion=FusionRequest("token-average", NODES))


async def _ask(cluster: Cluster, request: GenerateRequest) -> Done:
    async for event in cluster.generate(request):
        if isinstance(event, Done):
            return event
    raise AssertionError


async def _rate(cluster: Cluster, request: GenerateRequest, at_once: int = 1) -> float:
    """Rounds of so many requests at once that are answered in a second."""
    started = time.perf_counter()
    await asyncio.gather(*(_ask(cluster, request) for _ in range(at_once)))
    return 1 / (time.perf_counter() - started)


async def _fusion(report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as home:
        os.environ["LLAMBO_HOME"] = home
        async with Cluster() as cluster:
            await cluster.spawn(NODES, node_type="tiny")
            bare, told, ratio = await interleave(
                lambda: _rate(cluster, ALONE, NODES), lambda: _rate(cluster, TOLD, NODES), ROUNDS
            )
            report.add(
                f"{NODES} requests at once with log-probabilities, as voters are asked, over without",
                f"{1 / ratio:.3f} of the time ({1e3 / told:.1f} of {1e3 / bare:.1f} ms)",
            )
            apart, fused, ratio = await interleave(
                lambda: _rate(cluster, TOLD, NODES), lambda: _rate(cluster, ALL), ROUNDS
            )
            report.add(
                f"a vote of {NODES} nodes over the same requests at once",
                f"{1 / ratio:.3f} of the time ({1e3 / fused:.1f} of {1e3 / apart:.1f} ms)",
                "<= 1.10",
            )
            over: list[float] = []
            for _ in range(VOTES):
                done = await _ask(cluster, ALL)
                assert done.fusion is not None
                over.append(done.time_ms - max(vote.time_ms for vote in done.fusion.votes))
            report.add(
                "from the slowest voter's end to the answer's, p50 and p95",
                f"{statistics.median(over):.2f} ms, {percentile(over, 0.95):.2f} ms",
                "<= 5 ms",
            )
            alone, together, ratio = await interleave(
                lambda: _rate(cluster, ALONE), lambda: _rate(cluster, TOGETHER), ROUNDS
            )
            report.add(
                f"{NODES} nodes writing {TOKENS} tokens together, over one alone",
                f"{1 / ratio:.1f} times as long ({1e3 / together:.0f} of {1e3 / alone:.0f} ms)",
            )


def fusion(report: Report) -> None:
    """Votes, and a text written together, on tiny nodes with the built-in model."""
    asyncio.run(_fusion(report))


PARTS = {"fusion": fusion}
