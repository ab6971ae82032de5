"""Who listens on a Unix socket, asked before anything is said to it.

The default path lies in a directory that everybody may write to: whoever binds it first would be told every prompt.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Protocol

from llambo.core.errors import Refused


class _Connected(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        """See `socket.socket`."""
        ...


def check_peer(connected: _Connected, path: str) -> None:
    """Passes when the Unix socket at `path` belongs to this user or to root, or where the system cannot tell.

    Raises: `Refused`, `OSError`.
    """
    uid = _uid_of_peer(connected)
    if uid is not None and uid not in (0, os.geteuid()):
        raise Refused(f"{path} is served by another user (uid {uid}): nothing was sent; choose another path")


def _uid_of_peer(connected: _Connected) -> int | None:
    """The effective user of the process that listens, at the time when it began to."""
    uid: int | None = None
    if sys.platform == "linux":
        _, uid, _ = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    elif sys.platform == "darwin":
        # unix(4): SOL_LOCAL 0, LOCAL_PEERCRED 1, which Python does not name; struct xucred begins with version and uid.
        _, uid = struct.unpack_from("II", connected.getsockopt(0, 1, 76))
    return uid
