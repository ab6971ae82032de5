"""Questions to the model: `infer` asks one by itself, `ask` and lines that are no command go on with a conversation.

A conversation is a session of the tree that lives as long as its `clone` is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AsyncExitStack

from llambo.core.errors import BadRequest, LlamboError, NotFound, Unreachable
from llambo.dish.command import SETTINGS, Command, Context
from llambo.dish.mounts import Mounts
from llambo.dish.pipes import Sink, read_all
from llambo.dish.servers import File


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
        for name, value in settings.items():
            if self._settings.get(name) != value:
                await self._ctl.write(f"{name} {' '.join(value.splitlines())}\n")
                self._settings[name] = value
        async with self._mounts.open(f"{self._directory}/prompt", "w") as file:
            await file.write(prompt)
        last = b""
        try:
            async with self._mounts.open(f"{self._directory}/stream") as stream:
                while piece := await stream.read():
                    await out.write(piece)
                    last = piece[-1:]
        finally:
            if last not in {b"", b"\n"}:
                await out.write(b"\n")

    async def hang_up(self) -> None:
        with contextlib.suppress(LlamboError):  # it is gone already
            await self._held.aclose()


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


async def _question(context: Context) -> tuple[str, dict[str, str]]:
    """The prompt and its settings; what is piped in stands before the prompt's words. Raises: `BadRequest`."""
    words = list(context.words)
    settings = context.dish.settings()
    while words and words[0].partition("=")[0] in SETTINGS and "=" in words[0]:
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
)
