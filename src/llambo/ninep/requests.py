"""What a connection has under way: fids, requests, and what comes out of a session. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llambo.ninep.messages import MAX_MSIZE, TMessage
from llambo.ninep.tree import Handle, Node, Trail


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may have; sizes in bytes. `max_write_bytes` is of writes under way, together."""

    max_msize: int = MAX_MSIZE
    max_fids: int = 16384
    max_requests: int = 2048
    max_write_bytes: int = 32 << 20


@dataclass(slots=True, eq=False)
class Fid:
    """A client's name for a file. `mode` is None until it is open; `trail` is empty until a first walk has ended."""

    number: int
    trail: Trail = ()
    mode: int | None = None
    handle: Handle | None = None
    settling: Request | None = None  # the attach, walk or open that decides what the fid is
    waiting: list[Request] = field(default_factory=list)
    running: dict[Request, None] = field(default_factory=dict)  # in the order of their coming out
    last: Request | None = None  # the clunk or remove that waits for what is running
    is_released: bool = False  # the connection or the session is over

    @property
    def node(self) -> Node:
        """What it stands for."""
        return self.trail[-1]


@dataclass(slots=True, eq=False)
class Request:
    """A T-message to be performed on `fid`. A walk starts from `trail`, and `fid` is what it makes.

    The last two fields are the driver's.
    """

    message: TMessage
    fid: Fid
    flushes: list[int] = field(default_factory=list)
    is_cancelled: bool = False
    is_ended: bool = False
    is_silent: bool = False  # its tag means nothing any more: it ends without an answer
    trail: Trail = ()
    task: Any = None
    has_started: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """`request`, which came out before, is to end soon; how it ends is to be told as ever."""

    request: Request


@dataclass(frozen=True, slots=True)
class Release:
    """A handle whose client is gone is to be closed; nothing is to be told."""

    handle: Handle


Event = Request | Cancel | Release
