"""The chat: how soon a key is shown while an answer comes, how soon the first token, what a full store costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import statistics
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import uvloop

from bench import ending
from bench.harness import Report, model, percentile
from llambo.cluster.api import Cluster
from llambo.core.fusion import FusionRequest
from llambo.core.types import Done, Event, GenerateRequest, ModelInfo, Sampling
from llambo.limbot.chat import Chat
from llambo.limbot.connection import Served
from llambo.limbot.records import Turn
from llambo.limbot.screen import PipeScreen
from llambo.limbot.shelf import Shelf
from llambo.limbot.store import Store

COMMAND = [sys.executable, "-c", "import llambo.cli.limbot as m; m.main()"]
TURNS, SESSIONS = 10_000, 500
KEYS, ROUNDS = 60, 31
PROMPT = b"0m>"


class _Screen:
    """The other end of a terminal: what came since it was asked last."""

    def __init__(self, main: int) -> None:
        self.main = main
        self.all = b""

    def until(self, mark: bytes, start: int = 0, timeout_s: float = 60) -> int:
        """Reads until `mark` stands behind `start`; where it ends."""
        end = time.perf_counter() + timeout_s
        while (place := self.all.find(mark, start)) < 0:
            if not select.select([self.main], [], [], end - time.perf_counter())[0]:
                raise SystemExit(f"{mark!r} did not come: {self.all[-300:]!r}")
            self.all += os.read(self.main, 65536)
        return place + len(mark)

    def drain(self, seconds: float) -> None:
        """Reads what comes meanwhile."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if select.select([self.main], [], [], left)[0]:
                self.all += os.read(self.main, 65536)


@contextlib.contextmanager
def _limbot(home: str, *arguments: str) -> Iterator[_Screen]:
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (40, 100))
    environment = {**os.environ, "LLAMBO_HOME": home, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    try:
        with ending.process(
            [*COMMAND, *arguments], stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
        ):
            os.close(other)
            yield _Screen(main)
    finally:
        os.close(main)


def echo(report: Report) -> None:
    """A key pressed while an answer comes, until it is on the terminal."""
    times: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="llambo-bench-") as home,
        _limbot(home, "-m", str(model("tiny", walk=True)), "--temperature", "0") as screen,
    ):
        screen.until(b"Ctrl-D ends")
        screen.until(PROMPT)
        os.write(screen.main, b"go on\r")
        screen.until(b"Ctrl-C stops")
        screen.drain(1.0)  # the first tokens
        for number in range(KEYS):
            key = chr(0x400 + number).encode()  # in no answer, and each but once
            before = len(screen.all)
            started = time.perf_counter()
            os.write(screen.main, key)
            screen.until(key, before)
            times.append(time.perf_counter() - started)
            screen.drain(0.02 + 0.013 * (number % 3))
    figure = f"{statistics.median(times) * 1e3:.1f} ms (95 %: {percentile(times, 0.95) * 1e3:.1f} ms)"
    report.add(f"key to echo while an answer comes, median of {KEYS}", figure, "<= 20 ms")


class _Direct:
    """A connection that is the door of a cluster in this process."""

    def __init__(self, cluster: Cluster, info: ModelInfo) -> None:
        self._cluster = cluster
        self._served = Served("here", info.name, info.ctx)

    async def ready(self, _model: str, _fusion: FusionRequest | None = None) -> Served:
        """Always there."""
        return self._served

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """The door's."""
        async with aclosing(self._cluster.generate(request)) as events:
            async for event in events:
                yield event

    async def tokenize(self, text: str) -> list[int]:
        """The door's."""
        return await self._cluster.tokenize(text)

    async def models(self) -> list[str]:
        """One."""
        return [self._served.model]

    async def lost(self) -> None:
        """Never."""


class _First(PipeScreen):
    """Notes when the first piece of an answer is there."""

    def __init__(self) -> None:
        null = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the program
        super().__init__(sys.stdin, null, null)
        self.first = 0.0

    def answer(self) -> _First:  # it is its own writer
        """Begins anew."""
        self.first = 0.0
        return self

    def feed(self, text: str) -> None:
        """The first of them counts."""
        self.first = self.first or time.perf_counter()

    def close(self) -> None:
        """Nothing."""


@asynccontextmanager
async def _chat() -> AsyncIterator[tuple[Chat, _First, Cluster]]:
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as home:
        async with Cluster() as cluster, Shelf(Path(home) / "limbot.db") as shelf:
            info = await cluster.load("built-in")
            screen = _First()
            chat = Chat(_Direct(cluster, info), shelf, screen, sampling=Sampling(temperature=0.0, max_tokens=8))  # type: ignore[arg-type]
            yield chat, screen, cluster


async def _first_token(report: Report) -> None:
    async with _chat() as (chat, screen, cluster):
        gaps, doors = [], []
        for number in range(ROUNDS):
            question = f"What is a node, number {number}?"
            chat.begin()
            started = time.perf_counter()
            await chat.ask(question)
            with_chat = screen.first - started
            request = GenerateRequest.from_prompt(question + " ", sampling=chat.sampling)
            started = time.perf_counter()
            async with aclosing(cluster.generate(request)) as events:
                await anext(events)
                door = time.perf_counter() - started
            gaps.append(with_chat - door)
            doors.append(door)
        figure = f"{statistics.median(gaps) * 1e3:.1f} ms above {statistics.median(doors) * 1e3:.1f} ms"
        report.add(f"first token of a chat over the door, median of {ROUNDS}", figure, "<= 5 ms above")


async def _reuse(report: Report) -> None:
    async with _chat() as (chat, _, _cluster):
        shares = []
        for number in range(5):
            chat.begin()
            chat.conversation = chat.conversation.with_system(
                f"You are helper {number}. " + "Be exact and brief. " * 20
            )
            chat.sampling = Sampling(temperature=0.0, max_tokens=120)
            await chat.ask("What is a node, and what does it share with other nodes?")
            await chat.ask("And a slot?")
            done: Done | None = chat.last_done
            assert done is not None
            shares.append(done.cached_tokens / done.prompt_tokens)
        report.add("second turn of a chat from the cache, least of 5", f"{min(shares):.0%} of its prompt", ">= 90 %")


def _filled(path: Path) -> None:
    words = ("node", "slot", "bridge", "prefix", "cache", "token", "door", "namespace", "shell", "quorum", "zygote")
    store = Store.open(path)
    sessions = [store.begin() for _ in range(SESSIONS)]
    turns: list[Turn] = []
    for number in range(TURNS):
        said = " ".join(words[(number * k) % len(words)] for k in range(1, 60)) + f" w{number}"
        turns.append(Turn("user" if number % 2 == 0 else "assistant", said, time.time()))
    with store._writing():
        for number, turn in enumerate(turns):
            store._insert(sessions[number * SESSIONS // TURNS], turn, None)
    store.close()


def _started(home: str) -> float:
    started = time.perf_counter()
    with _limbot(home) as screen:
        screen.until(b"Ctrl-D ends")
        screen.until(PROMPT)
        return time.perf_counter() - started


def store(report: Report) -> None:
    """Starting a chat, and searching, with ten thousand turns in the store."""
    with (
        tempfile.TemporaryDirectory(prefix="llambo-bench-") as empty,
        tempfile.TemporaryDirectory(prefix="llambo-bench-") as full,
    ):
        path = Path(full) / "limbot.db"
        _filled(path)
        pairs = [(_started(empty), _started(full)) for _ in range(5)]
        gap = statistics.median(b - a for a, b in pairs)
        base = statistics.median(a for a, _ in pairs)
        figure = f"{gap * 1e3:.0f} ms over {base * 1e3:.0f} ms"
        report.add(f"start of a chat with {TURNS:,} turns stored, over an empty store", figure, "<= 200 ms over")
        opened = Store.open(path)
        slowest = max(
            _median_of_search(opened, words) for words in ("node", "prefix cache", "w9999", "quor vot", "nope")
        )
        report.add(f"search in {TURNS:,} turns, slowest of 5 queries", f"{slowest * 1e3:.1f} ms", "<= 50 ms")
        opened.close()


def _median_of_search(opened: Store, words: str) -> float:
    times: list[float] = []
    for _ in range(9):
        started = time.perf_counter()
        opened.search(words)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def first_token(report: Report) -> None:
    """From a question to its first token, through the chat and straight at the door, in turns."""
    uvloop.run(_first_token(report))


def reuse(report: Report) -> None:
    """How much of the second turn's prompt the engine had in its cache."""
    asyncio.run(_reuse(report))


PARTS = {"chat-echo": echo, "chat-first-token": first_token, "chat-reuse": reuse, "chat-store": store}
