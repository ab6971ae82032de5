"""The end of connections whose client does not read: it may be slow, but not stand still.

Owns one timer per connection, which runs only while something waits to be read.
"""

from __future__ import annotations

import asyncio
import logging

from llambo.core.unread import unread_bytes

_log = logging.getLogger("llambo.gateway")


class Unread:
    """Aborts `transport` once its client has taken nothing for `limit_s` seconds, while it is watched."""

    def __init__(self, transport: asyncio.Transport, limit_s: float) -> None:
        self._transport = transport
        self._limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """From now on, until all is taken or `stop`; nothing may be written meanwhile."""
        if self._timer is None and self._transport.get_write_buffer_size():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._limit_s, self._look, unread_bytes(self._transport))

    def stop(self) -> None:
        """Ends the watch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, unread_before: int) -> None:
        self._timer = None
        if unread_bytes(self._transport) < unread_before:
            self.watch()
            return
        _log.warning("a client has left its answer unread for %g s: dropped", self._limit_s)
        self._transport.abort()
