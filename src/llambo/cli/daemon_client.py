"""How a command reaches the daemon of this home: through its namespace. And what commands that wait for nodes draw.

Owns which files are read and written for what; what they say is the namespace's business.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llambo.cli import common
from llambo.core.errors import Unreachable

if TYPE_CHECKING:
    from llambo.cli.running import Running
    from llambo.ninep.blocking import Client
    from llambo.ninep.client import AsyncFile

LOOK_TIMEOUT_S = 10.0
"""How long a daemon may take for an answer that needs no node to start or end."""

_Progress = Callable[[int, int], None]


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
def connected() -> Iterator[Client]:
    """A client of this home's namespace for the block; ending it cancels what it has under way.

    Raises: `Unreachable`, `TimedOut`.
    """
    from llambo.ninep.blocking import Client

    with Client.connect(the_daemon().styx, timeout_s=LOOK_TIMEOUT_S) as client:
        yield client


def look(path: str = "status.json") -> Any:
    """The JSON document in a file of the namespace."""
    import msgspec

    return msgspec.json.decode(read(path))


def read(path: str) -> bytes:
    """The text of a file of the namespace."""
    with connected() as client:
        return client.read_file(path)


def command(name: str, *, title: str = "", **values: str | int) -> list[str]:
    """Has the cluster perform a command of `ctl`; returns the lines of its answer once it has taken effect.

    With `title` nodes start meanwhile, which is drawn on a terminal. Raises: what the cluster refuses it with.
    """
    from llambo.namespace import ctls

    line = ctls.CLUSTER[name].line(**values)
    if title and common.draws(sys.stderr):
        return _command_drawn(line, title)
    with connected() as client, client.open("ctl", "rw") as ctl:
        client.timeout_s = None  # nodes may take long to start or to finish
        ctl.write(line)
        return ctl.read_all().decode().splitlines()


def ask_to_stop() -> None:
    """Tells the cluster to stop; that it hangs up before everything is said is what was asked for."""
    with connected() as client, contextlib.suppress(Unreachable), client.open("ctl", "a") as ctl:
        ctl.write("shutdown")


def nodes_named(ids: list[str]) -> list[dict[str, Any]]:
    """Those nodes, in that order, as they are now; their memory is not measured."""
    found = {node["id"]: node for node in look()["node_list"]}
    return [found[node_id] for node_id in ids if node_id in found]


def _command_drawn(line: str, title: str) -> list[str]:
    import asyncio

    from llambo.ninep.client import AsyncClient

    async def perform(progress: _Progress) -> list[str]:
        async with (
            await AsyncClient.connect(the_daemon().styx) as client,
            client.open("events") as events,
            client.open("ctl", "rw") as ctl,
        ):
            following = asyncio.create_task(_follow(events, progress))
            try:
                await ctl.write(line)
                return (await ctl.read_all()).decode().splitlines()
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    with node_progress(title) as progress:
        return asyncio.run(perform(lambda ready, wanted: progress({"ready": ready, "wanted": wanted})))


async def _follow(events: AsyncFile, progress: _Progress) -> None:
    """Tells of the progress that is among the events."""
    async for piece in events.follow():
        for line in piece.decode().splitlines():
            if " progress " in line:
                fields = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
                progress(int(fields["ready"]), int(fields["wanted"]))


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
