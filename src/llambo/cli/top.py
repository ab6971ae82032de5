"""`llamboctl top`: the cluster, live on a terminal, until q or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
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

if TYPE_CHECKING:
    from rich.console import Group

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

    with connected() as client, _single_keys():
        console = Console()
        with Live(console=console, screen=True, auto_refresh=False) as live:
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
        grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
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


@contextmanager
def _single_keys() -> Iterator[None]:
    """The terminal gives each key at once and shows none, for the block."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_quit_within(seconds: float) -> bool:
    """Waits so long for a key; says whether it was q, or the terminal is gone."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and os.read(sys.stdin.fileno(), 64)[:1] in {b"q", b"Q", b"\x04", b""}
