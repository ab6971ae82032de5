"""What clients do with a file server, as generators: each yields a request and is sent its answer.

A generator knows no sockets; the asynchronous and the blocking client run the same ones. When an answer is an Rerror,
or the caller gives up, the error is thrown into the generator, which gives back the fids it holds.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from llambo.core.errors import BadRequest, NotFound, Unreachable
from llambo.ninep import messages as m
from llambo.ninep.client_session import Build, ClientSession
from llambo.ninep.errors import NOT_A_DIRECTORY, NOT_FOUND, FileError
from llambo.ninep.messages import QTDIR, Qid, RMessage, Stat
from llambo.ninep.wire import decode_directory

T = TypeVar("T")
Call = Generator[Build, RMessage, T]


@dataclass(slots=True)
class OpenFile:
    """An open fid. `offset` is where the next read or write without an offset begins; `piece_bytes` the most of one."""

    fid: int
    qid: Qid
    piece_bytes: int
    offset: int = 0


def negotiate(session: ClientSession) -> Call[None]:
    """Agrees on 9P2000 and a message size no larger than the session's.

    Raises: `Unreachable` when the server speaks something else.
    """
    answer = yield lambda tag: m.Tversion(m.NOTAG, session.msize, m.VERSION)
    assert isinstance(answer, m.Rversion)
    if answer.version != m.VERSION or not m.IO_HEADER_BYTES < answer.msize <= session.msize:
        raise Unreachable(f"the server offers {answer.version!r} with messages of {answer.msize} bytes, not 9P2000")
    session.agreed(answer.msize)


def attach(session: ClientSession, uname: str, aname: str) -> Call[int]:
    """The fid of the root that `aname` names. Raises: what the server refuses it with."""
    fid = session.new_fid()
    yield lambda tag: m.Tattach(tag, fid, m.NOFID, uname, aname)
    return fid


def split_path(path: str) -> tuple[str, ...]:
    """The names in `path`, which always begins at the root; "." and empty names are left out."""
    return tuple(name for name in path.split("/") if name and name != ".")


def walk(session: ClientSession, root: int, path: str) -> Call[int]:
    """A new fid for the file at `path`.

    Raises: `NotFound`, or what the server says of the first name.
    """
    names = split_path(path)
    start = root
    fid = session.new_fid()
    while True:
        part, names = names[: m.MAX_NAMES], names[m.MAX_NAMES :]
        yield from _walk_part(session, start, fid, part, path)
        if not names:
            return fid
        start = fid


def _walk_part(session: ClientSession, start: int, fid: int, names: tuple[str, ...], path: str) -> Call[None]:
    try:
        answer = yield lambda tag: m.Twalk(tag, start, fid, names)
        assert isinstance(answer, m.Rwalk)
        if len(answer.qids) < len(names):
            is_file = bool(answer.qids) and not answer.qids[-1].type & QTDIR
            raise FileError(f"{path}: {NOT_A_DIRECTORY}") if is_file else NotFound(f"{path}: {NOT_FOUND}")
    except BaseException as error:
        if start == fid:  # a walk that failed made no fid, but one in several parts holds it since the first
            session.discard(fid)
        if isinstance(error, NotFound) and path not in error.message:
            raise NotFound(f"{path}: {error.message}") from None
        raise


def open_file(session: ClientSession, root: int, path: str, mode: int) -> Call[OpenFile]:
    """Walks to `path` and opens it. Raises: as `walk`, and what the server refuses it with."""
    fid = yield from walk(session, root, path)
    try:
        answer = yield lambda tag: m.Topen(tag, fid, mode)
    except BaseException:
        session.discard(fid)
        raise
    assert isinstance(answer, m.Ropen)
    room = session.msize - m.IO_HEADER_BYTES
    return OpenFile(fid, answer.qid, min(answer.iounit, room) or room)


def read(file: OpenFile, count: int | None, offset: int | None) -> Call[bytes]:
    """One read of at most `count` bytes (default: as many as a message holds); b"" is the end of the file."""
    wanted = file.piece_bytes if count is None else min(count, file.piece_bytes)
    at = file.offset if offset is None else offset
    answer = yield lambda tag: m.Tread(tag, file.fid, at, wanted)
    assert isinstance(answer, m.Rread)
    if offset is None:
        file.offset = at + len(answer.data)
    return answer.data


def one_read(file: OpenFile) -> Build:
    """A read at the present offset of as much as a message holds."""
    return lambda tag: m.Tread(tag, file.fid, file.offset, file.piece_bytes)


def read_all(file: OpenFile) -> Call[bytes]:
    """Everything from here to the end of the file."""
    pieces = []
    while piece := (yield from read(file, None, None)):
        pieces.append(piece)
    return b"".join(pieces)


def write(file: OpenFile, data: bytes) -> Call[int]:
    """Writes all of `data`, in one message where it fits; returns its length.

    Raises: `FileError` when the server takes no more.
    """
    done = 0
    while done < len(data):
        piece = data[done : done + file.piece_bytes]
        answer = yield lambda tag, piece=piece: m.Twrite(tag, file.fid, file.offset, piece)  # type: ignore[misc]
        assert isinstance(answer, m.Rwrite)
        if not 0 < answer.count <= len(piece):
            raise FileError(f"the server took {answer.count} of {len(piece)} bytes")
        done += answer.count
        file.offset += answer.count
    return done


def clunk(file: OpenFile) -> Call[None]:
    """Closes; returns once the server has."""
    yield lambda tag: m.Tclunk(tag, file.fid)


def read_file(session: ClientSession, root: int, path: str) -> Call[bytes]:
    """The whole content of a file."""
    file = yield from open_file(session, root, path, m.OREAD)
    try:
        return (yield from read_all(file))
    finally:
        session.discard(file.fid)


def write_file(session: ClientSession, root: int, path: str, data: bytes, mode: int) -> Call[int]:
    """Writes `data` to a file from its beginning; returns its length once the server has closed it."""
    file = yield from open_file(session, root, path, mode)
    try:
        written = yield from write(file, data)
    except BaseException:
        session.discard(file.fid)
        raise
    yield from clunk(file)
    return written


def stat(session: ClientSession, root: int, path: str) -> Call[Stat]:
    """The directory entry of a file."""
    fid = yield from walk(session, root, path)
    try:
        answer = yield lambda tag: m.Tstat(tag, fid)
    finally:
        session.discard(fid)
    assert isinstance(answer, m.Rstat)
    return answer.stat


def list_directory(session: ClientSession, root: int, path: str) -> Call[list[Stat]]:
    """The entries of a directory in the server's order, or the file's own where it is none."""
    file = yield from open_file(session, root, path, m.OREAD)
    try:
        if file.qid.type & QTDIR:
            return decode_directory((yield from read_all(file)))
        answer = yield lambda tag: m.Tstat(tag, file.fid)
        assert isinstance(answer, m.Rstat)
        return [answer.stat]
    finally:
        session.discard(file.fid)


def remove(session: ClientSession, root: int, path: str) -> Call[None]:
    """Removes a file. Raises: as `walk`, and what the server refuses it with."""
    fid = yield from walk(session, root, path)
    yield lambda tag: m.Tremove(tag, fid)


def mode_of(mode: str | int) -> int:
    """The open mode that `mode` names: "r", "w" (truncates), "a" (does not) or "rw", or a number of the protocol.

    Raises: `BadRequest`.
    """
    modes = {"r": m.OREAD, "w": m.OWRITE | m.OTRUNC, "a": m.OWRITE, "rw": m.ORDWR}
    if isinstance(mode, int):
        return mode
    if mode not in modes:
        raise BadRequest(f"{mode!r} is no mode of a file: {', '.join(modes)}")
    return modes[mode]
