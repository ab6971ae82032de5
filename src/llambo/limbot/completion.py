"""Completion on the chat's line: commands, and what their arguments name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from llambo.core.errors import LlamboError
from llambo.limbot import commands, fusion, settings
from llambo.limbot.chat import Chat
from llambo.limbot.store import Store

MOST = 100


class ChatCompleter(Completer):
    """Completes lines that begin with a slash; a message is nobody's to guess. Offers nothing before `chat` is set."""

    def __init__(self) -> None:
        self.chat: Chat | None = None

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> list[Completion]:
        """None: they are found by asking the store and the cluster."""
        return []

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Those of the text before the cursor."""
        line = document.text_before_cursor
        if not line.startswith("/") or "\n" in line:
            return
        word, blank, argument = line.partition(" ")
        if not blank:
            for command in commands.TABLE:
                if command.name.startswith(word[1:]):
                    yield Completion(f"/{command.name}", -len(word), display_meta=command.help)
            return
        try:
            found = await self._arguments(commands.named(word).completes, argument)
        except LlamboError:
            return
        for text, meta in found[:MOST]:
            yield Completion(text, -len(argument), display_meta=meta)

    async def _arguments(self, kind: commands.Completes, begun: str) -> list[tuple[str, str]]:
        """What the argument may become, with a word on each."""
        chat = self.chat
        match kind:
            case "command":
                return _beginning(begun, ((command.name, command.help) for command in commands.TABLE))
            case "parameter":
                return _beginning(begun, ((f"{name} ", kind.__name__) for name, kind in settings.PARAMETERS.items()))
            case "strategy":
                return _beginning(begun, ((word, "") for word in fusion.WORDS))
            case "words":
                return _beginning(begun, [("code", "the last block of code")])
            case "path":
                return _paths(begun)
            case "model" if chat is not None:
                return _beginning(begun, ((name, "") for name in await chat.connection.models()))
            case "session" if chat is not None:
                sessions = await chat.shelf(Store.sessions, MOST)
                return _beginning(begun, ((session.name or str(session.id), session.title) for session in sessions))
        return []


def _beginning(begun: str, found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(text, meta) for text, meta in found if text.startswith(begun)]


def _paths(begun: str) -> list[tuple[str, str]]:
    """The files and directories that begin so."""
    directory, slash, name = begun.rpartition("/")
    try:
        entries = sorted(Path(directory + slash or ".").expanduser().iterdir())
        return [
            (f"{directory}{slash}{entry.name}{'/' if entry.is_dir() else ''}", "")
            for entry in entries
            if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
        ]
    except (OSError, RuntimeError):
        return []
