"""A door without models, and clients that speak the protocol by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from llambo.bridge.server import BridgeServer
from llambo.bridge.settings import BridgeSettings
from llambo.cluster.door import DoorStatus
from llambo.core.errors import BadModel, NameInUse, NodeLost, NoModel, NoQuorum
from llambo.core.fusion import Fusion, FusionRequest, Vote, VoteCast
from llambo.core.tokens import TokenStore
from llambo.core.types import Counters, Done, Event, GenerateRequest, LoadOptions, ModelInfo, TokenEvent

PATIENCE_S = 10.0


class FakeDoor:
    """Answers with the words of the prompt. Prompts that begin with a verb below behave as it says.

    Asked for fusion, each word is what one voter says, and `fail` that it failed; more than half must agree.

    endless: tokens for ever. hold: one token, then silence until the answer is closed or the model freed.
    wait: a token, then silence until `gate` is set, then the end. fail: a token, then `NodeLost`. crash: a token, then
    an exception that no door may raise.
    """

    def __init__(self) -> None:
        self.models: dict[str, ModelInfo] = {}
        self.requests: list[GenerateRequest] = []
        self.active = 0
        self.most_active = 0
        self.gate = asyncio.Event()
        self.load_gate: asyncio.Event | None = None  # when set to an event, loads wait for it
        self.loads_begun = 0
        self._changed = asyncio.Condition()
        self._freed = asyncio.Event()

    def put(self, name: str = "fake") -> None:
        self.models[name] = ModelInfo(name, f"/models/{name}.gguf", "ready", 512, 4, 0, "n1", 1, not self.models)

    async def load(self, ref: str, *, name: str = "", options: LoadOptions | None = None) -> ModelInfo:
        await self._change(loads=1)
        if self.load_gate is not None:
            await self.load_gate.wait()
        if "bad" in ref:
            raise BadModel(f"{ref} is no GGUF file")
        name = name or Path(ref).stem
        if name in self.models:
            raise NameInUse(f"{name} is taken")
        self.put(name)
        return self.models[name]

    async def free(self, name: str = "") -> None:
        if not self.models:
            raise NoModel("no model is loaded")
        del self.models[name or next(iter(self.models))]
        self._freed.set()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if not self.models:
            raise NoModel("no model is loaded")
        self.requests.append(request)
        await self._change(active=1)
        try:
            prompt = request.raw_prompt or request.messages[-1].content
            verb, *words = prompt.split(" ")
            if request.fusion is not None:
                for event in ballot(request.fusion, prompt.split()):
                    yield event
                    await asyncio.sleep(0)
                return
            match verb:
                case "endless":
                    while True:
                        yield TokenEvent("x" * 1000, (1,))
                        await asyncio.sleep(0)
                case "hold":
                    yield TokenEvent("held", (1,))
                    await self._freed.wait()
                    raise NodeLost("the model was freed")
                case "wait":
                    yield TokenEvent("waited", (1,))
                    await self.gate.wait()
                    words = []
                case "fail":
                    yield TokenEvent("half", (1,))
                    raise NodeLost("the node is gone")
                case "crash":
                    yield TokenEvent("half", (1,))
                    raise RuntimeError("boom")
                case _:
                    words = [verb, *words]
            for number, word in enumerate(words):
                yield TokenEvent(word if number == 0 else f" {word}", (number,), -0.5 if request.logprobs else None)
                await asyncio.sleep(0)
            yield Done("stop", "fake", "n1", len(words), 3, 1, 1.5, 2.5)
        finally:
            self.active -= 1
            await asyncio.shield(self._change())

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        return [ord(character) for character in text]

    async def embed(self, text: str, *, model: str = "") -> list[float]:
        return [0.6, 0.8]

    def status(self) -> DoorStatus:
        return DoorStatus(tuple(self.models.values()), Counters(len(self.requests), 7, 1), 12.5)

    async def until_active(self, count: int) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.active == count), PATIENCE_S)

    async def until_loads_begun(self, count: int) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.loads_begun >= count), PATIENCE_S)

    async def _change(self, active: int = 0, loads: int = 0) -> None:
        async with self._changed:
            self.active += active
            self.most_active = max(self.most_active, self.active)
            self.loads_begun += loads
            self._changed.notify_all()


def ballot(wanted: FusionRequest, words: list[str]) -> Iterator[Event]:
    """A vote in which each word is one voter's answer, and the most frequent one is chosen."""
    casts: list[VoteCast] = []
    said: Counter[str] = Counter()
    for number, word in enumerate(words, 1):
        failure = "the node is gone" if word == "fail" else ""
        vote = Vote(f"n{number}", "fake", word * (not failure), 1, float(not failure), number / 4, -0.5, failure)
        said.update([word] * (not failure))
        casts.append(VoteCast(vote, len(words), said.total(), max(said.values(), default=0) / len(words)))
        yield casts[-1]
    chosen, most = said.most_common(1)[0]
    needed = wanted.min_consensus or len(words) // 2 + 1
    if wanted.strategy == "quorum" and most < needed:
        raise NoQuorum(f"no quorum: {most} of {len(words)} nodes agree, {needed} are needed")
    yield TokenEvent(chosen, (1,))
    votes = tuple(cast.vote for cast in casts)
    outcome = Fusion(wanted.strategy or "majority-vote", most / len(words), len(words), said.total(), 0, votes)
    yield Done("stop", "fake", "n1", 1, 3, 1, 1.5, 2.5, fusion=outcome)


class RawClient:
    """A client made of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, where: Path | int) -> RawClient:
        limit = 1 << 21
        if isinstance(where, int):
            return cls(*await asyncio.open_connection("127.0.0.1", where, limit=limit))
        return cls(*await asyncio.open_unix_connection(str(where), limit=limit))

    def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)

    def send_frame(self, **fields: Any) -> None:
        payload = msgspec.msgpack.encode(fields)
        self.send(len(payload).to_bytes(4, "big") + payload)

    async def line(self) -> dict[str, Any]:
        line = await asyncio.wait_for(self.reader.readline(), PATIENCE_S)
        assert line.endswith(b"\n"), f"the connection ended: {line!r}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def frame(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            length = int.from_bytes(await self.reader.readexactly(4), "big")
            frame: dict[str, Any] = msgspec.msgpack.decode(await self.reader.readexactly(length))
            return frame

    async def ask(self, line: str) -> dict[str, Any]:
        self.send(line + "\n")
        return await self.line()

    async def rest(self) -> list[dict[str, Any]]:
        """Everything until the bridge closes the connection."""
        data = await asyncio.wait_for(self.reader.read(-1), PATIENCE_S)
        return [json.loads(line) for line in data.splitlines()]

    async def hello(self) -> None:
        assert (await self.ask("HELLO 2"))["status"] == "ok"

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Running:
    """A bridge that runs in the test's loop."""

    def __init__(self, server: BridgeServer, door: FakeDoor, path: Path) -> None:
        self.server = server
        self.door = door
        self.path = path
        self._clients: list[RawClient] = []

    @property
    def port(self) -> int:
        return int(self.server.addresses[-1].rpartition("!")[2])

    async def client(self, where: Path | int | None = None) -> RawClient:
        client = await RawClient.open(self.path if where is None else where)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@contextlib.asynccontextmanager
async def running_bridge(
    path: Path,
    *,
    model: str = "fake",
    listen: str = "",
    tokens: TokenStore | None = None,
    settings: BridgeSettings | None = None,
) -> AsyncIterator[Running]:
    door = FakeDoor()
    if model:
        door.put(model)
    server = BridgeServer(door, path, listen=listen, tokens=tokens, settings=settings)
    await server.start()
    running = Running(server, door, path)
    try:
        yield running
    finally:
        await running.close()
        await server.stop(0)
        leftover = asyncio.all_tasks() - {asyncio.current_task()}
        assert not leftover, f"tasks left behind: {leftover}"
        assert door.active == 0


@contextlib.contextmanager
def deaf_bridge(path: Path) -> Iterator[None]:
    """Agrees to the binary protocol, once, and then reads nothing more."""
    gone = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b'{"status":"ok"}\n')
                gone.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            gone.set()
            thread.join(PATIENCE_S)


@contextlib.contextmanager
def bridge_of_another_user() -> Iterator[tuple[str, Callable[[], str]]]:
    """The path of a socket that user 65534 listens on; calling the second ends it and gives what it was told."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(prefix="llambo-test-") as directory:
        Path(directory).chmod(0o777)
        path = f"{directory}/b.sock"
        # Isolated, since the other user may not read where we are.
        arguments = [sys.executable, "-I", "-S", "-c", _ANOTHER_USER, path]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd="/") as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                yield path, process.stdout.readline
            finally:
                process.kill()


_ANOTHER_USER = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
print(connection.recv(1000), flush=True)
"""


@contextlib.contextmanager
def bridge_in_thread(path: Path, **options: Any) -> Iterator[Running]:
    """A bridge with a loop and a thread of its own, for clients that block."""
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        found["stop"] = asyncio.Event()
        found["loop"] = asyncio.get_running_loop()
        async with running_bridge(path, **options) as running:
            found["running"] = running
            ready.set()
            await found["stop"].wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:
            found["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        if "running" in found:
            found["running"].loop = found["loop"]
            yield found["running"]
    finally:
        if "error" not in found:
            found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    if "error" in found:
        raise found["error"]
