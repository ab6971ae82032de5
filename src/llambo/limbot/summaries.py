"""Summaries of what a model is no longer sent, made in the background by the model itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from llambo.core.errors import LlamboError
from llambo.core.types import GenerateRequest, Sampling, TokenEvent
from llambo.limbot.connection import Connection, Served
from llambo.limbot.conversation import SUMMARY_MAX_TOKENS, Conversation


class Summaries:
    """Makes one summary at a time. One that has come waits until it is taken in."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._making: asyncio.Task[None] | None = None
        self._made: tuple[str, int, Conversation] | None = None

    def make(
        self, conversation: Conversation, budget: int, served: Served, came: Callable[[], Awaitable[None]]
    ) -> None:
        """Has what is trimmed, or will be soon, summarised; awaits `came` when that is there. Returns at once."""
        if self._making is not None and not self._making.done():
            return
        upto = conversation.to_summarise(budget)
        if upto:
            self._making = asyncio.create_task(self._make(conversation, upto, budget, served, came))

    def into(self, conversation: Conversation) -> Conversation:
        """The conversation with the summary that has come, unless that is of another one."""
        if self._made is None:
            return conversation
        (text, upto, of), self._made = self._made, None
        texts = [entry.text for entry in of.entries[:upto]]
        is_of_it = [entry.text for entry in conversation.entries[:upto]] == texts
        return conversation.with_summary(text, upto) if is_of_it else conversation

    async def settled(self) -> None:
        """Returns when none is being made."""
        if self._making is not None:
            await asyncio.wait({self._making})

    async def close(self) -> None:
        """Gives up the one that is being made."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

    async def _make(
        self, of: Conversation, upto: int, budget: int, served: Served, came: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            text = of.extract(upto) if served.is_small else await self._ask(of.summary_request(upto, budget), served)
            if text:
                self._made = (text, upto, of)
                await came()
        except LlamboError:  # the next turn tries again
            return

    async def _ask(self, prompt: str, served: Served) -> str:
        sampling = Sampling(max_tokens=SUMMARY_MAX_TOKENS, temperature=0.0)
        request = replace(
            GenerateRequest.from_prompt(prompt, model=served.model, sampling=sampling), interface="limbot"
        )
        pieces: list[str] = []
        async with aclosing(self._connection.generate(request)) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    pieces.append(event.text)
        return " ".join("".join(pieces).split())
