"""A small tree to serve, a raw client that speaks transcripts, and where both meet: a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import typing
from collections.abc import AsyncIterator
from pathlib import Path

from llambo.core.errors import BadRequest, Refused
from llambo.ninep import messages as m
from llambo.ninep.files import CloneFile, ControlFile, StaticDirectory, TextFile
from llambo.ninep.frames import Frames
from llambo.ninep.messages import Message, Qid
from llambo.ninep.server import FileServer, ServerSettings
from llambo.ninep.streams import Broadcast, StreamFile
from llambo.ninep.tree import Handle, Node, Peer
from llambo.ninep.wire import encode

WAIT_S = 20.0


class Gate(Handle):
    """Reads and writes that wait for `open`; what happens to them is noted."""

    def __init__(self, log: list[str], gate: asyncio.Event) -> None:
        self._log = log
        self._gate = gate

    async def read(self, offset: int, count: int) -> bytes:
        self._log.append("read")
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self._log.append("cancelled")
            raise
        return b"through"[:count]

    async def write(self, offset: int, data: bytes) -> None:
        self._log.append(f"write {data.decode(errors='replace')}")
        await self._gate.wait()

    async def close(self) -> None:
        self._log.append("close")


class GateFile(Node):
    """A file whose opening waits too when `waits_at_open`."""

    def __init__(self, name: str, world: World, waits_at_open: bool = False) -> None:
        super().__init__(name, 0o666)
        self._world = world
        self._waits = waits_at_open

    async def open(self, mode: int) -> Handle:
        if self._waits:
            self._world.log.append("open")
            await self._world.gate.wait()
        return Gate(self._world.log, self._world.gate)


class Removable(TextFile):
    """A file that can be removed."""

    def __init__(self, directory: StaticDirectory) -> None:
        super().__init__("removable", lambda: "here\n")
        self._directory = directory

    def remove(self) -> None:
        self._directory.discard(self.name)


class World:
    """The tree, and what happens to it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate = asyncio.Event()
        self.events = Broadcast(capacity=4)
        self.status = "state ready\n"
        self.peers: list[tuple[str, str, Peer]] = []
        self.sessions = StaticDirectory("sessions")
        self.root = StaticDirectory("/")
        for node in (
            TextFile("status", lambda: self.status),
            TextFile("notes", lambda: "", self._note),
            ControlFile("ctl", self._command, lambda: "say TEXT\nwait\n"),
            StreamFile("events", self.events.open),
            StreamFile("count", self._count),
            StreamFile("cut", self._cut),
            GateFile("gate", self),
            GateFile("slow", self, waits_at_open=True),
            CloneFile("clone", self._make, self._hang_up),
            StaticDirectory("many", [TextFile(f"n{number:03}", lambda: "x") for number in range(300)]),
            StaticDirectory("deep", [StaticDirectory("deeper", [TextFile("file", lambda: "deep\n")])]),
            TextFile("secret", lambda: "never", perm=0),
            TextFile("broken", self._break),
            self.sessions,
        ):
            self.root.add(node)
        self.root.add(Removable(self.root))

    def attach(self, uname: str, aname: str, peer: Peer) -> Node:
        self.peers.append((uname, aname, peer))
        match aname:
            case "":
                return self.root
            case "many":
                return self.root.lookup("many")
        raise Refused("permission denied")

    def _note(self, offset: int, data: bytes) -> None:
        self.log.append(f"{offset}:{data.decode(errors='replace')}")

    async def _command(self, line: str) -> None:
        match line.split(maxsplit=1):
            case ["say", text]:
                self.log.append(text)
            case ["wait"]:
                await self.gate.wait()
            case _:
                raise BadRequest(f"no such command: {line}; there are say and wait")

    async def _count(self) -> typing.Any:
        async def pieces() -> AsyncIterator[str]:
            try:
                for word in ("one ", "two ", "", "dr€i"):
                    yield word
            finally:
                self.log.append("stream closed")

        return pieces()

    async def _cut(self) -> typing.Any:
        async def pieces() -> AsyncIterator[str]:
            yield "one "
            raise BadRequest("no more of it")

        return pieces()

    def _make(self) -> Node:
        number = str(len(self.sessions._nodes))
        node = TextFile("ctl", lambda: number + "\n", self._note)
        self.sessions.add(StaticDirectory(number, [node]))
        return node

    def _hang_up(self, node: Node) -> None:
        self.log.append("session closed")
        self.sessions.discard("0")

    def _break(self) -> str:
        raise ZeroDivisionError


@contextlib.asynccontextmanager
async def serving(
    world: World, directory: Path, settings: ServerSettings | None = None, address: str = ""
) -> AsyncIterator[tuple[FileServer, str]]:
    async with FileServer(world.attach, settings) as server:
        yield server, await server.listen(address or f"unix!{directory}/9p")


class Wire:
    """A client of bytes and messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._frames = Frames(m.MAX_MSIZE)

    def send(self, *messages: Message) -> None:
        self.writer.write(b"".join(map(encode, messages)))

    async def receive(self) -> Message:
        async with asyncio.timeout(WAIT_S):
            while (message := self._frames.next_message()) is None:
                data = await self.reader.read(1 << 20)
                if not data:
                    raise EOFError
                self._frames.receive_data(data)
        return message

    async def ask(self, message: Message) -> Message:
        self.send(message)
        return await self.receive()

    async def is_hung_up(self) -> bool:
        try:
            while True:
                await self.receive()
        except (EOFError, ConnectionError):
            return True

    async def hello(self, *names: str, mode: int | None = None, msize: int = 8192) -> None:
        """Agrees on a version, attaches as fid 0, walks to fid 1 and opens it."""
        await self.ask(m.Tversion(m.NOTAG, msize, m.VERSION))
        assert isinstance(await self.ask(m.Tattach(0, 0, m.NOFID, "glenda", "")), m.Rattach)
        if names:
            assert isinstance(await self.ask(m.Twalk(0, 0, 1, names)), m.Rwalk)
        if mode is not None:
            assert isinstance(await self.ask(m.Topen(0, 1, mode)), m.Ropen)

    async def follow(self, transcript: str) -> None:
        """Sends the T lines and compares what comes with the R lines; `T ... \\` sends it together with the next."""
        waiting: list[Message] = []
        for number, line in enumerate(filter(None, map(str.strip, transcript.splitlines()))):
            if line.startswith("T"):
                waiting.append(parse(line.removesuffix("\\")))
                if not line.endswith("\\"):
                    self.send(*waiting)
                    waiting.clear()
            else:
                assert show(await self.receive()) == line, f"line {number}"


@contextlib.asynccontextmanager
async def dialled(address: str) -> AsyncIterator[Wire]:
    kind, *where = address.split("!")
    reader, writer = await (
        asyncio.open_unix_connection(where[0]) if kind == "unix" else asyncio.open_connection(where[0], int(where[1]))
    )
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def parse(line: str) -> Message:
    """`Tname tag fields…`: numbers in decimal, names and data as words, data with Python's escapes."""
    name, *words = line.split()
    kind = getattr(m, name)
    hints = typing.get_type_hints(kind)
    values: list[typing.Any] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if hint is int:
            values.append(int(words.pop(0), 0))
        elif hint is str:
            word = words.pop(0) if words else ""
            values.append("" if word == "''" else word)
        elif hint is bytes:
            values.append(" ".join(words).encode().decode("unicode_escape").encode("latin-1"))
        elif hint is m.Stat:
            changes = dict(word.split("=") for word in words)
            numbers = {key: int(value) for key, value in changes.items() if key in {"length", "mtime", "mode"}}
            values.append(dataclasses.replace(m.UNCHANGED, **{**changes, **numbers}))
        else:
            values.append(tuple(words))
    return typing.cast(Message, kind(*values))


def show(message: Message) -> str:
    """As `parse` reads it; qids as `dir` or `file`, since their paths are the server's business."""
    words = [type(message).__name__]
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Qid):
            words.append("dir" if value.type & m.QTDIR else "file")
        elif isinstance(value, tuple):
            words.extend("dir" if qid.type & m.QTDIR else "file" for qid in value)
        elif isinstance(value, bytes):
            text = repr(value)[2:-1]
            words.append(text[:-1] + r"\x20" if text.endswith(" ") else text)
        elif isinstance(value, m.Stat):
            words.append(f"{value.name} {value.mode:o} {value.length}")
        else:
            words.append(str(value))
    return " ".join(words).rstrip()
