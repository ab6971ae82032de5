"""The bridge that runs for this home: how it makes itself known, and how others find it.

Owns `bridge.json` in the runtime directory. The file is a claim; a live process and a socket that answers are proof.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from llambo.core import paths
from llambo.core.errors import BadConfig

FILE_NAME = "bridge.json"


class Running(msgspec.Struct, frozen=True):
    """A bridge: its process, when that was born (so that a reused process id is not taken for it), where it listens."""

    pid: int
    born: float
    socket: str
    log: str
    drain_timeout_s: float


@contextmanager
def announced(socket: str, *, log: Path, drain_timeout_s: float) -> Iterator[None]:
    """Writes this process down as the bridge of this home for the block.

    One that lives and is written down already stays: a second bridge on another socket is fine, the first is found.

    Raises: `BadConfig` when the file cannot be written.
    """
    if find() is not None:
        yield
        return
    me = Running(os.getpid(), psutil.Process().create_time(), socket, str(log), drain_timeout_s)
    path = paths.make_private_dir(paths.runtime_dir()) / FILE_NAME
    try:
        part = path.with_suffix(f".{me.pid}")
        part.write_bytes(msgspec.json.encode(me))
        part.replace(path)
    except OSError as error:
        raise BadConfig(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if msgspec.json.decode(path.read_bytes(), type=Running) == me:
                path.unlink()


def find() -> Running | None:
    """The bridge of this home that lives, or None."""
    try:
        claim = msgspec.json.decode((paths.runtime_dir() / FILE_NAME).read_bytes(), type=Running)
        alive = abs(psutil.Process(claim.pid).create_time() - claim.born) < 1.0
    except (OSError, msgspec.DecodeError, psutil.Error):
        return None
    return claim if alive else None
