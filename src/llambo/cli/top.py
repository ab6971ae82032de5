"""`llamboctl top`: the cluster, live on a terminal, until q or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli import common
from llambo.cli.daemon_client import connected
from llambo.cli.looks import status_lines
from llambo.cli.nodes import table
from llambo.core.errors import BadRequest
from llambo.core.harmless import harmless

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

_MOST_NODES = 200  # more than fit on any screen; the busiest ones are shown


def register(app: typer.Typer) -> None:
    """Adds the command to a command line."""
    app.command()(top)


def top(
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Time between two looks.")] = 1.0,
) -> None:
    """Shows the cluster live; q ends it."""
    if not common.draws(sys.stdout) or not sys.stdin.isatty():
        raise BadRequest("top needs a terminal; elsewhere use: llamboctl status --json, llamboctl nodes --json")
    if not 0.1 <= interval <= 3600:
        raise BadRequest(f"--interval must be between 0.1 and 3600 seconds, not {interval:g}")
    import msgspec
    from rich.console import Console
    from rich.live import Live

    console = Console()
    live = Live(console=console, screen=True, auto_refresh=False)
    with connected() as client, _single_keys() as keys, _suspending(live, keys), live:
        while True:
            facts = msgspec.json.decode(client.read_file("status.json"))
            nodes = msgspec.json.decode(client.read_file("nodes.json"))
            live.update(_screen(facts, nodes, console.height), refresh=True)
            if _is_quit_within(interval):
                return


def _screen(facts: dict[str, Any], nodes: list[dict[str, Any]], height: int) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = status_lines(facts)
    nodes = sorted(nodes, key=lambda node: (-node["busy"], -node["requests"]))
    room = max(1, min(height - len(lines) - 5, _MOST_NODES))
    heading, *rows = table(nodes[:room])
    grid = Table(*heading, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        # Text, so that nothing in a model's or node's name is taken for markup.
        grid.add_row(*(Text(harmless(cell), style=_STYLES.get(cell, "")) for cell in row))
    more = f"… and {len(nodes) - room} more" if len(nodes) > room else ""
    return Group(*map(Text, lines), Text(), grid, Text(more), Text("q ends", style="dim"))


_STYLES = {
    "ready": "green",
    "busy": "cyan",
    "starting": "yellow",
    "draining": "yellow",
    "suspect": "red",
    "dead": "red",
}


class _Keys:
    """How the terminal gives keys: each at once and shown by nobody, or as it was before."""

    def __init__(self) -> None:
        import termios

        self._before = termios.tcgetattr(sys.stdin)

    def single(self) -> None:
        import tty

        tty.setcbreak(sys.stdin)

    def usual(self) -> None:
        import termios

        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)


@contextmanager
def _single_keys() -> Iterator[_Keys]:
    keys = _Keys()
    try:
        keys.single()
        yield keys
    finally:
        keys.usual()


@contextmanager
def _suspending(live: Live, keys: _Keys) -> Iterator[None]:
    """For the block, Ctrl-Z gives the terminal back as it was, and who continues has the screen and the keys again."""

    def suspend(_number: int, _frame: object) -> None:
        live.stop()
        keys.usual()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # stops here
        signal.signal(signal.SIGTSTP, suspend)

    def resume(_number: int, _frame: object) -> None:
        keys.single()  # a shell gives a job the terminal with the shell's own settings
        live.start(refresh=True)

    signal.signal(signal.SIGTSTP, suspend)
    signal.signal(signal.SIGCONT, resume)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)


def _is_quit_within(seconds: float) -> bool:
    """Waits so long for a key; says whether it was q, or the terminal is gone."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and os.read(sys.stdin.fileno(), 64)[:1] in {b"q", b"Q", b"\x04", b""}
