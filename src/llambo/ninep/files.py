"""Ready-made nodes: directories, texts made when opened, control files and clone files.

Each takes the functions that do the work, plain or coroutines. Numbers, grammars and sentences are theirs; what is here
knows pieces, offsets and ends of files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from llambo.core.errors import BadRequest, NotFound, Refused
from llambo.ninep.errors import NOT_FOUND, PERMISSION
from llambo.ninep.messages import OWRITE
from llambo.ninep.tree import READABLE, WRITABLE, Data, Directory, Handle, Node, Result

Text = str | bytes
Render = Callable[[], Result[Text]]
"""Makes the content of a file at the moment of its opening."""
Command = Callable[[str], Result[None]]
"""Does what one line says and returns once it has taken effect; raises a `LlamboError` that becomes the Rerror."""

AnyData = TypeVar("AnyData", bytes, memoryview)

_VIEW_BYTES = 64 << 10
_CHARACTER_BYTES = 4  # the longest character of UTF-8


class StaticDirectory(Directory):
    """A directory whose nodes are set when it is made, and by `add` and `discard` later."""

    def __init__(self, name: str, nodes: Iterable[Node] = (), perm: int = 0o555, **facts: Any) -> None:
        super().__init__(name, perm, **facts)
        self._nodes = {node.name: node for node in nodes}

    def add(self, node: Node) -> None:
        """Puts `node` in, in the place of one of the same name."""
        self._nodes[node.name] = node
        self.version += 1

    def discard(self, name: str) -> None:
        """Takes the node of that name out; passes when there is none."""
        if self._nodes.pop(name, None) is not None:
            self.version += 1

    def lookup(self, name: str) -> Node:
        """The node of that name. Raises: `NotFound`."""
        try:
            return self._nodes[name]
        except KeyError:
            raise NotFound(NOT_FOUND) from None

    def entries(self) -> Iterable[Node]:
        """What is in it now."""
        return self._nodes.values()


class LiveDirectory(Directory):
    """A directory that mirrors a mapping of somebody else's: a name looked up becomes a node, once as long as it lives.

    `names` gives what is there now, `make` the node of a name that is. The node is kept, so that its qid stays the
    same, until the name is gone or stands for another value (compared by identity).
    """

    def __init__(
        self, name: str, names: Callable[[], Mapping[str, object]], make: Callable[[str], Node], **facts: Any
    ) -> None:
        super().__init__(name, **facts)
        self._names = names
        self._make = make
        self._known: dict[str, tuple[object, Node]] = {}

    def lookup(self, name: str) -> Node:
        """The node of that name. Raises: `NotFound`."""
        there = self._names()
        if name not in there:
            self._known.pop(name, None)
            raise NotFound(NOT_FOUND)
        return self._node(name, there[name])

    def entries(self) -> Iterable[Node]:
        """What is in it now."""
        there = self._names()
        for name in self._known.keys() - there.keys():
            del self._known[name]
        return [self._node(name, value) for name, value in there.items()]

    def _node(self, name: str, value: object) -> Node:
        known = self._known.get(name)
        if known is None or known[0] is not value:
            known = self._known[name] = (value, self._make(name))
        return known[1]


class TextHandle(Handle):
    """A text as it was when the file was opened; `write` does what is written."""

    __slots__ = ("_text", "_write")

    def __init__(self, text: bytes, write: Callable[[int, bytes], Result[int | None]] | None = None) -> None:
        self._text = text
        self._write = write

    def read(self, offset: int, count: int) -> Data:
        """The bytes there, whole characters as long as one fits."""
        end = offset + count
        is_last = end >= len(self._text)
        if count < _VIEW_BYTES:
            return cut_text(self._text[offset:end], is_last)
        return cut_text(memoryview(self._text)[offset:end], is_last)

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        """Hands on what is written."""
        if self._write is None:
            raise Refused(PERMISSION)
        return self._write(offset, data)


def cut_text(data: AnyData, is_last: bool) -> AnyData:
    """`data` without the beginning of a character at its end that is not all there, unless nothing else would be left.

    What is no UTF-8 stays as it is. `is_last` says that nothing follows.
    """
    if is_last or not data or data[-1] < 0x80:
        return data
    for back in range(1, min(_CHARACTER_BYTES, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character, whose length it tells
            length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
            return data if length <= back else data[:-back] or data
    return data


class TextFile(Node):
    """A file whose text `render` makes at each opening; with `write` it takes what is written, piece by piece.

    `write(offset, data)` returns how many bytes it took, None for all of them.
    """

    def __init__(
        self,
        name: str,
        render: Render | None,
        write: Callable[[int, bytes], Result[int | None]] | None = None,
        perm: int | None = None,
        **facts: Any,
    ) -> None:
        usual = (READABLE if render else 0) | (WRITABLE & 0o200 if write else 0)
        super().__init__(name, usual if perm is None else perm, **facts)
        self._render = render
        self._write = write

    def open(self, mode: int) -> Result[Handle]:
        """Takes the text as it is now."""
        if self._render is None or mode & 3 == OWRITE:
            return TextHandle(b"", self._write)
        text = self._render()
        return self._open_later(text) if isinstance(text, Awaitable) else TextHandle(to_bytes(text), self._write)

    async def _open_later(self, text: Awaitable[Text]) -> Handle:
        return TextHandle(to_bytes(await text), self._write)


def to_bytes(text: Text) -> bytes:
    """What a reader gets of `text`."""
    return text.encode("utf-8", "replace") if isinstance(text, str) else text


class ControlFile(TextFile):
    """A file of commands, one a line. A write may hold several: they run in order, the first that fails ends it.

    `render` says what a read gives (the grammar, the settings).
    """

    def __init__(self, name: str, run: Command, render: Render | None = None, perm: int | None = None, **facts: Any):
        super().__init__(name, render, lambda offset, data: run_lines(run, data), perm, **facts)


def run_lines(run: Command, data: bytes) -> Result[None]:
    """Runs each line of `data` that is not empty; as long as every command is plain, at once.

    Raises: `BadRequest` for what is no text, and what `run` raises.
    """
    try:
        lines = [line for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise BadRequest(f"a command is UTF-8 text, byte {error.start} is none") from None
    for index, line in enumerate(lines):
        outcome = run(line.strip())
        if isinstance(outcome, Awaitable):
            return _run_rest(outcome, run, lines[index + 1 :])
    return None


async def _run_rest(outcome: Awaitable[None], run: Command, lines: list[str]) -> None:
    await outcome
    for line in lines:
        further = run(line.strip())
        if isinstance(further, Awaitable):
            await further


class CloneFile(Node):
    """A file whose opening makes something new: the fid then is the file that `make` returns, and is open on it.

    `make` gives the new thing's own file (most often its `ctl`), whose `open` is called with the mode of the clone's.
    `on_close` is told when the fid is given back, after that file's own close.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Result[Node]],
        on_close: Callable[[Node], Result[None]] | None = None,
        perm: int = 0o666,
        **facts: Any,
    ) -> None:
        super().__init__(name, perm, **facts)
        self._make = make
        self._on_close = on_close

    async def open(self, mode: int) -> Handle:
        """Makes the new thing and opens its file."""
        made = self._make()
        node = await made if isinstance(made, Awaitable) else made
        inner: Handle | None = None
        try:
            opening = node.open(mode)
            inner = await opening if isinstance(opening, Awaitable) else opening
        finally:
            if inner is None and self._on_close is not None:
                closing = self._on_close(node)
                if isinstance(closing, Awaitable):
                    await closing
        return _CloneHandle(node, inner, self._on_close)


class _CloneHandle(Handle):
    __slots__ = ("_inner", "_on_close", "node")

    def __init__(self, node: Node, inner: Handle, on_close: Callable[[Node], Result[None]] | None) -> None:
        self.node = node
        self._inner = inner
        self._on_close = on_close

    def read(self, offset: int, count: int) -> Result[Data]:
        return self._inner.read(offset, count)

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        return self._inner.write(offset, data)

    async def close(self) -> None:
        assert self.node is not None
        for outcome in (self._inner.close(), self._on_close(self.node) if self._on_close is not None else None):
            if isinstance(outcome, Awaitable):
                await outcome
