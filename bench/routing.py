"""Routing: how long one decision takes with ten thousand nodes, what a node costs in memory, and the simulator."""

from __future__ import annotations

import gc
import json
import random
import re
import statistics
import subprocess
import sys
import time
import tracemalloc

from bench.harness import Report, percentile
from llambo.cluster.balancer import STRATEGIES
from llambo.cluster.events import (
    ModelAdded,
    NodeStarted,
    NodeWanted,
    PlaceRequest,
    RequestArrived,
    RequestFinished,
    StartNode,
)
from llambo.cluster.metrics import Metrics, MetricsSnapshot
from llambo.cluster.orchestrator import Orchestrator
from llambo.cluster.prefix import chain, conversation_text
from llambo.cluster.state import Route
from llambo.cluster.world import Policy
from llambo.core.types import LoadOptions

NODES = 10_000
DECISIONS = 20_000
CHATS = 2_000
MODEL = "m"
WORDS = re.findall(
    r"\w+",
    "the of and to in is that for it was on are as with his they at be this from have or by one had not but what all"
    " were when we there can an your which their said if do will each about how up out them then she many some so these"
    " would other into has more her two like him see time could no make than first been its who now people my made over"
    " did down only way find use may water long little very after words called just where most know",
)


def cluster(strategy: str, nodes: int = NODES) -> Orchestrator:
    """An orchestrator whose nodes all serve."""
    orchestrator = Orchestrator(Policy(strategy=strategy), random.Random(1))
    orchestrator.handle(ModelAdded(MODEL, LoadOptions(), "medium"), 0.0)
    for number in range(nodes):
        options = LoadOptions(slots=(2, 4, 8)[number % 3])
        for command in orchestrator.handle(NodeWanted(MODEL, "medium", options), 0.0):
            if isinstance(command, StartNode):
                orchestrator.handle(NodeStarted(command.node, command.epoch, options.slots, 4096), 0.0)
    return orchestrator


def chats(count: int, chance: random.Random) -> list[tuple[str, str]]:
    """Conversations as texts: a system prompt that several share, then turns; (before the answer, after it)."""
    systems = [" ".join(chance.choices(WORDS, k=chance.randint(20, 300))) for _ in range(20)]
    made = []
    for _ in range(count):
        turns = [("system", chance.choice(systems))]
        for turn in range(chance.randint(1, 8)):
            words = chance.choices(WORDS, k=chance.randint(5, 120))
            turns.append(("assistant" if turn % 2 else "user", " ".join(words)))
        made.append((conversation_text(turns), conversation_text([*turns, ("assistant", " ".join(turns[-1][1]))])))
    return made


def decisions(strategy: str) -> list[float]:
    """Processor seconds that each `handle(RequestArrived)` took, with about half of all slots in use."""
    chance = random.Random(2)
    orchestrator = cluster(strategy)
    chains = [(chain(before), chain(after), len(before)) for before, after in chats(CHATS, chance)]
    running: list[tuple[int, tuple[int, ...], int]] = []
    times: list[float] = []
    now = 0.0
    gc.collect()
    gc.disable()  # what Python's collector takes is not the decision's
    try:
        for number in range(NODES * 2 + DECISIONS):
            now += 0.0001
            at = chance.randrange(CHATS)
            before, after, size = chains[at]
            event = RequestArrived(Route(number, MODEL, session=f"s{at}", chain=before, size_chars=size))
            began = time.thread_time()  # not the time that others had the core
            commands = orchestrator.handle(event, now)
            took = time.thread_time() - began
            assert any(isinstance(command, PlaceRequest) for command in commands)
            running.append((number, after, size // 4))
            if number >= NODES * 2:
                times.append(took)
                index = chance.randrange(len(running))
                running[index], running[-1] = running[-1], running[index]
                ended, covered, tokens = running.pop()
                orchestrator.handle(RequestFinished(ended, 100, 2.0, tokens, tokens // 2, covered), now)
    finally:
        gc.enable()
    return times


def measure_decisions(report: Report) -> None:
    """The time of one decision per strategy."""
    for strategy in STRATEGIES:
        times = decisions(strategy)
        report.add(
            f"routing decision, {NODES:,} nodes, {strategy}: p99 (median)",
            f"{percentile(times, 0.99) * 1e6:.1f} us ({statistics.median(times) * 1e6:.1f} us)",
            "<= 50 us",
        )


def measure_state(report: Report) -> None:
    """What the orchestrator keeps per node, its map of prefixes full."""
    texts = chats(CHATS, random.Random(3))
    tracemalloc.start()
    try:
        orchestrator = cluster("prefix-affinity")
        for number in range(20 * CHATS):
            covered = tuple(hash((number, one)) for one in chain(texts[number % CHATS][1]))
            orchestrator.handle(RequestArrived(Route(number, MODEL, session=f"s{number}", chain=covered)), 0.0)
            orchestrator.handle(RequestFinished(number, 100, 2.0, 100, 50, covered), 0.0)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    report.add(f"orchestrator's state per node ({NODES:,} nodes)", f"{used / NODES / 1024:.2f} KiB", "<= 4 KiB")


def measure_request_metrics(report: Report) -> None:
    """What counting one finished request costs; the best of five counts, as nothing else is to be measured."""
    metrics = Metrics(MetricsSnapshot)
    metrics.render()  # Prometheus's library is there from now on
    costs = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(2000):
            metrics.request_ended("bridge", "done", 1.0, ttft_s=0.1, tokens=50, prompt_tokens=100, cached_tokens=50)
        costs.append((time.thread_time() - began) / 2000 * 1e6)
    report.add("metrics of a finished request", f"{min(costs):.1f} us", "<= 20 us")


def measure_simulator(report: Report) -> None:
    """Ten thousand nodes and a million requests, with failures, on one core."""
    command = [sys.executable, "-m", "llambo.cluster.simulate", "--nodes", "10000", "--requests", "1000000"]
    command += ["--deaths-per-min", "60", "--hangs-per-min", "6", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    report.add("simulator, 10,000 nodes, 1 million requests", f"{found['wall_s']:.1f} s", "<= 120 s")
    report.add("simulator: requests lost and doubled", f"{found['lost']} and {found['doubled']}", "0 and 0")
    ratio = found["hit_share"] / found["oracle_share"]
    report.add("simulator: prefix hits over those of one unlimited node", f"{ratio:.3f}")
    report.add("simulator: fairness between sessions (Jain)", f"{found['fairness']:.3f}")


PARTS = {
    "routing": measure_decisions,
    "state": measure_state,
    "request-metrics": measure_request_metrics,
    "simulate": measure_simulator,
}
