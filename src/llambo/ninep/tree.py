"""What an application gives to be served: nodes that can be looked up and opened, and the handles of open files.

Pure. Every method that may have to wait may be plain or a coroutine (`Result[T]`): plain ones are done at once,
coroutines run in their order to their first wait, and being cancelled there is Tflush, clunk or hang-up. The session
has checked before it calls: names are legal, the mode is one that `perm` allows, the fid is open for what is asked,
counts fit into a message. `llambo.ninep.files` and `llambo.ninep.streams` have ready-made nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from llambo.core.errors import NotFound, Refused
from llambo.ninep.errors import BAD_DIRECTORY_OFFSET, NOT_A_DIRECTORY, NOT_FOUND, PERMISSION, FileError
from llambo.ninep.messages import DMDIR, Qid, Stat
from llambo.ninep.wire import encode_stat

T = TypeVar("T")
Result: TypeAlias = T | Awaitable[T]

Data = bytes | memoryview
"""What a read gives; a view spares a copy of what is large, and its bytes must not change any more."""

READABLE = 0o444
WRITABLE = 0o222
EXECUTABLE = 0o111

_DIRECTORY_READ_BYTES = 64 << 10  # of entries at a time: a large directory must not hold up the loop

_next_path = itertools.count(1).__next__


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: `address` for people, and what the system says of a Unix socket's client, else None."""

    address: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None


class Handle:
    """An open file. A subclass defines what its node's `perm` promises; the rest is refused."""

    __slots__ = ()

    node: Node | None = None
    """What the fid stands for from now on; None leaves it as it is. A clone file gives the new thing's own file."""

    def read(self, offset: int, count: int) -> Result[Data]:
        """At most `count` (never 0) bytes; b"" is the end of the file, also for every later read."""
        raise Refused(PERMISSION)

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        """Takes `data` (never empty) and returns once it has taken effect; None is all of it."""
        raise Refused(PERMISSION)

    def close(self) -> Result[None]:
        """The fid is given back or its client is gone; reads and writes have ended. Must not fail, is not cancelled."""


class Node:
    """A file or directory. `perm` is three octal digits; `path` is unique in the process and never used again."""

    def __init__(self, name: str, perm: int, *, owner: str = "llambo", mtime: int = 0) -> None:
        self.name = name
        self.perm = perm
        self.owner = owner
        self.mtime = mtime
        self.version = 0  # to be raised when the content changes
        self.path = _next_path()

    is_directory = False

    @property
    def qid(self) -> Qid:
        """The identity that clients see."""
        return Qid(0, self.version & 0xFFFFFFFF, self.path)

    @property
    def length(self) -> int:
        """Bytes that a read would give, 0 where the content is made when read."""
        return 0

    def stat(self) -> Stat:
        """The directory entry."""
        return Stat(
            self.name, self.qid, self.perm, self.length, self.mtime, self.mtime, self.owner, self.owner, self.owner
        )

    def open(self, mode: int) -> Result[Handle]:
        """Opens; `mode` is one of OREAD, OWRITE, ORDWR, OEXEC, perhaps with OTRUNC."""
        raise Refused(PERMISSION)

    def lookup(self, name: str) -> Result[Node]:
        """The node of that name inside; ".." is never asked for.

        Raises: `NotFound`.
        """
        raise FileError(NOT_A_DIRECTORY)

    def remove(self) -> Result[None]:
        """Removes it; refused unless a subclass does it."""
        raise Refused(PERMISSION)


class Directory(Node):
    """A directory; a subclass defines `lookup` and `entries`."""

    is_directory = True

    def __init__(self, name: str, perm: int = 0o555, *, owner: str = "llambo", mtime: int = 0) -> None:
        super().__init__(name, perm, owner=owner, mtime=mtime)

    @property
    def qid(self) -> Qid:
        """The identity that clients see."""
        return Qid(0x80, self.version & 0xFFFFFFFF, self.path)

    def stat(self) -> Stat:
        """The directory entry; a directory's length is 0."""
        owner = self.owner
        return Stat(self.name, self.qid, self.perm | DMDIR, 0, self.mtime, self.mtime, owner, owner, owner)

    def lookup(self, name: str) -> Result[Node]:
        """The node of that name; what `entries` has, unless a subclass knows a faster way.

        Raises: `NotFound`.
        """
        for node in self.entries():
            if node.name == name:
                return node
        raise NotFound(NOT_FOUND)

    def entries(self) -> Iterable[Node]:
        """What is in it now."""
        return ()

    def open(self, mode: int) -> Handle:
        """Opens it for reading."""
        return DirectoryHandle(self)


class DirectoryHandle(Handle):
    """Reads a directory in whole entries. What is in it is looked up when reading begins at offset 0."""

    __slots__ = ("_directory", "_expected", "_nodes", "_unsent")

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._nodes: Iterable[Node] = ()
        self._unsent = b""
        self._expected = 0

    def read(self, offset: int, count: int) -> bytes:
        """As many whole entries as fit.

        Raises: `FileError` for an offset that is neither 0 nor where the last read ended.
        """
        if offset == 0:
            self._nodes = iter(tuple(self._directory.entries()))
            self._unsent = b""
        elif offset != self._expected:
            raise FileError(BAD_DIRECTORY_OFFSET)
        room = min(count, _DIRECTORY_READ_BYTES)
        parts = []
        used = 0
        while entry := self._unsent or self._next_entry():
            if used + len(entry) > room:
                self._unsent = entry
                break
            self._unsent = b""
            parts.append(entry)
            used += len(entry)
        self._expected = offset + used
        if self._unsent and not parts:
            raise FileError(f"invalid argument: the next entry has {len(self._unsent)} bytes, {count} were asked for")
        return b"".join(parts)

    def _next_entry(self) -> bytes:
        for node in self._nodes:
            return encode_stat(node.stat())
        return b""


Trail = tuple[Node, ...]
"""A node and what was walked through to reach it, root first."""

AttachCallback = Callable[[str, str, Peer], Result[Node]]
"""Called with uname (a claim, never identity), aname and peer; gives the root that this client may see, or raises."""


@dataclass(frozen=True, slots=True)
class Walked:
    """How far a walk came: a qid a name, and the trail of the last. `error` is why it came no further."""

    qids: tuple[Qid, ...]
    trail: Trail
    error: Exception | None = None


def walk(trail: Trail, names: tuple[str, ...]) -> Result[Walked]:
    """Goes from `trail` by `names`, at once where every lookup is plain. ".." of the root is the root."""
    qids: list[Qid] = []
    for index, name in enumerate(names):
        try:
            found = _step(trail, name)
        except Exception as error:
            return Walked(tuple(qids), trail, error)
        if isinstance(found, Awaitable):
            return _walk_on(trail, tuple(qids), found, names[index + 1 :])
        trail = found
        qids.append(found[-1].qid)
    return Walked(tuple(qids), trail)


def _step(trail: Trail, name: str) -> Result[Trail]:
    here = trail[-1]
    if not here.is_directory:
        raise FileError(NOT_A_DIRECTORY)
    if name == "..":
        return trail[:-1] or trail
    if not here.perm & EXECUTABLE:
        raise Refused(PERMISSION)
    node = here.lookup(name)
    return _after(trail, node) if isinstance(node, Awaitable) else (*trail, node)


async def _after(trail: Trail, node: Awaitable[Node]) -> Trail:
    return (*trail, await node)


async def _walk_on(trail: Trail, qids: tuple[Qid, ...], next_trail: Awaitable[Trail], rest: tuple[str, ...]) -> Walked:
    try:
        reached = await next_trail
    except Exception as error:
        return Walked(qids, trail, error)
    further = walk(reached, rest)
    if isinstance(further, Awaitable):
        further = await further
    return Walked((*qids, reached[-1].qid, *further.qids), further.trail, further.error)
