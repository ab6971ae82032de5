"""How much of what was written to a client it has not read yet: what tells a slow reader from one that stands still."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios


def unread_bytes(transport: asyncio.Transport) -> int:
    """What waits in the transport's buffer and in the kernel's; on a Unix socket with what its messages take beside.

    The kernel's share counts: it takes more from us only once a slow reader has emptied most of that.
    """
    queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)
