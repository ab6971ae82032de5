"""The directory `nodes`: one directory per node, with its control and one datum per file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from llambo.cluster import survey
from llambo.cluster.control import NodeInfo
from llambo.core.errors import NotFound
from llambo.namespace import ctls, render
from llambo.namespace.ctl_file import CtlFile, Refusals, refused
from llambo.namespace.grammar import Call
from llambo.namespace.house import House
from llambo.ninep.files import LiveDirectory, StaticDirectory, TextFile
from llambo.ninep.streams import StreamFile
from llambo.ninep.tree import Directory, Node

_LOOK_S = 0.2  # between two looks at a log that is followed
_PIECE_BYTES = 64 << 10


class NodesDirectory(LiveDirectory):
    """`nodes`; with `may_control` its nodes have a ctl, and removing one drains it."""

    def __init__(self, house: House, refusals: Refusals, *, may_control: bool) -> None:
        def make(node_id: str) -> Node:
            return NodeDirectory(house, node_id, refusals, may_control=may_control)

        super().__init__("nodes", house.look.node_ids, make, perm=0o777 if may_control else 0o555)


class NodeDirectory(Directory):
    """`nodes/ID`; its files are made when one of them is wanted, since there may be ten thousand nodes."""

    def __init__(self, house: House, node_id: str, refusals: Refusals, *, may_control: bool) -> None:
        super().__init__(node_id, 0o777 if may_control else 0o555)
        self._house = house
        self._refusals = refusals
        self._may_control = may_control
        self._made: StaticDirectory | None = None

    def lookup(self, name: str) -> Node:
        """The file of that name. Raises: `NotFound`."""
        return self._files().lookup(name)

    def entries(self) -> list[Node]:
        """Its files."""
        return list(self._files().entries())

    async def remove(self) -> None:
        """Drains the node. Raises: `Refused`, `NotFound`."""
        if not self._may_control:
            raise refused()
        await self._house.control.drain(self.name)

    def _files(self) -> StaticDirectory:
        if self._made is None:
            files: list[Node] = [
                TextFile("status", self._status),
                self._text("load", lambda node: f"{node.busy / node.slots if node.slots else 0:.3f}\n"),
                self._text("model", lambda node: f"{node.model}\n"),
                self._text("metrics", render.node_metrics),
                StreamFile("log", self._log),
            ]
            if self._may_control:
                files.insert(0, CtlFile(ctls.NODE, self._perform, self._refusals))
            self._made = StaticDirectory(self.name, files)
        return self._made

    def _info(self) -> NodeInfo:
        try:
            return self._house.look.node_info(self.name)
        except KeyError:
            raise NotFound from None

    def _text(self, name: str, text: Callable[[NodeInfo], str]) -> TextFile:
        return TextFile(name, lambda: text(self._info()))

    async def _status(self) -> str:
        node = self._info()
        memory = await asyncio.to_thread(survey.memory_of, [node.pid] if node.pid else [])
        resident, unshared = memory.get(node.pid, (0, 0))
        return render.node_status(replace(node, rss_bytes=resident, uss_bytes=unshared))

    def _log(self) -> AsyncIterator[bytes]:
        path = self._info().log
        if not path:
            raise NotFound(f"node {self.name} has no log here: it is not a process of this machine")
        return follow(Path(path), lambda: self.name in self._house.look.node_ids())

    async def _perform(self, call: Call) -> None:
        control, node_id = self._house.control, self.name
        match call.command:
            case "drain":
                await control.drain(node_id)
            case "kill" | "free":
                await control.kill(node_id)
            case "restart":
                await control.restart(node_id)
            case "load":
                # The new one first: what cannot be loaded is refused before anything is stopped.
                await control.spawn(1, node_type=self._info().type, model=call.text("ref"))
                await control.drain(node_id)
            case command:
                raise AssertionError(f"the grammar let {command} through")


async def follow(path: Path, is_written: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The file from its start, and what is added to it, until nobody writes it any more."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        while True:
            goes_on = is_written()  # asked first: what was written before the end is still to come
            while piece := file.read(_PIECE_BYTES):
                yield piece
            if not goes_on:
                return
            await asyncio.sleep(_LOOK_S)
