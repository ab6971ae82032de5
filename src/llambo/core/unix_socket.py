"""Unix sockets to listen on: what may be replaced, what must not be touched, and errors that say which it was.

A Unix socket is made with mode 0600, never in the place of a live one or of what is no socket; a stale one is replaced.
Knows nothing of the protocol.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llambo.core import paths
from llambo.core.address import unix_address
from llambo.core.errors import BadConfig, LlamboError, NameInUse, Refused

_LOCK_TIMEOUT_S = 2.0
_LOCK_RETRY_S = 0.01


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A listening Unix socket and the file that belongs to it."""

    socket: socket.socket
    path: Path
    inode: tuple[int, int]

    def remove_file(self) -> None:
        """Removes the socket file when it is still the one that was made."""
        with contextlib.suppress(OSError):
            if _inode(self.path.lstat()) == self.inode:
                self.path.unlink()


def bind_unix(path: Path, backlog: int) -> BoundSocket:
    """Listens on a Unix socket at `path`. Blocks for a moment at most.

    Raises: `NameInUse` for a live socket and for what is no socket, `BadConfig` for a path that cannot be one,
    `Refused` where the directory does not allow it.
    """
    unix_address(str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _explained(path), _only_starter():
            _clear_place(path)
            _bind_private(listener, path)
            listener.listen(backlog)
            listener.setblocking(False)
            return BoundSocket(listener, path, _inode(path.lstat()))
    except BaseException:
        listener.close()
        raise


def _inode(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _bind_private(listener: socket.socket, path: Path) -> None:
    # The mode comes from the umask: a chmod afterwards would leave a moment for others to connect.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def _clear_place(path: Path) -> None:
    """Removes a stale socket at `path`; passes when nothing is there."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(facts.st_mode):
        raise NameInUse(f"{path} exists and is no socket: it is left alone; remove it or choose another path")
    if _is_live(path):
        raise NameInUse(f"a server listens on {path} already: stop it first or choose another path")
    path.unlink()


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full: somebody is there
        return True


@contextlib.contextmanager
def _only_starter() -> Iterator[None]:
    """Keeps two starting servers from both finding the same stale socket; the lock ends with the process.

    It is on our runtime directory, which nobody else can open: one on the socket's directory, which may be /tmp, could
    be held for ever by anybody. A lock on it needs no file of its own, which could not be removed without a race, and
    servers that start at once with different sockets can wait for each other.
    """
    directory = paths.make_private_dir(paths.runtime_dir())
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NameInUse(f"another server has been starting for long: it locks {directory}") from None
                time.sleep(_LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: OSError) -> LlamboError:
    match error.errno:
        case errno.ENOENT:
            return BadConfig(f"cannot listen on {path}: the directory {path.parent} does not exist")
        case errno.ENOTDIR:
            return BadConfig(f"cannot listen on {path}: {path.parent} is no directory")
        case errno.EACCES | errno.EPERM:
            return Refused(f"cannot listen on {path}: permission denied")
        case errno.EADDRINUSE:
            return NameInUse(f"cannot listen on {path}: it is in use")
        case _:
            return LlamboError(f"cannot listen on {path}: {error.strerror or error}")
