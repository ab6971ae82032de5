"""An answer on a terminal as it grows: which of it is printed for good, and which is drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llambo.limbot.blocks import Block, Blocks, Prose, tail
from llambo.limbot.paint import Line
from llambo.limbot.render import Spacing

LIVE_CHARS = 2000
"""Of a longer open block only the end is painted: more would not fit, and would hold up the keyboard."""


class Place(Protocol):
    """Where it is shown. `is_raw` shows no Markdown."""

    is_raw: bool

    def print_lines(self, lines: Sequence[Line]) -> None:
        """Prints lines for good."""
        ...

    def paint(self, block: Block) -> list[Line]:
        """A block as lines."""
        ...

    def draw_live(self, lines: Callable[[], Sequence[Line]] | None) -> None:
        """What stands below all that is printed, from now on; None for nothing."""
        ...


class LiveAnswer:
    """An answer as it grows: blocks that are finished are printed for good, the open one is redrawn below them."""

    def __init__(self, screen: Place) -> None:
        self._screen = screen
        self._blocks: Blocks | RawLines = RawLines() if screen.is_raw else Blocks()
        self._spacing = Spacing()

    def feed(self, text: str) -> None:
        """Adds a piece."""
        self._print(self._blocks.feed(text))
        self._screen.draw_live(self._open_lines)

    def close(self) -> None:
        """Prints what was open."""
        self._screen.draw_live(None)
        self._print(self._blocks.close())

    def _print(self, blocks: Sequence[Block]) -> None:
        lines: list[Line] = []
        for block in blocks:
            if not self._screen.is_raw:
                lines += self._spacing.put(block)
            lines += self._screen.paint(block)
        if lines:
            self._screen.print_lines(lines)

    def _open_lines(self) -> list[Line]:
        block = self._blocks.open()
        if block is None:
            return []
        before = [] if self._screen.is_raw else self._spacing.before(block)
        return [*before, *self._screen.paint(tail(block, LIVE_CHARS))]


class RawLines:
    """Text as it is, as `Blocks` gives Markdown: finished line by line."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[Block]:
        """The lines that this piece finishes."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [Prose(line) for line in lines]

    def close(self) -> list[Block]:
        """The last line."""
        rest, self._rest = self._rest, ""
        return [Prose(rest)] if rest else []

    def open(self) -> Block | None:
        """The line that has no end yet."""
        return Prose(self._rest) if self._rest else None
