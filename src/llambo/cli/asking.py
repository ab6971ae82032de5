"""What commands that ask a model have in common: the prompt, the writer of the answer, and the waiting before it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from llambo.cli import common
from llambo.core.errors import BadRequest

if TYPE_CHECKING:
    from llambo.limbot.oneshot import Writer


def read_stdin() -> str:
    """Standard input as a prompt, without the newlines around it.

    Raises: `BadRequest`.
    """
    if sys.stdin is None:
        raise BadRequest("standard input is closed; give the prompt as an argument")
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise BadRequest(f"standard input is not UTF-8 text (byte {error.start}); prompts are text") from None


def choose_writer(*, raw: bool, as_json: bool) -> Writer:
    """Markdown on a terminal, the bare text elsewhere or with `raw`, nothing where a JSON document comes after."""
    from llambo.limbot import render

    if as_json:
        return render.Silent()
    if raw or not common.draws(sys.stdout):
        return render.Plain(sys.stdout, to_terminal=sys.stdout.isatty())
    from rich.console import Console

    return render.MarkdownStream(Console())


class JsonLines:
    """One JSON line for each piece of the answer, as the bridge's text protocol has them."""

    def feed(self, text: str) -> None:
        """Prints and flushes."""
        common.print_json({"type": "token", "token": text})
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing more: the document follows."""


class Waiting:
    """A spinner on standard error until the first token, on terminals alone."""

    def __init__(self) -> None:
        self._status: Any = None
        if common.draws(sys.stderr):
            from rich.console import Console

            self._status = Console(stderr=True).status("thinking …")
            self._status.start()

    def end(self) -> None:
        """Takes it away."""
        if self._status is not None:
            self._status.stop()
            self._status = None


@asynccontextmanager
async def waiting() -> AsyncIterator[Waiting]:
    """A spinner for the block at most."""
    spinner = Waiting()
    try:
        yield spinner
    finally:
        spinner.end()


class AfterWaiting:
    """A writer that ends the spinner before it shows anything."""

    def __init__(self, writer: Writer, spinner: Waiting) -> None:
        self._writer = writer
        self._spinner = spinner

    def feed(self, text: str) -> None:
        """Shows one more piece."""
        self._spinner.end()
        self._writer.feed(text)

    def close(self) -> None:
        """Finishes what is shown."""
        self._spinner.end()
        self._writer.close()
