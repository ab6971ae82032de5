"""Where Llambo keeps things: what lasts below `home()`, sockets and pid files in `runtime_dir()`.

Owns the two environment variables `LLAMBO_HOME` and `LLAMBO_RUNTIME_DIR` and the limit on socket paths.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from llambo.core.errors import BadConfig, Refused

SOCKET_PATH_MAX = 103
"""Bytes in a Unix socket's path that every platform takes (sun_path is 108 on Linux, 104 elsewhere, with its NUL)."""

OVERFLOW_PREFIX = "llambo-"
"""Begins the names of our directories in the system's temporary directory."""


def home() -> Path:
    """The directory of everything that lasts: `LLAMBO_HOME`, else the platform's user data directory."""
    value = os.environ.get("LLAMBO_HOME", "")
    if value:
        return Path(value).expanduser().absolute()
    from platformdirs import user_data_path  # noqa: PLC0415 - only where the default is wanted

    return user_data_path("llambo", appauthor=False)


def runtime_dir() -> Path:
    """The directory of sockets and pid files: `LLAMBO_RUNTIME_DIR`, else the session's, else `home()/run`.

    The session's directory is for the default home alone: two homes never share a runtime directory.
    """
    value = os.environ.get("LLAMBO_RUNTIME_DIR", "")
    if value:
        return Path(value).expanduser().absolute()
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session and not os.environ.get("LLAMBO_HOME"):
        return Path(session) / "llambo"
    return home() / "run"


def make_private_dir(path: Path) -> Path:
    """Creates `path` with mode 0700, or checks that it is a directory of ours that nobody else can enter.

    Raises: `BadConfig` where it cannot be made or is no directory, `Refused` where others can enter it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise BadConfig(f"{path} is in the way: a directory is needed there") from None
    except OSError as error:
        raise BadConfig(f"cannot create {path}: {error.strerror}; set LLAMBO_HOME to a place you can write") from None
    facts = path.stat()
    if facts.st_uid != os.geteuid():
        raise Refused(f"{path} belongs to another user; set LLAMBO_RUNTIME_DIR to a directory of yours")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        # Not ours to change: it may be a directory that others have a use for, such as /tmp.
        raise Refused(f"{path} can be entered by others; `chmod 700` it, or set LLAMBO_RUNTIME_DIR to another one")
    return path


def make_short_private_dir(parent: Path, prefix: str, longest_name: str) -> Path:
    """A fresh private directory in which a socket called `longest_name` has a path that fits.

    It lies in `parent` unless that makes the path too long; then in the system's temporary directory.

    Raises: `BadConfig`, `Refused`.
    """
    parent = make_private_dir(parent)
    try:
        candidate = tempfile.mkdtemp(prefix=prefix, dir=parent)
        if len(os.fsencode(f"{candidate}/{longest_name}")) <= SOCKET_PATH_MAX:
            return Path(candidate)
        with contextlib.suppress(FileNotFoundError):  # another's sweep may have taken it
            Path(candidate).rmdir()
        return Path(tempfile.mkdtemp(prefix=f"{OVERFLOW_PREFIX}{prefix}"))
    except OSError as error:
        raise BadConfig(f"cannot create a directory in {parent}: {error.strerror}") from None
