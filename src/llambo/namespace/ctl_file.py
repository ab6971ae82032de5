"""Files of commands with a grammar, and where refusals are kept for clients that do not show an Rerror."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from llambo.core.errors import LlamboError, Refused
from llambo.namespace.grammar import Call, Grammar
from llambo.ninep.errors import PERMISSION, rerror_text
from llambo.ninep.files import TextFile, TextHandle, cut_text, run_lines, to_bytes
from llambo.ninep.messages import OWRITE
from llambo.ninep.tree import Data, Handle, Node, Result

T = TypeVar("T")
Perform = Callable[[Call], Result[str | None]]
"""Performs a command and returns once it has taken effect, with what it has to say, if anything."""


class Refusals:
    """The text of the last refusal; what is noted here is noted in `others` too."""

    def __init__(self, *others: Refusals) -> None:
        self.text = ""
        self._others = others

    def note(self, error: LlamboError) -> None:
        """Keeps its text."""
        self.text = rerror_text(error)
        for other in self._others:
            other.note(error)

    def noting(self, call: Callable[[], Result[T]]) -> Result[T]:
        """What `call` gives; a refusal is noted on its way out."""
        try:
            result = call()
        except LlamboError as error:
            self.note(error)
            raise
        return self._noting(result) if isinstance(result, Awaitable) else result

    async def _noting(self, result: Awaitable[T]) -> T:
        try:
            return await result
        except LlamboError as error:
            self.note(error)
            raise

    def file(self) -> TextFile:
        """The file `error`."""
        return TextFile("error", lambda: f"{self.text}\n" if self.text else "")


class CtlFile(Node):
    """A ctl: what is written is read by `grammar` and performed line by line, the first that fails ends the write.

    Reading gives `text` (by default the grammar), and after a command that had something to say that, to its end.
    """

    def __init__(
        self,
        grammar: Grammar,
        perform: Perform,
        refusals: Refusals,
        text: Callable[[], str] | None = None,
        perm: int = 0o666,
    ) -> None:
        super().__init__("ctl", perm)
        self._grammar = grammar
        self._perform = perform
        self._refusals = refusals
        self._text = text or grammar.text

    def open(self, mode: int) -> Handle:
        """Opens it; the text is of this moment."""
        return self.handle(self._text() if mode & 3 != OWRITE else "")

    def handle(self, text: str) -> CtlHandle:
        """An open file whose text is `text`."""
        return CtlHandle(self, text)

    def run(self, data: bytes, say: Callable[[str], None]) -> Result[None]:
        """Performs the lines of a write; `say` is told what each has to say."""

        def line(text: str) -> Result[None]:
            said = self._perform(self._grammar.read(text))
            if isinstance(said, Awaitable):
                return later(said)
            if said is not None:
                say(said)
            return None

        async def later(said: Awaitable[str | None]) -> None:
            text = await said
            if text is not None:
                say(text)

        return self._refusals.noting(lambda: run_lines(line, data))


class CtlHandle(Handle):
    """An open ctl."""

    __slots__ = ("_file", "_said", "_text", "node")

    def __init__(self, file: CtlFile, text: str, node: Node | None = None) -> None:
        self._file = file
        self._text = TextHandle(text.encode())
        self._said: bytes | None = None
        self.node = node

    def read(self, offset: int, count: int) -> Result[Data]:
        """The text; or what commands had to say, whatever the offset: some clients count on from what they wrote."""
        if self._said is None:
            return self._text.read(offset, count)
        piece = cut_text(self._said[:count], count >= len(self._said))
        self._said = self._said[len(piece) :]
        return piece

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        """Performs what is written."""
        result = self._file.run(data, self._say)
        return _took_all(result) if isinstance(result, Awaitable) else None

    def _say(self, text: str) -> None:
        self._said = (self._said or b"") + to_bytes(f"{text}\n")


async def _took_all(result: Awaitable[None]) -> None:
    await result


def refused() -> LlamboError:
    """What somebody without the right is told."""
    return Refused(PERMISSION)
