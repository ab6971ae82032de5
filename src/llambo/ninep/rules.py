"""What may be asked of a fid: names, modes, offsets, and the changes of a Twstat. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from llambo.core.errors import Refused
from llambo.ninep import messages as m
from llambo.ninep.errors import BAD_USE_OF_FID, ILLEGAL_MODE, ILLEGAL_NAME, INVALID, PERMISSION, FileError
from llambo.ninep.messages import RMessage, TMessage
from llambo.ninep.requests import Fid
from llambo.ninep.tree import EXECUTABLE, READABLE, WRITABLE, Node

ACCESS_BITS: Final = 3  # of a mode: OREAD, OWRITE, ORDWR or OEXEC
_READING: Final = frozenset((m.OREAD, m.ORDWR, m.OEXEC))
_WRITING: Final = frozenset((m.OWRITE, m.ORDWR))


PERFORMED: Final = frozenset((m.Tread, m.Twrite, m.Twalk, m.Topen, m.Tclunk, m.Tremove, m.Tstat, m.Twstat, m.Tcreate))
"""Requests on a fid, which the rules are about."""


def check(message: TMessage, fid: Fid) -> RMessage | None:
    """Passes what may be done, with None, or with the answer where there is nothing to do.

    Raises: `FileError`, `Refused`.
    """
    match message:
        case m.Tread(tag, _, offset, count):
            if fid.mode not in _READING:
                raise FileError(BAD_USE_OF_FID)
            check_offset(offset)
            return None if count else m.Rread(tag, b"")
        case m.Twrite(tag, _, offset, data):
            if fid.mode not in _WRITING:
                raise FileError(BAD_USE_OF_FID)
            check_offset(offset)
            return None if data else m.Rwrite(tag, 0)  # libixp ends each write with one
        case m.Topen(mode=mode):
            if fid.mode is not None:
                raise FileError(BAD_USE_OF_FID)
            check_mode(mode, fid.node)
        case m.Twstat(tag, stat=stat):
            if not is_harmless(stat, fid.node):
                raise Refused(PERMISSION)
            return m.Rwstat(tag)
        case m.Tcreate():
            raise Refused(PERMISSION)
    return None


def check_walk(message: m.Twalk, fid: Fid) -> None:
    """Passes a walk from `fid`. Raises: `FileError`."""
    if fid.mode is not None:
        raise FileError(BAD_USE_OF_FID)
    check_names(message.names)


def check_names(names: tuple[str, ...]) -> None:
    """Passes the names of a walk. Raises: `FileError`."""
    if len(names) > m.MAX_NAMES:
        raise FileError(f"{INVALID}: a walk has {m.MAX_NAMES} names at most, not {len(names)}")
    if not all(map(is_name, names)):
        raise FileError(ILLEGAL_NAME)


def check_mode(mode: int, node: Node) -> None:
    """Passes a mode that `node` may be opened with. Raises: `FileError`, `Refused`."""
    if mode & ~(ACCESS_BITS | m.OTRUNC | m.ORCLOSE):
        raise FileError(ILLEGAL_MODE)
    access = mode & ACCESS_BITS
    wanted = (READABLE, WRITABLE, READABLE, EXECUTABLE)[access]
    writes = access in {m.OWRITE, m.ORDWR} or bool(mode & m.OTRUNC)
    if not node.perm & wanted or mode & m.ORCLOSE:
        raise Refused(PERMISSION)
    if writes and (node.is_directory or not node.perm & WRITABLE):
        raise Refused(PERMISSION)


def check_offset(offset: int) -> None:
    """Passes an offset that a file can have. Raises: `FileError`."""
    if offset > m.MAX_OFFSET:
        raise FileError(f"{INVALID}: offset {offset} is beyond {m.MAX_OFFSET}")


def is_name(name: str) -> bool:
    """Whether a file can be called so, or ".."."""
    return bool(name) and name != "." and "/" not in name and "\0" not in name and is_text(name)


def is_text(text: str) -> bool:
    """Whether it came as valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_harmless(wanted: m.Stat, node: Node) -> bool:
    """Whether a Twstat changes nothing but length (to 0) and times, and so is what `echo x > file` sends of itself."""
    kept = m.UNCHANGED
    asked: Iterable[bool] = (
        wanted.name != kept.name, wanted.mode != kept.mode, wanted.uid != kept.uid, wanted.gid != kept.gid,
        wanted.muid != kept.muid, wanted.type != kept.type, wanted.dev != kept.dev, wanted.qid != kept.qid,
    )  # fmt: skip
    if any(asked):
        return False
    is_sync = (wanted.length, wanted.atime, wanted.mtime) == (kept.length, kept.atime, kept.mtime)
    return is_sync or (wanted.length in {0, kept.length} and not node.is_directory and bool(node.perm & WRITABLE))
