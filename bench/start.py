"""How long a cold command takes: from exec to the first byte of an answer, and what an import costs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from bench import ending
from bench.harness import Report

ROUNDS = 11


def one_shot(report: Report) -> None:
    """`limbot PROMPT` with nothing running and an empty home, built-in model."""
    times: list[float] = []
    command = [sys.executable, "-c", "import llambo.cli.limbot as m; m.main()", "What is distributed computing?"]
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="llambo-bench-") as home:
            environment = {**os.environ, "LLAMBO_HOME": home}
            began = time.perf_counter()
            with ending.process(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment) as limbot:
                assert limbot.stdout is not None
                limbot.stdout.read(1)
                times.append(time.perf_counter() - began)
                limbot.stdout.read()
                limbot.wait()
    figure = f"{statistics.median(times):.2f} s (slowest of {ROUNDS}: {max(times):.2f} s)"
    report.add("cold one-shot, exec to first token, built-in model", figure, "<= 1.5 s")


def imports(report: Report) -> None:
    """What an interpreter spends on the modules of the command line, beyond its own start."""
    for module in ("llambo.cli", "llambo.cli.limbot", "llambo.cli.llamboctl"):
        with_module, without = (
            statistics.median(_seconds(code) for _ in range(ROUNDS)) for code in (f"import {module}", "pass")
        )
        wanted = "<= 150 ms" if module == "llambo.cli" else ""
        report.add(f"import of {module}", f"{(with_module - without) * 1e3:.0f} ms", wanted)


def _seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


PARTS = {"one-shot": one_shot, "imports": imports}
