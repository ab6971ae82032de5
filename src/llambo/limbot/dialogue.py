"""What is typed, line by line: each is done before the next, and Ctrl-C ends the one that is under way."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing

from llambo.core.errors import LlamboError
from llambo.core.foreground import Foreground
from llambo.limbot import actions
from llambo.limbot.chat import Chat


class Dialogue:
    """The lines of a chat's screen."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._foreground = Foreground()

    async def run(self, first: str = "") -> None:
        """Chats until the input ends or `/exit`. `first` is asked before anything is read."""
        chat = self.chat
        for notice in chat.shelf.notices:
            chat.screen.warn(notice)
        opening = asyncio.create_task(self._open())
        try:
            async with aclosing(chat.screen.lines()) as lines:  # type: ignore[type-var] # what gives it is a generator
                if first:
                    await self._perform(first)
                async for line in lines:
                    await self._perform(line)
                    if chat.is_over:
                        break
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    def interrupt(self) -> bool:
        """Stops what is under way; says whether there was something."""
        return self._foreground.interrupt()

    async def _open(self) -> None:
        """Gets the cluster ready while the first question is being typed; what goes wrong is told with the question."""
        with contextlib.suppress(LlamboError):
            await self.chat.ready()

    async def _perform(self, line: str) -> None:
        try:
            await self._foreground.run(actions.perform(self.chat, line))
        finally:
            self.chat.screen.busy("")
