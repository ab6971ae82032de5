"""`llamboctl logs`: the daemon's log, or a node's, and what is added to it."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated

import typer

from llambo.cli.daemon_client import look, the_daemon
from llambo.core.errors import NotFound, Unreachable
from llambo.core.harmless import harmless

_LOOK_S = 0.2  # between two looks at a file that is followed


def register(app: typer.Typer) -> None:
    """Adds the command to a command line."""
    app.command()(logs)


def logs(
    node: Annotated[str, typer.Argument(metavar="[ID]", help="A node; default: the daemon's own log.")] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the node (or the daemon) ends.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, metavar="N", help="Only the last N; 0: all.")] = 0,
) -> None:
    """Prints the daemon's log, or a node's."""
    path, pid = _of_node(node) if node else _of_daemon()
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise NotFound(f"there is no log at {path} yet") from None
    with file:
        is_alive = _watch(pid) if follow else None  # before the first line: the process may end meanwhile
        sys.stdout.writelines(map(_shown(), deque(file, maxlen=lines or None)))
        sys.stdout.flush()
        if is_alive is not None:
            _follow(file, path, is_alive)


def _shown() -> Callable[[str], str]:
    """A line as it is shown: in a log stand the words of models and of other machines."""
    return harmless if sys.stdout.isatty() else str


def _of_daemon() -> tuple[Path, int]:
    """The log and the process of the daemon; a log outlives its daemon, which is when it is wanted most."""
    from llambo.cli.daemon import LOG_NAME
    from llambo.core import paths

    try:
        found = the_daemon()
    except Unreachable:
        path = paths.home() / "logs" / LOG_NAME
        if not path.exists():
            raise
        return path, 0
    return Path(found.log), found.pid


def _of_node(node_id: str) -> tuple[Path, int]:
    for node in look()["node_list"]:
        if node["id"] == node_id:
            if not node["log"]:
                raise NotFound(f"node {node_id} has no log here: it is not a process of this machine")
            return Path(node["log"]), node["pid"]
    raise NotFound(f"no node is called {node_id!r}; llamboctl nodes lists them")


def _watch(pid: int) -> Callable[[], bool]:
    """Whether the process that has this number now still runs, each time it is asked."""
    import psutil

    try:
        return psutil.Process(pid).is_running if pid else lambda: False
    except psutil.NoSuchProcess:
        return lambda: False


def _follow(file: IO[str], path: Path, is_alive: Callable[[], bool]) -> None:
    shown = _shown()
    while True:
        was_alive = is_alive()  # asked first: what it wrote before it ended is still to come
        for line in file:
            sys.stdout.write(shown(line))
        sys.stdout.flush()
        if not was_alive:
            return None
        if _is_rotated(file, path):
            with path.open(encoding="utf-8", errors="replace") as newer:
                return _follow(newer, path, is_alive)
        time.sleep(_LOOK_S)


def _is_rotated(file: IO[str], path: Path) -> bool:
    import os

    try:
        return path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
