"""limbot on a terminal, as a person has it: keys go in, and what stands on the screen is read back.

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
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
from pyte.screens import wcwidth  # type: ignore[attr-defined] # what it counts columns with

COMMAND = [sys.executable, "-c", "import llambo.cli.limbot as m; m.main()"]
WAIT_S = 60.0
CTRL_C, CTRL_D, CTRL_R, CTRL_Z, TAB, UP, ESC = "\x03", "\x04", "\x12", "\x1a", "\t", "\x1b[A", "\x1b"
ALT_ENTER = "\x1b\r"


class Person:
    """Whoever sits before the terminal."""

    def __init__(self, main: int, process: subprocess.Popen[bytes], columns: int, rows: int) -> None:
        self.process = process
        self.raw = b""
        self._main = main
        self._screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.01)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> list[str]:
        """The lines on the screen, without blanks at their ends."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def scrolled(self) -> list[str]:
        """The lines that have scrolled away."""
        columns = self._screen.columns
        lines = []
        for line in self._screen.history.top:
            text = "".join(line[x].data for x in range(columns))
            lines.append(text.rstrip())
        return lines

    @property
    def text(self) -> str:
        """All that was shown and stands still, and what is on the screen."""
        return "\n".join([*self.scrolled, *self.screen])

    @property
    def cursor_line(self) -> str:
        """The line that the cursor is in."""
        return self.screen[self._screen.cursor.y]

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

    def expect(self, pattern: str, *, on_screen: bool = False) -> str:
        """Waits until what is shown has `pattern`; returns what it matched."""
        end = time.monotonic() + WAIT_S
        while True:
            found = re.search(pattern, "\n".join(self.screen) if on_screen else self.text, re.MULTILINE | re.DOTALL)
            if found is not None:
                return found[0]
            assert self._read(end - time.monotonic()), f"no {pattern!r} in:\n{self.text}"

    def prompt(self, typed: str = "") -> None:
        """Waits until nothing is under way and the cursor is behind `typed` on the input line."""
        end = time.monotonic() + WAIT_S
        while self.cursor_line != f"> {typed}".rstrip() or any("Ctrl-C stops" in line for line in self.screen):
            assert self._read(end - time.monotonic()), f"no input line in:\n{self.text}"

    def ask(self, question: str) -> str:
        """Asks, waits for the answer, and returns all that was shown since."""
        before = len(self.text.rstrip("\n> ").split("\n"))
        seen = self.text.count(" · first after ")
        self.enter(question)
        end = time.monotonic() + WAIT_S
        while self.text.count(" · first after ") <= seen:
            assert self._read(end - time.monotonic()), f"no answer in:\n{self.text}"
        self.prompt()
        return "\n".join(self.text.split("\n")[before:])

    def resize(self, columns: int, rows: int) -> None:
        """Gives the window another size, and tells the program."""
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def wait(self) -> int:
        """The status of the process, once it has ended."""
        end = time.monotonic() + WAIT_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(10)

    def read_for(self, seconds: float) -> None:
        """Reads whatever comes meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(end - time.monotonic())

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


def cells(line: str) -> int:
    """The columns that a line takes."""
    return sum(max(0, wcwidth(character)) for character in line)


@contextlib.contextmanager
def limbot(*arguments: str | Path, columns: int = 80, rows: int = 30, **environment: str) -> Iterator[Person]:
    """limbot on a terminal in a session of its own; killed, with its nodes, where it is still there."""
    with on_terminal([*COMMAND, *map(str, arguments)], columns=columns, rows=rows, **environment) as person:
        yield person


@contextlib.contextmanager
def on_terminal(command: list[str], *, columns: int = 80, rows: int = 30, **environment: str) -> Iterator[Person]:
    """Any program on a terminal."""
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (rows, columns))
    set_apart = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "COLORTERM": "", **environment}
    process = subprocess.Popen(
        command,
        stdin=other,
        stdout=other,
        stderr=other,
        env={**os.environ, **set_apart},
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - no test runs threads when it starts a chat
    )
    os.close(other)
    try:
        yield Person(main, process, columns, rows)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(main)


def _take_terminal() -> None:
    """Makes standard input the controlling terminal, so that Ctrl-C and Ctrl-Z are what they are elsewhere."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
