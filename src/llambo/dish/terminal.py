"""Standard output as a sink: what a person sees, and what a pipe gets.

What comes of files and models reaches a terminal without its control characters; a pipe gets the very bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import shutil
from collections.abc import Iterator
from typing import IO

from llambo.core.harmless import harmless
from llambo.dish.pipes import Sink
from llambo.dish.wrapping import Wrapping

_ALTERNATE, _USUAL = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class Terminal:
    """Writes to `stream` at once. `shows` says that it is a terminal, `has_colour` that colours are wanted there."""

    def __init__(self, stream: IO[str], *, shows: bool, has_colour: bool = False) -> None:
        self.shows = shows
        self.has_colour = has_colour
        self.is_at_line_start = True
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def write(self, data: bytes) -> None:
        """Shows `data`."""
        if not self.shows:
            self._stream.buffer.write(data)  # type: ignore[attr-defined] # a standard stream has one
            self._stream.flush()
            return
        self.show(self.text_of(data))

    def text_of(self, data: bytes) -> str:
        """What a person is shown of `data`: the characters that are complete by now, the harmless ones."""
        return harmless(self._decoder.decode(data))

    def show(self, text: str) -> None:
        """Shows a text that is harmless."""
        if text:
            self.is_at_line_start = text.endswith("\n")
            self._put(text)

    def prose(self) -> Sink:
        """This terminal for a text of sentences: a person sees its lines broken between words.

        The text begins at the start of a line, and nothing else is shown before it ends.
        """
        return _Prose(self) if self.shows else self

    def end_line(self) -> None:
        """Begins a new line, where something stands on this one."""
        if self.shows and not self.is_at_line_start:
            self._put("\n")
            self.is_at_line_start = True

    def draw(self, text: str) -> None:
        """Shows as much of `text` as there is room for, in the place of what is on the screen."""
        width, height = shutil.get_terminal_size()
        lines = [harmless(line)[:width] for line in text.split("\n")[:height]]
        self._put(_HOME + f"{_REST_OF_LINE}\r\n".join(lines) + _REST_OF_LINE + _REST_OF_SCREEN)

    @contextlib.contextmanager
    def screen(self) -> Iterator[None]:
        """A screen of its own for the block; what was there before comes back."""
        self._put(_ALTERNATE)
        try:
            yield
        finally:
            self._put(_USUAL)

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class _Prose:
    """A terminal that breaks lines between words."""

    shows = True

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._wrapping = Wrapping()

    async def write(self, data: bytes) -> None:
        """Shows `data`."""
        width = shutil.get_terminal_size().columns
        self._terminal.show(self._wrapping.feed(self._terminal.text_of(data), width))
