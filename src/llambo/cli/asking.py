"""What commands that ask a model have in common: the prompt, the writer of the answer, and the waiting before it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from llambo.cli import common
from llambo.core.errors import BadRequest, LlamboError, TooLarge

if TYPE_CHECKING:
    from llambo.core.fusion import Fusion, FusionRequest, VoteCast
    from llambo.limbot.oneshot import Writer
    from llambo.limbot.screen import Screen
    from llambo.limbot.shelf import Shelf
    from llambo.limbot.terminal import TerminalScreen

MAX_INPUT_BYTES = 8 << 20
"""No context holds more, and what goes to a cluster is bounded."""
THINKING = "thinking · Ctrl-C stops"
SPINNER_COLUMNS = 3
"""What a spinner takes, and the last column, which stays free."""


def read_stdin() -> str:
    """Standard input as a prompt, without the newlines around it.

    Raises: `BadRequest`.
    """
    if sys.stdin is None:
        raise BadRequest("standard input is closed; give the prompt as an argument")
    try:
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        if len(data) > MAX_INPUT_BYTES:
            raise TooLarge(
                f"standard input has more than {MAX_INPUT_BYTES} bytes, which is the most that a prompt holds"
            )
        return data.decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise BadRequest(f"standard input is not UTF-8 text (byte {error.start}); prompts are text") from None


def error_columns() -> int:
    """Columns of standard error; a file or a pipe has as many as anybody reads on a line."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stderr.isatty() else 200


def fusion_of(strategy: str, nodes: int | None, min_consensus: int | None, extract: str) -> FusionRequest | None:
    """What the options of a command line ask of several nodes; None where they are not given.

    Raises: `BadRequest`.
    """
    if not strategy and nodes is None and min_consensus is None and not extract:
        return None  # without loading what knows more
    from llambo.limbot import fusion

    return fusion.requested(strategy, nodes, min_consensus, extract)


def tell_outcome(outcome: Fusion) -> None:
    """A dim line on the terminal below an answer that was voted on."""
    import textwrap

    if common.draws(sys.stderr):
        from llambo.limbot import fusion

        for line in textwrap.wrap(fusion.summary(outcome), max(8, error_columns() - 1)):
            sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n")


def choose_writer(*, raw: bool, as_json: bool) -> Writer:
    """Markdown on a terminal, the bare text elsewhere or with `raw`, nothing where a JSON document comes after."""
    from llambo.limbot import plain

    if as_json:
        return plain.Silent()
    if raw or not common.draws(sys.stdout):
        return plain.Plain(sys.stdout, to_terminal=sys.stdout.isatty())
    from rich.console import Console

    from llambo.limbot.render import MarkdownStream

    return MarkdownStream(Console())


class JsonLines:
    """One JSON line for each piece of the answer, as the bridge's text protocol has them."""

    def feed(self, text: str) -> None:
        """Prints and flushes."""
        common.print_json({"type": "token", "token": text})
        sys.stdout.flush()

    def vote(self, cast: VoteCast) -> None:
        """The same for a vote."""
        from llambo.core.fusion_document import cast_document

        common.print_json({"type": "vote", **cast_document(cast)})
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing more: the document follows."""


class Waiting:
    """A spinner on standard error until the first token, on terminals alone."""

    def __init__(self) -> None:
        self._status: Any = None
        if common.draws(sys.stderr):
            from rich.console import Console

            self._status = Console(stderr=True).status(THINKING)
            self._status.start()

    def say(self, text: str) -> None:
        """Shows another text beside it, on one line."""
        if self._status is not None:
            from rich.text import Text

            line = Text(text or THINKING)
            line.truncate(max(1, self._status.console.width - SPINNER_COLUMNS), overflow="ellipsis")
            self._status.update(line)

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


class OneAnswer:
    """The screen of one question: the answer goes to `writer`, what went wrong to standard error."""

    @property
    def width(self) -> int:
        """Columns of what is told on standard error, behind the program's name."""
        return error_columns() - len("limbot: ")

    def __init__(self, writer: Writer, spinner: Waiting) -> None:
        self._writer = writer
        self._spinner = spinner

    async def lines(self) -> AsyncIterator[str]:
        """None: there is one question."""
        nothing: list[str] = []
        for line in nothing:
            yield line

    def echo(self, text: str) -> None:
        """Nothing: it was typed."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """A line on standard error."""
        from llambo.core.harmless import harmless

        sys.stderr.write(f"limbot: {harmless(text)}\n")

    def show(self, lines: Sequence[str]) -> None:
        """Nothing: nothing was asked for."""

    def markdown(self, text: str) -> None:
        """Nothing."""

    def answer(self) -> Writer:
        """The writer."""
        return self._writer

    def busy(self, text: str) -> None:
        """The text beside the spinner, while there is one."""
        self._spinner.say(text)

    def votes(self, fusion: Fusion | None) -> None:
        """Nothing: the spinner tells how far they are."""

    def copy(self, text: str) -> None:
        """Nothing."""

    def toggle_multiline(self) -> bool:
        """Never."""
        return False

    def clear(self) -> None:
        """Nothing."""


async def chat_screen(shelf: Shelf, *, is_raw: bool) -> tuple[Screen, TerminalScreen | None]:
    """Where a chat is shown: the terminal, or standard input and output. The second is None where there is none.

    Raises: `BadRequest` for a standard input that is closed.
    """
    import os

    from llambo.limbot import screen

    if sys.stdin is None:
        raise BadRequest("standard input is closed; a chat needs one")
    if not (sys.stdin.isatty() and common.draws(sys.stdout)):
        return screen.standard(), None
    from llambo.limbot.completion import ChatCompleter
    from llambo.limbot.store import Store
    from llambo.limbot.terminal import TerminalScreen

    try:
        history = await shelf(Store.questions)
    except LlamboError:  # it is told of with the first question
        history = []
    has_colour = not os.environ.get("NO_COLOR")
    terminal = TerminalScreen(has_colour=has_colour, is_raw=is_raw, history=history, completer=ChatCompleter())
    return terminal, terminal
