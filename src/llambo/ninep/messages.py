"""The messages of 9P2000 as plain values: intro(5) of the Plan 9 manual, section 5, in dataclasses.

T-messages go from client to server, R-messages back with the same tag. Text is `str`; bytes that are no UTF-8 are kept
as surrogate escapes, so that every message can be written again as it came. Knows nothing of their form on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = "9P2000"
UNKNOWN_VERSION: Final = "unknown"
MIN_MSIZE: Final = 4096
MAX_MSIZE: Final = 1 << 20
MAX_NAMES: Final = 16  # of one Twalk
MAX_OFFSET: Final = (1 << 63) - 1
IO_HEADER_BYTES: Final = 24  # room that clients leave for the header of a read or a write
READ_HEADER_BYTES: Final = 11  # what an Rread really has beside its data

NOTAG: Final = 0xFFFF
NOFID: Final = 0xFFFFFFFF

QTDIR: Final = 0x80
QTAPPEND: Final = 0x40
QTEXCL: Final = 0x20
QTAUTH: Final = 0x08
QTTMP: Final = 0x04
QTFILE: Final = 0x00

DMDIR: Final = 0x80000000
DMAPPEND: Final = 0x40000000
DMEXCL: Final = 0x20000000
DMTMP: Final = 0x04000000

OREAD: Final = 0
OWRITE: Final = 1
ORDWR: Final = 2
OEXEC: Final = 3
OTRUNC: Final = 0x10
ORCLOSE: Final = 0x40

KEEP_1: Final = 0xFF  # in a Twstat: leave this field as it is
KEEP_2: Final = 0xFFFF
KEEP_4: Final = 0xFFFFFFFF
KEEP_8: Final = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Qid:
    """The server's identity of a file: `path` is never reused, `version` grows when the content changes."""

    type: int
    version: int
    path: int


@dataclass(frozen=True, slots=True)
class Stat:
    """A directory entry: stat(5). Times in seconds since 1970, `length` in bytes and 0 for what is made when read."""

    name: str
    qid: Qid
    mode: int
    length: int = 0
    atime: int = 0
    mtime: int = 0
    uid: str = ""
    gid: str = ""
    muid: str = ""
    type: int = 0
    dev: int = 0

    @property
    def is_directory(self) -> bool:
        """Whether it can be walked into."""
        return bool(self.mode & DMDIR)


UNCHANGED: Final = Stat(  # what a Twstat that changes nothing holds
    "", Qid(KEEP_1, KEEP_4, KEEP_8), KEEP_4, KEEP_8, KEEP_4, KEEP_4, type=KEEP_2, dev=KEEP_4
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tversion:
    """Begins a session: the largest message in bytes and the protocol that the client would speak."""

    tag: int
    msize: int
    version: str


@dataclass(frozen=True, slots=True)
class Rversion:
    """What will be spoken."""

    tag: int
    msize: int
    version: str


@dataclass(frozen=True, slots=True)
class Tauth:
    """Asks for a file to authenticate on."""

    tag: int
    afid: int
    uname: str
    aname: str


@dataclass(frozen=True, slots=True)
class Rauth:
    """The file to authenticate on."""

    tag: int
    aqid: Qid


@dataclass(frozen=True, slots=True)
class Tattach:
    """Makes `fid` the root of the tree that `aname` names."""

    tag: int
    fid: int
    afid: int
    uname: str
    aname: str


@dataclass(frozen=True, slots=True)
class Rattach:
    """The root."""

    tag: int
    qid: Qid


@dataclass(frozen=True, slots=True)
class Rerror:
    """The refusal of any request."""

    tag: int
    ename: str


@dataclass(frozen=True, slots=True)
class Tflush:
    """Ends the request of tag `oldtag`."""

    tag: int
    oldtag: int


@dataclass(frozen=True, slots=True)
class Rflush:
    """No answer to the flushed request follows."""

    tag: int


@dataclass(frozen=True, slots=True)
class Twalk:
    """Makes `newfid` what is reached from `fid` by `names`; no names at all copy it."""

    tag: int
    fid: int
    newfid: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rwalk:
    """What was reached, name by name; fewer than asked for mean that `newfid` was not made."""

    tag: int
    qids: tuple[Qid, ...]


@dataclass(frozen=True, slots=True)
class Topen:
    """Opens the file for reading or writing."""

    tag: int
    fid: int
    mode: int


@dataclass(frozen=True, slots=True)
class Ropen:
    """It is open; `iounit` bytes at most are read or written in one piece, 0 where nothing is promised."""

    tag: int
    qid: Qid
    iounit: int


@dataclass(frozen=True, slots=True)
class Tcreate:
    """Makes and opens a file in the directory `fid`, which then is that file."""

    tag: int
    fid: int
    name: str
    perm: int
    mode: int


@dataclass(frozen=True, slots=True)
class Rcreate:
    """It was made and is open."""

    tag: int
    qid: Qid
    iounit: int


@dataclass(frozen=True, slots=True)
class Tread:
    """Asks for `count` bytes at most."""

    tag: int
    fid: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Rread:
    """The bytes; none at the end of the file."""

    tag: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Twrite:
    """Writes `data`."""

    tag: int
    fid: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Rwrite:
    """How many bytes were taken."""

    tag: int
    count: int


@dataclass(frozen=True, slots=True)
class Tclunk:
    """Gives the fid back."""

    tag: int
    fid: int


@dataclass(frozen=True, slots=True)
class Rclunk:
    """The fid is free."""

    tag: int


@dataclass(frozen=True, slots=True)
class Tremove:
    """Removes the file and gives the fid back, also when the removal is refused."""

    tag: int
    fid: int


@dataclass(frozen=True, slots=True)
class Rremove:
    """It is gone."""

    tag: int


@dataclass(frozen=True, slots=True)
class Tstat:
    """Asks for the directory entry of a file."""

    tag: int
    fid: int


@dataclass(frozen=True, slots=True)
class Rstat:
    """The directory entry."""

    tag: int
    stat: Stat


@dataclass(frozen=True, slots=True)
class Twstat:
    """Changes the directory entry in all but its `KEEP` fields and empty texts."""

    tag: int
    fid: int
    stat: Stat


@dataclass(frozen=True, slots=True)
class Rwstat:
    """It was changed."""

    tag: int


TMessage = (
    Tversion | Tauth | Tattach | Tflush | Twalk | Topen | Tcreate | Tread | Twrite | Tclunk | Tremove | Tstat | Twstat
)
RMessage = (
    Rversion | Rauth | Rattach | Rerror | Rflush | Rwalk | Ropen | Rcreate | Rread | Rwrite | Rclunk | Rremove | Rstat
    | Rwstat
)  # fmt: skip
Message = TMessage | RMessage
