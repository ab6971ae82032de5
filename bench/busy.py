"""The daemon while a thousand nodes answer a hundred requests at a time: how long a look at its status takes.

The daemon, the requests and whoever looks are processes of their own, as for its users: whether the nodes leave the
daemon its share of the processor is a part of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import ending
from bench.harness import LLAMBOCTL, Report, percentile
from llambo.ninep.blocking import Client

NODES, STREAMS, REQUESTS, TOKENS, ROUNDS = 1000, 100, 1000, 24, 3
BETWEEN_LOOKS_S = 0.02


@contextmanager
def _daemon(home: Path) -> Iterator[dict[str, str]]:
    """A daemon with `NODES` tiny nodes that take turns; gives the environment that finds it."""
    environment = os.environ | {"LLAMBO_HOME": str(home), "LLAMBO_GATEWAY_LISTEN": f"unix!{home}/gateway.sock"}

    def control(*arguments: str) -> None:
        subprocess.run([*LLAMBOCTL, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    try:
        with ending.whole():
            control("init")
        control("spawn", "--count", str(NODES - 1), "--type", "tiny")
        control("balancer", "--strategy", "round-robin")
        yield environment
    finally:
        with ending.whole():
            control("shutdown")


def _looks(client: Client, loading: subprocess.Popen[bytes]) -> list[float]:
    """Milliseconds that each look took while the load ran."""
    took_ms = []
    while loading.poll() is None:
        started = time.perf_counter()
        client.read_file("status")
        took_ms.append((time.perf_counter() - started) * 1e3)
        time.sleep(BETWEEN_LOOKS_S)
    return took_ms


def busy(report: Report) -> None:
    """The status by 9P, while requests are answered over HTTP; the median of the rounds counts, as of ratios."""
    sizes = ["--streams", str(STREAMS), "--requests", str(REQUESTS), "--max-tokens", str(TOKENS), "--json"]
    rounds: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory, _daemon(Path(directory)) as environment:
        load = [sys.executable, "-m", "bench.load", f"unix://{directory}/gateway.sock", *sizes]
        with Client.connect(f"unix!{directory}/run/styx.sock") as client:
            client.read_file("status")
            for _ in range(ROUNDS):
                with ending.process(load, stdout=subprocess.PIPE, env=environment) as loading:
                    rounds.append(_looks(client, loading))
                    assert loading.stdout is not None
                    told = json.loads(loading.stdout.read())
                    if told["failed"]:
                        raise SystemExit(f"{told['failed']} requests failed: {told}")
    for name, share in (("median", 0.5), ("p99", 0.99), ("slowest", 1.0)):
        each = [percentile(took_ms, share) for took_ms in rounds]
        figure = f"{statistics.median(each):.0f} ms (in {ROUNDS} rounds: {', '.join(f'{one:.0f}' for one in each)})"
        what = f"look at the status of {NODES} nodes, {STREAMS} requests at a time, {name}"
        report.add(what, figure, "<= 200 ms" if share == 1 else "")


PARTS = {"busy": busy}
