"""dish as a process of its own, and on a terminal: what it shows is waited for, and never longer than `WAIT_S`."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

COMMAND = [sys.executable, "-c", "import llambo.cli.dish as m; m.main()"]
WAIT_S = 60.0
CTRL_C, CTRL_D, TAB, UP = "\x03", "\x04", "\t", "\x1b[A"

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>78])")


def run_dish(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs dish to its end; without `stdin` it reads /dev/null."""
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False, **given
    )


class Terminal:
    """The other end of the terminal that a process runs on."""

    def __init__(self, main: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.raw = ""
        self._main = main
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was shown, without what moves the cursor and colours."""
        return _ESCAPE.sub("", self.raw).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def enter(self, line: str) -> None:
        self.type(f"{line}\r")

    def expect(self, pattern: str) -> str:
        """Waits until what is shown from the last match on has `pattern`; returns what it matched."""
        end = time.monotonic() + WAIT_S
        while True:
            found = re.search(pattern, self.text[self._seen :], re.DOTALL)
            if found is not None:
                self._seen += found.end()
                return found[0]
            assert self._read(end - time.monotonic()), f"no {pattern!r} in {self.text[self._seen :]!r}"

    def prompt(self) -> None:
        """Waits until the next line can be typed."""
        self.expect("llambo> ")

    def wait(self) -> int:
        """The status of the process, once it has ended."""
        end = time.monotonic() + WAIT_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(10)

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._main], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # every other end is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


@contextlib.contextmanager
def terminal(**environment: str) -> Iterator[Terminal]:
    """dish on a terminal of 100 columns and 30 lines, in a session of its own; killed where it is still there."""
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (30, 100))
    set_apart = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
    process = subprocess.Popen(
        COMMAND,
        stdin=other,
        stdout=other,
        stderr=other,
        env={**os.environ, **set_apart},
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - no test runs threads when it starts a shell
    )
    os.close(other)
    try:
        yield Terminal(main, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(main)


def _take_terminal() -> None:
    """Makes standard input the controlling terminal, so that Ctrl-C is a signal to the process."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
