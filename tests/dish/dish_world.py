"""A small tree that behaves as a cluster's does, served on a real socket, and a shell over it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

from llambo.core.errors import BadRequest, LlamboError, NotFound
from llambo.dish.command import FIRST_CLUSTER
from llambo.dish.interpreter import Interpreter, new_dish
from llambo.dish.mounts import Mounts
from llambo.dish.pipes import Buffer
from llambo.dish.servers import Server
from llambo.ninep.files import ControlFile, StaticDirectory, TextFile, TextHandle
from llambo.ninep.server import FileServer
from llambo.ninep.streams import Broadcast, StreamFile
from llambo.ninep.tree import Handle, Node, Peer

WAIT_S = 20.0


class _CtlHandle(Handle):
    def __init__(self, world: World) -> None:
        self._world = world
        self._said: bytes | None = None

    def read(self, offset: int, count: int) -> bytes:
        if self._said is None:
            return TextHandle(b"scale N\ndrain ID\n").read(offset, count)  # type: ignore[return-value]
        said, self._said = self._said, b""
        return said

    def write(self, offset: int, data: bytes) -> None:
        line = data.decode().strip()
        self._world.told.append(line)
        if line.startswith("refuse"):
            raise BadRequest("refuse: that is not done here")
        if line.startswith(("scale", "spawn", "checkpoint")):
            self._said = b"n1\nn2\n"


class _Ctl(Node):
    def __init__(self, world: World) -> None:
        super().__init__("ctl", 0o666)
        self._world = world

    def open(self, mode: int) -> Handle:
        return _CtlHandle(self._world)


class _CloneHandle(TextHandle):
    """A session: its settings, its prompt, and an answer that repeats the prompt once `gate` is open."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.name = str(world.sessions_made)
        world.sessions_made += 1
        super().__init__(f"{self.name}\n".encode(), self._set)
        world.settings[self.name] = []
        prompts: list[str] = []
        voted, answered = asyncio.Event(), asyncio.Event()

        def add(offset: int, data: bytes) -> None:
            prompts.append(data.decode())

        async def answer() -> AsyncIterator[str]:
            world.asked.append((self.name, prompts[-1]))
            if world.votes_come == "first":
                await voted.wait()
            if world.refusal is not None:
                raise world.refusal
            yield "you said: "
            await world.gate.wait()
            yield prompts[-1]
            answered.set()

        async def votes() -> AsyncIterator[str]:
            if world.votes_come == "after":
                await answered.wait()
            for vote in world.votes:
                yield vote
            voted.set()

        world.sessions.add(
            StaticDirectory(
                self.name,
                [
                    TextFile("prompt", lambda: "", add),
                    StreamFile("stream", answer),
                    StreamFile("tally", votes),
                    TextFile("status", lambda: "state idle\nnode n1\ntokens 2\n"),
                ],
            )
        )

    def _set(self, offset: int, data: bytes) -> None:
        self._world.settings[self.name].append(data.decode().strip())

    def close(self) -> None:
        self._world.sessions.discard(self.name)


class _Clone(Node):
    def __init__(self, world: World) -> None:
        super().__init__("clone", 0o666)
        self._world = world

    def open(self, mode: int) -> Handle:
        return _CloneHandle(self._world)


class _Removable(StaticDirectory):
    def __init__(self, name: str, world: World) -> None:
        super().__init__(name, [TextFile("model", lambda: f"model of {name}\n")], perm=0o777)
        self._world = world

    def remove(self) -> None:
        self._world.told.append(f"removed {self.name}")
        self._world.nodes.discard(self.name)


class World:
    """The tree, what it was told, and the shell."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.anames: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.settings: dict[str, list[str]] = {}
        self.sessions_made = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.votes: list[str] = []
        self.votes_come: Literal["after", "first", "at once"] = "after"  # before it, or as soon as each is asked for
        self.refusal: LlamboError | None = None
        self.events = Broadcast()
        self.sessions = StaticDirectory("sessions")
        self.nodes = StaticDirectory("nodes", [_Removable("n1", self), _Removable("n2", self)])
        self.lines = "".join(f"line {number}\n" for number in range(1, 21))
        facts = [{"id": "n1", "type": "tiny", "state": "ready", "model": "m", "busy": 1, "slots": 4, "pid": 7}]
        self.root = StaticDirectory(
            "/",
            [
                _Ctl(self),
                _Clone(self),
                self.sessions,
                self.nodes,
                StaticDirectory("models", [StaticDirectory("built-in")]),
                TextFile("status", lambda: f"state ready\nnodes {len(list(self.nodes.entries()))}\nslots 4\nbusy 1\n"),
                TextFile("nodes.json", lambda: json.dumps(facts)),
                TextFile("metrics", lambda: "llambo_nodes 2\n"),
                TextFile("lines", lambda: self.lines),
                TextFile("notes", lambda: "", lambda offset, data: self.notes.append(data.decode())),
                StreamFile("events", self.events.open),
                ControlFile("broken", self._break, lambda: self._break("")),
            ],
        )
        self.address = ""
        self.out = Buffer()
        self.complaints: list[str] = []
        self.mounts = Mounts()
        self.dish = new_dish(self.mounts)
        self.interpreter = Interpreter(self.dish, self.out, self.complaints.append)

    def attach(self, uname: str, aname: str, peer: Peer) -> Node:
        self.anames.append(aname)
        return self.nodes if aname == "nodes" else self.root

    def _break(self, line: str) -> str:
        raise NotFound("the engine is gone: look at its log")

    async def run(self, line: str) -> str:
        """What a line shows that has to succeed."""
        assert await self.try_line(line) == (0, []), self.complaints
        return self.shown()

    async def try_line(self, line: str) -> tuple[int, list[str]]:
        """The status of a line, and what was complained of."""
        self.complaints.clear()
        async with asyncio.timeout(WAIT_S):
            return await self.interpreter.line(line), list(self.complaints)

    def shown(self) -> str:
        return self.out.take().decode()


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[World]:
    world = World()
    async with FileServer(world.attach) as server:
        world.address = await server.listen(f"unix!{directory}/s")
        cluster = Server(world.address)
        world.mounts.mount(cluster, FIRST_CLUSTER, str(cluster))
        try:
            yield world
        finally:
            await world.interpreter.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)
