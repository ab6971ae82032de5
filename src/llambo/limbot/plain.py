"""Answers without colours: plain text for pipes and `--raw`, nothing for `--json`. Imports next to nothing."""

from __future__ import annotations

from typing import IO

from llambo.core.harmless import harmless


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
