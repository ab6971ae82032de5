"""Markdown as it arrives, cut where nothing that follows can change what was before. Pure.

What is finished can be shown for good; only the open rest may still look different when more arrives. A block of code
is finished line by line, everything else at a blank line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_FENCE = re.compile(r"^([ \t]*(?:>[ \t]?)*)(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_LIST = re.compile(r"^ {0,8}(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
MAX_OPEN = 4000
"""Characters that stay open at most: a text without a blank line is cut at the end of a line."""


@dataclass(frozen=True, slots=True)
class Prose:
    """Markdown without code fences. `indent` columns of it are a list's that ended above."""

    text: str
    indent: int = 0


@dataclass(frozen=True, slots=True)
class Code:
    """Lines of one block of code. `before` are the lines above in the same block; `begins` it, or goes on."""

    text: str
    language: str
    before: str = ""
    begins: bool = True
    indent: int = 0


Block = Prose | Code


def tail(block: Block, most: int) -> Block:
    """The end of a block of more than `most` characters, from the beginning of a line or a word on."""
    if len(block.text) <= most:
        return block
    cut = block.text[-most:]
    place = max(cut.find("\n"), cut.find(" ") if "\n" not in cut else -1)
    return replace(block, text=cut[place + 1 :])


@dataclass(frozen=True, slots=True)
class _Fence:
    indent: str
    mark: str
    language: str


class Blocks:
    """Takes text in pieces of any size and gives the blocks that are finished."""

    def __init__(self) -> None:
        self._rest = ""  # the line that has no end yet
        self._prose: list[str] = []
        self._prose_size = 0
        self._fence: _Fence | None = None
        self._code: list[str] = []
        self._in_list = False

    def feed(self, text: str) -> list[Block]:
        """The blocks that this piece finishes."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [block for line in lines for block in self._line(line)]

    def close(self) -> list[Block]:
        """What was open."""
        rest, self._rest = self._rest, ""
        return [*(self._line(rest) if rest else []), *self._flush()]

    def open(self) -> Block | None:
        """What may still change; None where there is nothing."""
        if self._fence is not None:
            return self._code_block([self._rest]) if self._rest else None
        text = "\n".join([*self._prose, self._rest])
        return self._prose_block(text) if text.strip() else None

    def _line(self, line: str) -> list[Block]:
        if self._fence is not None:
            if _closes(self._fence, line):
                self._fence, self._code = None, []
                return []
            block = self._code_block([line])
            self._code.append(line)
            return [block]
        opening = _FENCE.match(line)
        if opening is not None:
            found = self._flush()
            language = opening[3].split()[0] if opening[3].split() else ""
            self._fence = _Fence(opening[1], opening[2], language)
            return found
        if not line.strip():
            return self._flush()
        found = self._flush() if self._prose_size > MAX_OPEN else []
        self._prose.append(line)
        self._prose_size += len(line)
        return found

    def _flush(self) -> list[Block]:
        prose, self._prose, self._prose_size = self._prose, [], 0
        if not prose:
            return []
        block = self._prose_block("\n".join(prose))
        if _LIST.match(prose[0]):
            self._in_list = True
        elif not prose[0].startswith((" ", "\t")):
            self._in_list = False
        return [block]

    def _prose_block(self, text: str) -> Prose:
        """What is indented after a list belongs to the list, and is no code."""
        first = text.split("\n", 1)[0]
        indent = len(first) - len(first.lstrip(" ")) if self._in_list else 0
        if not indent:
            return Prose(text)
        return Prose("\n".join(_unindented(line, indent) for line in text.split("\n")), indent)

    def _code_block(self, lines: list[str]) -> Code:
        fence = self._fence
        assert fence is not None
        indent = len(fence.indent)
        text = "\n".join(_unindented(line, indent) for line in lines)
        before = "\n".join(_unindented(line, indent) for line in self._code[-100:])
        return Code(text, fence.language, before, not self._code, indent)


def _closes(fence: _Fence, line: str) -> bool:
    text = line.strip(" \t>")
    return len(text) >= len(fence.mark) and not text.strip(fence.mark[0])


def _unindented(line: str, indent: int) -> str:
    return line[indent:] if not line[:indent].strip(" \t>") else line.lstrip(" ")
