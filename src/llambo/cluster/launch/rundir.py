"""The files of a local launcher: its run directory with one directory per node, and the nodes' logs.

Owns their names and their removal, also of those that a killed launcher had to leave. The run directory is locked for
as long as its launcher lives. Knows nothing of processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections import deque
from pathlib import Path

from llambo.core import paths
from llambo.node.spec import SOCKET_NAME

RUN_PREFIX = "nodes-"
LOGS_KEPT = 50
_LONGEST_NAME = "n1000000.1000"
_LOG_TAIL_LINES = 5
_LOG_TAIL_BYTES = 4096


class RunDir:
    """A run directory: below `run_parent`, or in the system's temporary directory where that makes paths too long.

    Raises: `BadConfig`, `Refused`, `OSError` where there cannot be one.
    """

    def __init__(self, run_parent: Path) -> None:
        sweep(run_parent)
        self.path, self._lock = _make_run_dir(run_parent)

    def make_node_dir(self, name: str) -> Path:
        """A fresh private directory for a node.

        Raises: `OSError`.
        """
        directory = self.path / name
        directory.mkdir(mode=0o700)
        return directory

    def remove(self) -> None:
        """Removes it with all that is in it; the lock is given back."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _make_run_dir(run_parent: Path) -> tuple[Path, int]:
    """A fresh run directory and a descriptor of it whose lock tells other launchers that it is in use."""
    while True:
        directory = paths.make_short_private_dir(run_parent, RUN_PREFIX, f"{_LONGEST_NAME}/{SOCKET_NAME}")
        # Until it is locked another launcher may take it for one that was left, and sweep it away.
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        if directory.exists():
            return directory, lock
        os.close(lock)


def sweep(run_parent: Path) -> None:
    """Removes run directories (there, and where long paths made them go) whose launcher was killed before it could."""
    overflow = Path(tempfile.gettempdir()).glob(f"{paths.OVERFLOW_PREFIX}{RUN_PREFIX}*")
    for directory in (*run_parent.glob(f"{RUN_PREFIX}*"), *overflow):
        with contextlib.suppress(OSError):  # in use, another user's, or gone meanwhile
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


class NodeLogs:
    """The log files `PID-NAME.log` in one directory, PID being the launcher's: two of one home share the directory.

    Keeps the logs of all living nodes and of the last `LOGS_KEPT` that ended.

    Raises: `BadConfig`, `Refused` where there cannot be such a directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = paths.make_private_dir(directory)
        self._ended: deque[Path] = deque()
        prune_logs(directory)

    def path_of(self, name: str) -> Path:
        """Where the node `name` of this process logs."""
        return self._directory / f"{os.getpid()}-{name}.log"

    def node_ended(self, name: str) -> None:
        """Lets go of a node's log: it stays until `LOGS_KEPT` others have ended."""
        self._ended.append(self.path_of(name))
        while len(self._ended) > LOGS_KEPT:
            self._ended.popleft().unlink(missing_ok=True)


def prune_logs(log_dir: Path) -> None:
    """Removes all but the newest of the logs that launchers left; those of a launcher that lives are left alone."""
    left = [path for path in log_dir.glob("*.log") if not _launcher_lives(path)]
    for path in sorted(left, key=_modified, reverse=True)[LOGS_KEPT:]:
        path.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another launcher removed it
        return 0.0


def _launcher_lives(log_path: Path) -> bool:
    pid = log_path.name.split("-", 1)[0]
    if not pid.isdecimal() or not int(pid):
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OverflowError, ProcessLookupError):
        return False
    return True


def read_tail(path: Path) -> str:
    """The last few lines of a log file, joined by " | "; "" when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:] if line.strip())
