"""The files `data` and `fusion/data`: one question and its answer on one fid."""

from __future__ import annotations

from collections.abc import Callable

from llambo.core.errors import NameInUse, TooLarge
from llambo.namespace.answer import Answer
from llambo.namespace.ctl_file import Refusals
from llambo.namespace.session import MAX_PROMPT_BYTES, prompt_text
from llambo.ninep.errors import IN_USE
from llambo.ninep.streams import StreamHandle
from llambo.ninep.tree import Data, Handle, Node, Result

Ask = Callable[[str], Answer]
"""Begins the answer to a prompt. Raises: `LlamboError`."""


class DataFile(Node):
    """Write the prompt, then read the answer until the end of the file.

    `timeout_s` bounds each wait, 0 does not.
    """

    def __init__(self, ask: Ask, refusals: Refusals, timeout_s: Callable[[], float] = float) -> None:
        super().__init__("data", 0o666)
        self._ask = ask
        self._refusals = refusals
        self._timeout_s = timeout_s

    def open(self, mode: int) -> Handle:
        """Ready for a prompt."""
        return _DataHandle(self._ask, self._refusals, self._timeout_s)


class _DataHandle(Handle):
    __slots__ = ("_ask", "_prompt", "_refusals", "_stream", "_timeout_s")

    def __init__(self, ask: Ask, refusals: Refusals, timeout_s: Callable[[], float]) -> None:
        self._ask = ask
        self._refusals = refusals
        self._timeout_s = timeout_s
        self._prompt = bytearray()
        self._stream: StreamHandle | None = None

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        return self._refusals.noting(lambda: self._add(data))

    def _add(self, data: bytes) -> None:
        if self._stream is not None:
            raise NameInUse(f"{IN_USE}: this prompt is being answered; open data anew for the next one")
        if len(self._prompt) + len(data) > MAX_PROMPT_BYTES:
            raise TooLarge(f"a prompt has at most {MAX_PROMPT_BYTES >> 20} MiB")
        self._prompt += data

    def read(self, offset: int, count: int) -> Result[Data]:
        if self._stream is None:
            self._refusals.noting(self._send)
        assert self._stream is not None
        return self._stream.read(offset, count)

    def _send(self) -> None:
        answer = self._ask(prompt_text(bytes(self._prompt)))
        self._stream = answer.stream(self._refusals.note, self._timeout_s)

    def close(self) -> Result[None]:
        return self._stream.close() if self._stream is not None else None
