"""What programs that serve have in common: reporting their start, limits, signals.

The other end of a report is `launching`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from llambo.bridge.settings import BridgeSettings
    from llambo.core.config import Settings
    from llambo.core.errors import LlamboError


class Stoppable(Protocol):
    """Something that serves."""

    def request_stop(self) -> None:
        """Asks for an end once what goes on is over."""
        ...

    async def stop(self, drain_timeout_s: float, /) -> None:
        """Ends it, at once with 0."""
        ...


class Report:
    """Tells whoever started this process how the start goes, as JSON lines on a descriptor; None: nobody waits."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)  # our own children would keep the reader waiting

    @property
    def has_reader(self) -> bool:
        """Whether somebody may still read it."""
        return self._fd is not None

    def progress(self, **fields: Any) -> None:
        """Says how far the start is."""
        self._write({"progress": fields})

    def ready(self, **fields: Any) -> None:
        """Says that the program serves, and where; nothing comes after that."""
        self._end(fields)

    def failed(self, error: LlamboError, **fields: Any) -> None:
        """Says why the program ends; nothing comes after that."""
        self._end({"code": error.code, "message": error.message} | fields)

    def _end(self, fields: dict[str, Any]) -> None:
        self._write(fields)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, fields: dict[str, Any]) -> None:
        import msgspec

        if self._fd is not None:
            with contextlib.suppress(OSError):  # nobody waits for the report any more
                os.write(self._fd, msgspec.json.encode(fields) + b"\n")


def prepare_process() -> None:
    """Raises the soft limit on open files to the hard one, since connections are files, and shortens thread turns."""
    import resource

    # A model file is read in a thread: the loop must not wait five milliseconds, the default, for its turn.
    sys.setswitchinterval(0.001)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def settle_memory() -> None:
    """Exempts what is there after the start from the search for cycles: it stays, and going over it stops the loop.

    A hundred thousand objects of libraries are tens of milliseconds, in which no token moves.
    """
    gc.collect()
    gc.freeze()


def bridge_settings(settings: Settings) -> BridgeSettings:
    """The limits of a bridge as the configuration has them."""
    from llambo.bridge.settings import BridgeSettings

    return BridgeSettings(
        max_connections=settings.bridge.max_connections,
        write_timeout_s=settings.bridge.write_timeout,
        drain_timeout_s=settings.bridge.drain_timeout,
    )


def stop_on_signals(server: Stoppable) -> None:
    """The first signal asks for a stop, the next one ends everything that still goes on."""
    loop = asyncio.get_running_loop()
    hurrying: list[asyncio.Task[None]] = []
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            hurrying.append(loop.create_task(server.stop(0)))
        asked = True
        server.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & want it
            loop.add_signal_handler(number, stop)
