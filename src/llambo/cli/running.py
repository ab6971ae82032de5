"""What runs for this home, the bridge and the cluster: how each makes itself known, and how others find it.

Owns `bridge.json` and `daemon.json` in the runtime directory. A file is a claim; a live process and a socket that
answers are proof.
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
from llambo.core.errors import LlamboError, NameInUse, Refused

BRIDGE = "bridge.json"
DAEMON = "daemon.json"


class Running(msgspec.Struct, frozen=True):
    """A program: its process, when that was born (so that a reused process id is not taken for it), where it listens.

    `socket` speaks the bridge protocol, `styx` and `http` (the daemon's alone) are the dial string of its
    namespace and the addresses of its gateway. `home` is whose it is: a runtime directory can be named for two homes by
    mistake.
    """

    pid: int
    born: float
    socket: str
    log: str
    drain_timeout_s: float
    styx: str = ""
    home: str = ""
    http: tuple[str, ...] = ()


@contextmanager
def announced(
    socket: str,
    *,
    log: Path,
    drain_timeout_s: float,
    name: str = BRIDGE,
    styx: str = "",
    http: tuple[str, ...] = (),
) -> Iterator[None]:
    """Writes this process down under `name` for the block.

    One that lives and is written down already stays: a second bridge on another socket is fine, the first is found.

    Raises: `LlamboError` when the file cannot be written.
    """
    if find(name) is not None:
        yield
        return
    born = psutil.Process().create_time()
    me = Running(os.getpid(), born, socket, str(log), drain_timeout_s, styx, str(paths.home()), http)
    path = paths.make_private_dir(paths.runtime_dir()) / name
    try:
        part = path.with_suffix(f".{me.pid}")
        part.write_bytes(msgspec.json.encode(me))
        part.replace(path)
    except OSError as error:
        raise LlamboError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if msgspec.json.decode(path.read_bytes(), type=Running) == me:
                path.unlink()


def find(name: str = BRIDGE) -> Running | None:
    """The program of this home that lives and made itself known under `name`, or None.

    Raises: `Refused` where the runtime directory cannot be read, `NameInUse` when it is another home's.
    """
    path = paths.runtime_dir() / name
    try:
        claim = msgspec.json.decode(path.read_bytes(), type=Running)
        process = psutil.Process(claim.pid)
        alive = abs(process.create_time() - claim.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except PermissionError:
        raise Refused(f"{path} cannot be read: it belongs to another user") from None
    except (OSError, msgspec.DecodeError, psutil.Error):
        return None
    if alive and claim.home != str(paths.home()):
        place = f"{path.parent} is used by the home {claim.home} (pid {claim.pid})"
        raise NameInUse(f"{place}; set LLAMBO_RUNTIME_DIR to another directory, or leave it unset")
    return claim if alive else None
