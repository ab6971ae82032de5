"""How an answer looks: plain text for pipes, Markdown for a terminal, nothing for `--json`.

Text of a model never reaches a terminal with its control characters: they could move the cursor, change the title or
paste into the shell.
"""

from __future__ import annotations

import re
from typing import IO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_BLANK = re.compile(r"\n\n")


def harmless(text: str) -> str:
    """`text` without control characters other than tab and newline."""
    return _CONTROL.sub("", text)


class Silent:
    """Shows nothing."""

    def feed(self, text: str) -> None:
        """Drops the piece."""

    def close(self) -> None:
        """Does nothing."""


class Plain:
    """Writes each piece as it comes, and a newline at the end where the answer has none.

    `to_terminal` removes control characters; a pipe gets the model's very text.
    """

    def __init__(self, stream: IO[str], *, to_terminal: bool) -> None:
        self._stream = stream
        self._to_terminal = to_terminal
        self._last = ""

    def feed(self, text: str) -> None:
        """Writes and flushes."""
        text = harmless(text) if self._to_terminal else text
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._last = text[-1]

    def close(self) -> None:
        """Ends the line."""
        if self._last not in ("", "\n"):
            self._stream.write("\n")
            self._stream.flush()


class MarkdownStream:
    """Renders Markdown as it arrives: finished blocks are printed for good, the last one is redrawn as it grows.

    What has scrolled away is never touched: of a block taller than the terminal only its end is shown until it is
    whole.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""  # the block that still grows
        self._printed = False
        self._live: Live | None = None

    def feed(self, text: str) -> None:
        """Adds a piece; the terminal is redrawn at most 15 times a second."""
        *finished, self._open = split_blocks(self._open + harmless(text))
        for block in finished:
            self._print(block)
        if self._live is None and self._open.strip():
            self._live = Live(
                get_renderable=lambda: _Tail(self._open),
                console=self._console,
                refresh_per_second=15,
                transient=True,
            )
            self._live.start()

    def close(self) -> None:
        """Prints the last block."""
        self._print(self._open)
        self._open = ""

    def _print(self, block: str) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if block.strip():
            if self._printed:
                self._console.print()
            self._console.print(Markdown(block))
            self._printed = True


def split_blocks(text: str) -> list[str]:
    """Parts Markdown after every blank line that is outside a code fence; the last part may still grow."""
    blocks: list[str] = []
    start = 0
    for match in _BLANK.finditer(text):
        if len(_FENCE.findall(text[start : match.end()])) % 2 == 0:
            blocks.append(text[start : match.end()])
            start = match.end()
    return [*blocks, text[start:]]


class _Tail:
    """The last lines of a block, as many as the terminal has room for."""

    def __init__(self, block: str) -> None:
        self._block = block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._block), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()
