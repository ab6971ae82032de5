"""Questions to the model: `infer` asks one by itself, `fusion` asks several nodes, `ask` goes on with a conversation.

A conversation is a session of the tree that lives as long as its `clone` is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from llambo.core.errors import BadRequest, LlamboError, NotFound, Unreachable
from llambo.core.fusion import ALIASES, STRATEGIES
from llambo.dish.command import SETTINGS, Command, Context
from llambo.dish.grammar import quote
from llambo.dish.mounts import Mounts
from llambo.dish.pipes import Sink, read_all
from llambo.dish.servers import File
from llambo.dish.terminal import Terminal

_STRATEGIES = (*STRATEGIES, *ALIASES)
_FIELD = re.compile(r"([a-z_]+)=(?:('(?:[^']|'')*')|(\S*))")
_OF_FUSION = ("min_consensus", "extract")
"""Options of `fusion` beside `SETTINGS`."""


class Conversations:
    """The conversation of this shell with each cluster."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._by_cluster: dict[str, _Session] = {}

    def number_of(self, cluster: str) -> str:
        """The session's number, "" before the first question."""
        session = self._by_cluster.get(cluster)
        return session.number if session is not None else ""

    async def ask(self, cluster: str, prompt: str, settings: Mapping[str, str], out: Sink) -> None:
        """Asks, and streams the answer to `out`. Settings stay for what is asked later in the conversation."""
        session = self._by_cluster.get(cluster)
        if session is None:
            session = self._by_cluster[cluster] = await _Session.begin(self._mounts, cluster)
        try:
            await session.ask(prompt, settings, out)
        except (NotFound, Unreachable):  # somebody hung up: the next question begins anew
            await self.end(cluster)
            raise

    async def end(self, cluster: str) -> None:
        """Forgets the conversation with a cluster."""
        session = self._by_cluster.pop(cluster, None)
        if session is not None:
            await session.hang_up()

    async def close(self) -> None:
        """Ends all of them."""
        for cluster in list(self._by_cluster):
            await self.end(cluster)


class _Session:
    """One session, held by its open `clone`."""

    def __init__(self, mounts: Mounts, cluster: str, held: AsyncExitStack, ctl: File, number: str) -> None:
        self._mounts = mounts
        self._directory = f"{cluster}/sessions/{number}"
        self._held = held
        self._ctl = ctl
        self._settings: dict[str, str] = {}
        self.number = number

    @classmethod
    async def begin(cls, mounts: Mounts, cluster: str) -> _Session:
        async with AsyncExitStack() as held:
            ctl = await held.enter_async_context(mounts.open(f"{cluster}/clone", "rw"))
            number = (await ctl.read(offset=0)).decode("utf-8", "replace").strip()
            return cls(mounts, cluster, held.pop_all(), ctl, number)

    async def ask(self, prompt: str, settings: Mapping[str, str], out: Sink) -> None:
        await self._say(prompt, settings)
        async with self._mounts.open(f"{self._directory}/stream") as stream:
            await _show(stream.read, out)

    async def fuse(self, how: str, prompt: str, settings: Mapping[str, str], out: Sink) -> None:
        """Asks several nodes; `how` is the line of the ctl that says so. A terminal is shown their votes too."""
        await self._ctl.write(f"{how}\n")
        await self._say(prompt, settings)
        async with self._mounts.open(f"{self._directory}/stream") as stream:
            if not isinstance(out, Terminal):
                await _show(stream.read, out)
                return
            async with self._mounts.open(f"{self._directory}/tally") as tally:
                await _Voting(tally, stream, out).show()

    async def _say(self, prompt: str, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            if self._settings.get(name) != value:
                await self._ctl.write(f"{name} {' '.join(value.splitlines())}\n")
                self._settings[name] = value
        async with self._mounts.open(f"{self._directory}/prompt", "w") as file:
            await file.write(prompt)

    async def hang_up(self) -> None:
        with contextlib.suppress(LlamboError):  # it is gone already
            await self._held.aclose()


async def _show(next_piece: Callable[[], Awaitable[bytes]], out: Sink) -> None:
    """Shows an answer to its end; whatever it ends in, it ends with a line."""
    shown = out.prose() if isinstance(out, Terminal) else out
    last = b""
    try:
        while piece := await next_piece():
            await shown.write(piece)
            last = piece[-1:]
    finally:
        if last not in {b"", b"\n"}:
            await shown.write(b"\n")


def vote_row(line: str) -> str:
    """A line of a tally in a person's words: who, how many of how many, how far they agree, and what was said."""
    found: dict[str, str] = {}
    for name, quoted, plain in _FIELD.findall(line):
        found[name] = quoted[1:-1].replace("''", "'") if quoted else plain
    far = f" ({found['answered']} of {found['asked']}, agreement {float(found['agreement']) * 100:.0f} %)"
    said = f"failed: {found['error']}" if "error" in found else found["text"]
    return f"{found['node']}{far}: {said}"


class _Voting:
    """Votes as they come, and the answer below them; those that come when it has begun stand below it."""

    def __init__(self, tally: File, stream: File, out: Terminal) -> None:
        self._tally = tally
        self._stream = stream
        self._out = out
        self._has_votes = self._has_begun = False
        self._late: list[bytes] = []  # lines

    async def show(self) -> None:
        """Shows both. Raises: what the answer ends in, once every vote is shown."""
        self._counting = asyncio.create_task(self._count())
        try:
            await asyncio.sleep(0)  # its first step asks for votes: what is asked for first comes first
            error: LlamboError | None = None
            try:
                await _show(self._next_piece, self._out)
            except LlamboError as found:
                error = found
            await self._counting
            for line in self._late:
                await self._show_vote(line)
            if error is not None:
                raise error
        finally:
            self._counting.cancel()
            await asyncio.wait([self._counting])

    async def _count(self) -> None:
        rest = b""
        while piece := await self._tally.read():
            self._has_votes = True
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if self._has_begun:
                    self._late.append(line)
                else:
                    await self._show_vote(line)

    async def _show_vote(self, line: bytes) -> None:
        """A line of the tally: its words for a person, itself for a program."""
        if self._out.shows:
            await self._out.prose().write(vote_row(line.decode("utf-8", "replace")).encode() + b"\n")
        else:
            await self._out.write(line + b"\n")

    async def _next_piece(self) -> bytes:
        piece = await self._stream.read()
        if piece and not self._has_begun:
            if self._has_votes:  # all are there: this is what they agreed on
                await self._counting
                await self._out.write(b"\n")
            self._has_begun = True
        return piece


async def infer(context: Context) -> None:
    """`infer [NAME=VALUE…] PROMPT`."""
    prompt, settings = await _question(context)
    session = await _Session.begin(context.dish.mounts, context.dish.cluster)
    try:
        await session.ask(prompt, settings, context.out)
    finally:
        await session.hang_up()


async def ask(context: Context) -> None:
    """`ask [NAME=VALUE…] PROMPT`."""
    prompt, settings = await _question(context)
    await context.dish.conversations.ask(context.dish.cluster, prompt, settings, context.out)


async def fuse(context: Context) -> None:
    """`fusion [STRATEGY [N]] [NAME=VALUE…] PROMPT`."""
    words = list(context.words)
    how = ["fusion"]
    if _is_misspelt(words):
        known = ", ".join(_STRATEGIES)
        raise BadRequest(
            f"no fusion strategy is called {words[0]!r}; there are {known}; a prompt that begins so is quoted"
        )
    if words and words[0] in _STRATEGIES:
        how.append(words.pop(0))
        if words and words[0].isascii() and words[0].isdigit():
            how.append(words.pop(0))
    prompt, settings = await _question(replace(context, words=tuple(words)), (*SETTINGS, *_OF_FUSION))
    how += [quote(f"{name}={settings.pop(name)}") for name in _OF_FUSION if name in settings]
    session = await _Session.begin(context.dish.mounts, context.dish.cluster)
    try:
        await session.fuse(" ".join(how), prompt, settings, context.out)
    finally:
        await session.hang_up()


def _is_misspelt(words: list[str]) -> bool:
    """Whether a strategy and its number were meant: a prompt that has both would be asked, and nobody would notice."""
    if len(words) < 2 or words[0] in _STRATEGIES or not (words[1].isascii() and words[1].isdigit()):
        return False
    name = words[0].lower().replace("_", "-")
    is_beginning = len(name) >= 4 and any(known.startswith(name) for known in _STRATEGIES)
    return is_beginning or bool(difflib.get_close_matches(name, _STRATEGIES, cutoff=0.8))


async def _question(context: Context, names: Collection[str] = SETTINGS) -> tuple[str, dict[str, str]]:
    """The prompt and its settings; what is piped in stands before the prompt's words. Raises: `BadRequest`."""
    words = list(context.words)
    settings = context.dish.settings()
    while words and words[0].partition("=")[0] in names and "=" in words[0]:
        name, _, settings[name] = words.pop(0).partition("=")
    source = context.piped
    if words == ["-"] or not words:
        source, words = context.input(), []
    try:
        piped = (await read_all(source)).decode().strip("\n") if source is not None else ""
    except UnicodeDecodeError as error:
        raise BadRequest(f"what is piped in is not UTF-8 text (byte {error.start}); prompts are text") from None
    prompt = "\n\n".join(part for part in (piped, " ".join(words)) if part.strip())
    if not prompt:
        raise context.command.wrong("needs a prompt")
    return prompt, settings


COMMANDS = (
    Command(
        "infer",
        "infer [NAME=VALUE…] PROMPT",
        f"asks one question by itself; names are {' '.join(SETTINGS)}; what is piped in stands before the prompt",
        infer,
        ("option",),
    ),
    Command("ask", "ask [NAME=VALUE…] PROMPT", "goes on with the conversation, as a line alone does", ask, ("option",)),
    Command(
        "fusion",
        "fusion [STRATEGY [N]] [NAME=VALUE…] PROMPT",
        "asks N nodes, shows the answer of each, then the one they agree on; "
        f"STRATEGY is {' '.join(STRATEGIES)}; names also {' '.join(_OF_FUSION)}",
        fuse,
        ("strategy", "option"),
    ),
)
