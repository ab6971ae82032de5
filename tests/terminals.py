"""A program on a terminal, as a person has it: keys go in, and what is shown is read back.

The screen is a real terminal's state machine (pyte) behind a pseudo-terminal; lines that scrolled away are kept. What
is shown is waited for, and never longer than `WAIT_S`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pyte

WAIT_S = 60.0
CTRL_C, CTRL_D, CTRL_R, CTRL_Z, TAB, UP, ESC = "\x03", "\x04", "\x12", "\x1a", "\t", "\x1b[A", "\x1b"
ALT_ENTER = "\x1b\r"

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>78])")

T = TypeVar("T")
PersonT = TypeVar("PersonT", bound="Person")


class Person:
    """Whoever sits before the terminal. `raw` is all that the program wrote."""

    def __init__(self, main: int, process: subprocess.Popen[bytes], columns: int, rows: int) -> None:
        self.process = process
        self.raw = b""
        self._main = main
        self._seen = 0
        self._screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.01)
        self._stream = pyte.ByteStream(self._screen)

    # --- what is there to see -------------------------------------------------------------------------------------

    @property
    def screen(self) -> list[str]:
        """The lines on the screen, without blanks at their ends."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def scrolled(self) -> list[str]:
        """The lines that have scrolled away."""
        columns = self._screen.columns
        return ["".join(line[x].data for x in range(columns)).rstrip() for line in self._screen.history.top]

    @property
    def text(self) -> str:
        """All that was shown and stands still, and what is on the screen."""
        return "\n".join([*self.scrolled, *self.screen])

    @property
    def cursor_line(self) -> str:
        """The line that the cursor is in."""
        return self.screen[self._screen.cursor.y]

    @property
    def written(self) -> str:
        """All that was ever written, without what moves the cursor and colours."""
        return _ESCAPE.sub("", self.raw.decode("utf-8", "replace")).replace("\r", "")

    @property
    def modes(self) -> list[object]:
        """How the terminal is set."""
        return list(termios.tcgetattr(self._main))

    # --- what a person does ---------------------------------------------------------------------------------------

    def type(self, keys: str) -> None:
        data = keys.encode()
        while data:  # a terminal takes no more than it has room for, and what is shown has to be read meanwhile
            _, can_write, _ = select.select([], [self._main], [], 0)
            if can_write:
                data = data[os.write(self._main, data[:512]) :]
            self._read(0)

    def enter(self, line: str) -> None:
        self.type(f"{line}\r")

    def paste(self, text: str) -> None:
        """As a terminal with bracketed paste gives it."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, rows: int) -> None:
        """Gives the window another size, and tells the program."""
        self._screen.resize(rows, columns)
        termios.tcsetwinsize(self._main, (rows, columns))
        self.process.send_signal(signal.SIGWINCH)

    # --- what is waited for ---------------------------------------------------------------------------------------

    def until(self, is_met: Callable[[], bool], what: str) -> None:
        """Reads what is shown until the condition is met. `what` names it where it never is."""
        self._first(lambda: is_met() or None, what)

    def expect(self, pattern: str, *, on_screen: bool = False) -> str:
        """Waits until what is shown has `pattern`; returns what it matched."""

        def find() -> re.Match[str] | None:
            text = "\n".join(self.screen) if on_screen else self.text
            return re.search(pattern, text, re.MULTILINE | re.DOTALL)

        return self._first(find, f"no {pattern!r}")[0]

    def expect_next(self, pattern: str) -> str:
        """Waits until what is written from the last match on has `pattern`; returns what it matched."""
        compiled = re.compile(pattern, re.DOTALL)
        found = self._first(lambda: compiled.search(self.written, self._seen), f"no {pattern!r}")
        self._seen = found.end()
        return found[0]

    def wait(self) -> int:
        """The status of the process, once it has ended."""
        end = time.monotonic() + WAIT_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(60)

    def read_for(self, seconds: float) -> None:
        """Reads whatever comes meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(end - time.monotonic())

    def _first(self, find: Callable[[], T | None], what: str) -> T:
        """What `find` gives, once it gives something."""
        end = time.monotonic() + WAIT_S
        while (found := find()) is None:
            assert self._read(end - time.monotonic()), f"{what}; there is:\n{self.text}"
        return found

    def _read(self, seconds: float) -> bool:
        if seconds < 0 or not select.select([self._main], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # every other end is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)


@contextlib.contextmanager
def on_terminal(
    command: list[str], kind: type[PersonT], *, columns: int = 80, rows: int = 30, **environment: str
) -> Iterator[PersonT]:
    """A program on a terminal, in a session of its own, with a `kind` of person there; killed where it still runs."""
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (rows, columns))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    set_apart = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "COLORTERM": "", **environment}
    process = subprocess.Popen(
        command,
        stdin=other,
        stdout=other,
        stderr=other,
        env=inherited | set_apart,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - no test runs threads when it starts a program
    )
    os.close(other)
    try:
        yield kind(main, process, columns, rows)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(main)


def _take_terminal() -> None:
    """Makes standard input the controlling terminal, so that Ctrl-C and Ctrl-Z are what they are elsewhere."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
