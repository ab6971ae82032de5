"""Running installers one at a time: the lock, the progress, the log, and the reason when one fails."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from machine import Refused

CAUSES = (
    (r"No space left on device", "the disk is full"),
    (r"Permission denied|Read-only file system", "a directory cannot be written"),
    (r"(?i)do not match the hashes|hash mismatch", "a package is not the one that was locked, and was not installed"),
    (
        r"(?i)ConnectionError|ConnectTimeout|ReadTimeout|name resolution|network is unreachable|max retries"
        r"|error sending request|dns error|could not connect|failed to fetch|ProxyError|SSLError",
        "the package registry cannot be reached (network, proxy, or the registry that pip or uv is set to)",
    ),
    (
        r"No matching distribution found|has no wheels with a matching",
        "the registry has no build of it for this Python and system (see the lines above)",
    ),
)
"""What installers write, and what it means; the first that matches is said."""

WORTH_SHOWING = re.compile(
    r"^ *((?:Collecting|Processing|Downloading|Building|Installing|Resolved|Prepared|Bytecode)\b[^\r\n]*)", re.MULTILINE
)
"""The lines of pip and uv that tell how far they are."""

LAST_LINES = 12
"""How much of an installer's output a failure shows."""


@dataclass
class Progress:
    """Progress on standard error: one moving line on a terminal, a line per step anywhere else."""

    steps: int
    out: IO[str] = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self._moving = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self._started = time.monotonic()
        self._step = ""

    def begin(self, number: int, what: str) -> None:
        """Says which step begins."""
        self._step = f"llambo: setting up (once): {number}/{self.steps} {what}"
        if self._moving:
            self.detail("")
        else:
            self.say(f"{self._step} ({self.elapsed()})")

    def detail(self, text: str) -> None:
        """Redraws the moving line with `text`, what the installer said last."""
        if self._moving:
            line = f"{self._step} ({self.elapsed()}) {text}"
            self.out.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\033[K")
            self.out.flush()

    def say(self, line: str) -> None:
        """Writes a line that stays."""
        self.out.write(f"\r\033[K{line}\n" if self._moving else f"{line}\n")
        self.out.flush()

    def elapsed(self) -> str:
        """The time since the beginning, in words."""
        return f"{time.monotonic() - self._started:.0f} s"


@contextmanager
def only_one(lock_file: Path, progress: Progress) -> Iterator[int]:
    """Holds the lock of this checkout, waiting for whoever has it; yields its file descriptor.

    The lock is the kernel's: it ends with its holders, however they end. An installer inherits it, so one
    that outlived a killed set-up still keeps others out of the environment it works in.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            progress.say(f"llambo: waiting for the set-up that process {holder} is doing in this checkout")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Installers:
    """Runs commands that install something. The lock is held."""

    log: Path
    lock: int
    progress: Progress

    def run(self, what: str, command: Sequence[str | Path]) -> None:
        """Runs `command` to its end.

        Raises:
            Refused: it failed; the sentence begins with `what`, and the last lines have been shown.
        """
        with self.log.open("ab") as log:
            begun_at = log.tell()
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=installer_environment(os.environ),
                pass_fds=(self.lock,),
            ) as child:
                try:
                    self._follow(child, log)
                except BaseException:
                    child.terminate()
                    raise
        if child.returncode != 0:
            raise Refused(self._reason(what, child.returncode, begun_at))

    def _follow(self, child: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        assert child.stdout is not None
        said = ""
        while True:
            readable, _, _ = select.select([child.stdout], [], [], 1.0)
            if readable:
                chunk = os.read(child.stdout.fileno(), 65536)
                if not chunk:
                    return
                log.write(chunk)
                log.flush()
                said = [said, *WORTH_SHOWING.findall(chunk.decode("utf-8", "replace"))][-1]
            self.progress.detail(said)

    def _reason(self, what: str, status: int, begun_at: int) -> str:
        with self.log.open("rb") as log:
            log.seek(begun_at)
            text = log.read().decode("utf-8", "replace")
        for line in text.splitlines()[-LAST_LINES:]:
            self.progress.say(f"  | {line}")
        cause = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
        for pattern, meaning in CAUSES:
            if re.search(pattern, text):
                cause = meaning
                break
        return f"{what} failed: {cause}. The whole log: {self.log}"


def installer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what would make Python or pip install elsewhere or write no bytecode."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
