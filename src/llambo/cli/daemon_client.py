"""How a command reaches the daemon of this home, and what commands that wait for nodes draw meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llambo.cli import common
from llambo.core.errors import Unreachable

if TYPE_CHECKING:
    from llambo.cli.running import Running
    from llambo.control.client import ControlClient


def the_daemon() -> Running:
    """The daemon of this home.

    Raises: `Unreachable` saying how to start one.
    """
    from llambo.cli import running

    found = running.find(running.DAEMON)
    if found is None:
        raise Unreachable("no cluster runs for this home; start one with: llamboctl init")
    return found


@contextmanager
def connected() -> Iterator[ControlClient]:
    """A connection to the daemon of this home for the block.

    Raises: `Unreachable`.
    """
    from llambo.control.client import ControlClient

    with ControlClient(the_daemon().control) as client:
        yield client


def model_ref(text: str) -> str:
    """A model as the daemon understands it from its own directory: a path becomes absolute, all else stays."""
    if not text:
        return ""
    from pathlib import Path

    from llambo.core.errors import BadRequest
    from llambo.engine import references

    try:
        parsed = references.parse(text, exists=Path.is_file)
    except BadRequest:  # it may be the name of a model
        return text
    return str(parsed.path) if isinstance(parsed, references.File) else text


@contextmanager
def node_progress(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Draws how many nodes are ready on a terminal, and nothing elsewhere; is told {"ready", "wanted"}."""
    if not common.draws(sys.stderr):
        yield lambda _fields: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=None)
    with bar:
        yield lambda fields: bar.update(task, completed=fields["ready"], total=fields["wanted"])
