"""What a chat needs of the place where it is shown: the seam between the chat and a terminal, a pipe, a test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from typing import IO, Protocol

from llambo.core.fusion import Fusion
from llambo.core.harmless import harmless
from llambo.core.threads import run_abandonable
from llambo.limbot.oneshot import Writer
from llambo.limbot.plain import Plain


class Screen(Protocol):
    """Shows things below each other, and gives what the person sends."""

    @property
    def width(self) -> int:
        """Columns."""
        ...

    def lines(self) -> AsyncIterator[str]:
        """What is sent, until the end of input."""
        ...

    def echo(self, text: str) -> None:
        """A question, as it was sent."""
        ...

    def note(self, text: str) -> None:
        """Something beside the conversation, dim."""
        ...

    def warn(self, text: str) -> None:
        """Something that went wrong."""
        ...

    def show(self, lines: Sequence[str]) -> None:
        """What was asked for, as it is."""
        ...

    def markdown(self, text: str) -> None:
        """A whole text in Markdown."""
        ...

    def answer(self) -> Writer:
        """Where the pieces of the next answer go."""
        ...

    def busy(self, text: str) -> None:
        """What is going on, until the next call; "" for nothing."""
        ...

    def votes(self, fusion: Fusion | None) -> None:
        """The votes so far, until the next call; None for nothing."""
        ...

    def copy(self, text: str) -> None:
        """Gives the text to the clipboard. Raises: `LlamboError` where there is none."""
        ...

    def toggle_multiline(self) -> bool:
        """Switches what Enter does; says whether it begins a new line now."""
        ...

    def clear(self) -> None:
        """Begins on an empty screen."""
        ...


class PipeScreen:
    """A chat without a terminal: a line is a message or a command, answers go to standard output, notes to errors."""

    width = 1000
    """A pipe has no columns."""

    def __init__(self, source: IO[str], out: IO[str], errors: IO[str]) -> None:
        self._source = source
        self._out = out
        self._errors = errors

    async def lines(self) -> AsyncIterator[str]:
        """The lines of the input that are not empty."""
        while line := await run_abandonable(self._source.readline, name="standard input"):
            if line.strip():
                yield line.rstrip("\n")

    def echo(self, text: str) -> None:
        """Nothing: the input is known."""

    def note(self, text: str) -> None:
        """Nothing: standard error is for what went wrong."""

    def warn(self, text: str) -> None:
        """A line on standard error."""
        self._errors.write(f"limbot: {harmless(text)}\n")
        self._errors.flush()

    def show(self, lines: Sequence[str]) -> None:
        """The lines; without control characters where the output is a terminal."""
        clean = harmless if self._out.isatty() else str
        self._out.write("".join(f"{clean(line)}\n" for line in lines))
        self._out.flush()

    def markdown(self, text: str) -> None:
        """The text."""
        self.show(text.splitlines())

    def answer(self) -> Writer:
        """The text as it comes."""
        return Plain(self._out, to_terminal=self._out.isatty())

    def busy(self, text: str) -> None:
        """Nothing."""

    def votes(self, fusion: Fusion | None) -> None:
        """Nothing."""

    def copy(self, text: str) -> None:
        """The text: there is no clipboard."""
        self.show(text.splitlines())

    def toggle_multiline(self) -> bool:
        """Never: a line is a message."""
        return False

    def clear(self) -> None:
        """Nothing."""


def standard() -> PipeScreen:
    """The chat of standard input and output."""
    return PipeScreen(sys.stdin, sys.stdout, sys.stderr)
