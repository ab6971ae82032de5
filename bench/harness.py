"""What the benchmarks share: interleaved rounds, models made once, a bridge in a process of its own, and a report.

Machines are shared and noisy: two things are compared within one run, in turns (A B A B …), and the ratio is the median
of the rounds' ratios.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import ending, make_model

MODELS = Path(tempfile.gettempdir()) / "llambo-bench"
LLAMBOCTL = (sys.executable, "-c", "import llambo.cli.llamboctl as m; m.main()")
"""The command, with this interpreter; its arguments follow."""


@dataclass
class Report:
    """Rows of (what, figure, wanted) as they are measured; printed at once."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str, wanted: str = "") -> None:
        """Keeps and prints one figure."""
        self.rows.append((what, figure, wanted))
        sys.stdout.write(f"{what}: {figure}{f'  (wanted {wanted})' if wanted else ''}\n")
        sys.stdout.flush()

    def markdown(self) -> str:
        """All rows as a table."""
        lines = ["| what | measured | wanted |", "| --- | --- | --- |"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in self.rows])


def model(preset: str, *, walk: bool = False) -> Path:
    """The benchmark model of that preset, made on first use."""
    path = MODELS / f"{preset}{'-walk' if walk else ''}.gguf"
    if not path.exists():
        MODELS.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        try:
            make_model.write(part, make_model.PRESETS[preset], walk=walk).replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def bridge_process(*arguments: str) -> Iterator[tuple[str, int]]:
    """A bridge with a home and a socket of its own; gives the socket's path and the process id."""
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        socket = f"{directory}/b.sock"
        command = [sys.executable, "-m", "llambo.cli.bridge", "--socket-path", socket, *arguments]
        environment = {**os.environ, "LLAMBO_HOME": directory}
        with ending.process(command, stdout=subprocess.PIPE, env=environment) as bridge:
            assert bridge.stdout is not None
            if not bridge.stdout.readline():
                raise SystemExit("the bridge did not start")
            yield socket, bridge.pid


async def interleave(
    first: Callable[[], Awaitable[float]], second: Callable[[], Awaitable[float]], rounds: int
) -> tuple[float, float, float]:
    """Runs both in turns and returns their median rates and the median of the rounds' ratios second/first."""
    await first()  # both warm
    await second()
    pairs = [(await first(), await second()) for _ in range(rounds)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
