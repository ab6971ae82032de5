"""How a benchmark ends that is told to: as by Ctrl-C, so that all it has started is stopped and removed.

Owns what SIGTERM and SIGHUP do to the program, and processes that live as long as a block. Knows nothing of what is
measured.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class _Told:
    """Which signal came, whether it has been acted on, and how many blocks must be over before."""

    number = 0
    is_acted_on = False
    holds = 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """A signal. Another one is no reason to break off the cleaning up: `timeout` sends two."""
        self.number = self.number or number
        self.act()

    def act(self) -> None:
        """Interrupts, once, what is neither whole nor told already."""
        if self.number and not self.holds and not self.is_acted_on:
            self.is_acted_on = True
            signal.raise_signal(signal.SIGINT)


_told = _Told()


@contextmanager
def orderly() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP interrupt as Ctrl-C does, so that every block is left that was entered.

    The program's status is 128 and the signal's number then. A signal that was ignored before stays so, but for SIGINT,
    whose handler asyncio wants: it cancels the main task of a loop. For the main thread.

    Raises: `SystemExit` after a signal.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDINGS)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _ENDINGS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _told.note)
    try:
        yield
    except BaseException as error:
        if _told.number or isinstance(error, KeyboardInterrupt):
            raise SystemExit(128 + (_told.number or signal.SIGINT)) from error
        raise
    else:
        if _told.number:
            raise SystemExit(128 + _told.number)
    finally:
        _told.number, _told.is_acted_on = 0, False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole() -> Iterator[None]:
    """What is done in it is done before SIGTERM or SIGHUP interrupt: nobody could clean up after half a start."""
    _told.holds += 1
    try:
        yield
    finally:
        _told.holds -= 1
        _told.act()


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process with `subprocess.Popen`'s options; it is ended with the block.

    One with a standard input of ours ends when that closes, another one by SIGTERM.
    """
    started: subprocess.Popen[bytes] | None = None
    try:
        with whole():
            started = subprocess.Popen(command, **options)
        yield started
    finally:
        if started is not None:
            with whole():
                _end(started)


def _end(started: subprocess.Popen[bytes]) -> None:
    if started.stdin is not None:
        started.stdin.close()
    else:
        started.terminate()
    started.wait()
    if started.stdout is not None:
        started.stdout.close()
