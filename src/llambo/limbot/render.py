"""How one answer looks on a terminal outside a chat."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment

from llambo.limbot.blocks import Block, Blocks, Code, tail
from llambo.limbot.paint import Line, Painter

LIVE_CHARS = 4000
"""Of a longer open block only the end is painted: more would not fit."""


class Spacing:
    """Puts an empty line between blocks, and none between the lines of one block of code."""

    def __init__(self) -> None:
        self._is_first = True

    def before(self, block: Block) -> list[Line]:
        """What stands before a block that comes next."""
        is_joined = isinstance(block, Code) and not block.begins
        return [] if self._is_first or is_joined else [[]]

    def put(self, block: Block) -> list[Line]:
        """The same, and the block has come."""
        lines = self.before(block)
        self._is_first = False
        return lines


class MarkdownStream:
    """Renders Markdown as it arrives: finished blocks are printed for good, the last one is redrawn as it grows.

    What has scrolled away is never touched: of a block taller than the terminal only its end is shown until it is
    whole.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._painter = Painter(has_colour=console.color_system is not None and not console.no_color)
        self._blocks = Blocks()
        self._spacing = Spacing()
        self._live: Live | None = None

    def feed(self, text: str) -> None:
        """Adds a piece; the terminal is redrawn at most 15 times a second."""
        self._print(self._blocks.feed(text))
        if self._live is None and self._blocks.open() is not None:
            self._live = Live(
                get_renderable=lambda: _Shown(self._tail()),
                console=self._console,
                refresh_per_second=15,
                transient=True,
            )
            self._live.start()

    def close(self) -> None:
        """Prints the last block."""
        self._print(self._blocks.close())
        self._stop()

    def _tail(self) -> list[Line]:
        """As many of the last lines of the open block as the terminal has room for."""
        block = self._blocks.open()
        if block is None:
            return []
        lines = [*self._spacing.before(block), *self._painter.lines(tail(block, LIVE_CHARS), self._console.width)]
        return lines[-max(1, self._console.height - 2) :]

    def _print(self, blocks: list[Block]) -> None:
        if not blocks:
            return
        self._stop()
        for block in blocks:
            lines = [*self._spacing.put(block), *self._painter.lines(block, self._console.width)]
            self._console.file.write(self._painter.ansi(lines))
        self._console.file.flush()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Shown:
    """Lines as rich shows them."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()
