"""Tells a client that has gone from one that has only finished speaking.

A client that shuts down its write side (`nc -N`) still wants its answers; one that has closed wants nothing more. Both
look like the end of input. On a Unix socket poll(2) knows: POLLHUP means that both directions are closed. TCP cannot
tell, and neither can systems without epoll; there a failing write does.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable


def has_hung_up(descriptor: int) -> bool:
    """Whether the peer of a stream socket has closed both directions."""
    poll = select.poll()
    poll.register(descriptor, 0)  # POLLHUP and POLLERR are always told
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


class HangupWatch:
    """Calls back when the peer of a socket that nobody reads from at the moment hangs up."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Joins the running loop."""
        if hasattr(select, "epoll"):
            self._loop = asyncio.get_running_loop()
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._told)

    def stop(self) -> None:
        """Leaves the loop; no callback comes any more."""
        if self._epoll is not None and self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._callbacks.clear()

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Watches until `unwatch` or the one call of `callback`."""
        if self._epoll is None:
            return
        with contextlib.suppress(FileExistsError):
            self._epoll.register(descriptor, 0)  # EPOLLHUP and EPOLLERR are always told
        self._callbacks[descriptor] = callback

    def unwatch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Ends `watch`; does nothing where the number belongs to another socket by now."""
        if self._callbacks.get(descriptor) == callback:
            self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        del self._callbacks[descriptor]
        if self._epoll is not None:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                return  # closed already: the kernel has forgotten it before us

    def _told(self) -> None:
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                self._forget(descriptor)
                callback()
