"""Pastes of any size: what a terminal says was pasted is taken in one piece, and dropped when it is too long.

prompt_toolkit's own parser searches all that has come for the end of the paste with every piece, which takes minutes
for some tens of megabytes, and keeps all of it.
"""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit.input import Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

MAX_CHARS = 8 << 20
_END = "\x1b[201~"


class PasteParser(Vt100Parser):
    """Gives each paste as one key; of one over `MAX_CHARS` nothing but word of it to `too_long`."""

    def __init__(
        self, key: Callable[[KeyPress], None], too_long: Callable[[int], None], limit: int = MAX_CHARS
    ) -> None:
        super().__init__(key)
        self._too_long = too_long
        self._limit = limit
        self._pieces: list[str] | None = None  # of the paste that has begun
        self._size = 0
        self._tail = ""  # the last characters: an end may come in two pieces

    def feed(self, data: str) -> None:
        """Takes what was read."""
        if self._in_bracketed_paste:  # the parser has met the beginning of one, and hands over what follows
            self._in_bracketed_paste = False
            self._pieces, self._size, self._tail = [], 0, ""
        if self._pieces is None:
            super().feed(data)
        elif rest := self._pasted(self._tail + data):
            self.feed(rest)

    def _pasted(self, data: str) -> str:
        """Keeps what belongs to the paste; returns what comes after it."""
        assert self._pieces is not None
        text, end, rest = data.partition(_END)
        if not end:
            self._keep(text[: -len(_END)])
            self._tail = text[-len(_END) :]
            return ""
        self._keep(text)
        pasted, self._pieces, self._tail = "".join(self._pieces), None, ""
        if self._size > self._limit:
            self._too_long(self._limit)
        else:
            self.feed_key_callback(KeyPress(Keys.BracketedPaste, pasted))
        return rest

    def _keep(self, text: str) -> None:
        self._size += len(text)
        if self._pieces and self._size > self._limit:
            self._pieces.clear()
        elif self._size <= self._limit and self._pieces is not None:
            self._pieces.append(text)


def bound_pastes(source: Input, too_long: Callable[[int], None]) -> None:
    """Gives `source` a parser that bounds pastes, where it has one of prompt_toolkit's."""
    parser = getattr(source, "vt100_parser", None)
    if type(parser) is Vt100Parser:
        source.vt100_parser = PasteParser(parser.feed_key_callback, too_long)  # type: ignore[attr-defined]
