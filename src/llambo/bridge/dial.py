"""Where a bridge listens, written as Plan 9 does: `tcp!HOST!PORT`, `unix!PATH`, or the path of a Unix socket alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

from llambo.core.errors import BadConfig

MAX_PATH_BYTES = 107  # unix(7): sun_path has 108 bytes with the terminating NUL

_DEFAULT_SOCKET = "/tmp/llama-cpp-bridge.sock"  # noqa: S108 - the documented default; the server checks what is there


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        """As it is dialled."""
        return f"unix!{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port; host "*" is every interface, port 0 a free port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is dialled."""
        return f"tcp!{self.host}!{self.port}"


Address = UnixAddress | TcpAddress


def default_socket_path() -> str:
    """`LLAMBO_BRIDGE_SOCKET`, or the place where a bridge listens when nothing else was said."""
    return os.environ.get("LLAMBO_BRIDGE_SOCKET") or _DEFAULT_SOCKET


def parse_dial(dial: str) -> Address:
    """The address in a dial string.

    Raises: `BadConfig` for a port that is none, or a path that no socket can have.
    """
    if dial.startswith("tcp!"):
        host, _, port = dial.removeprefix("tcp!").rpartition("!")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadConfig(f"{dial!r} is no address: write tcp!HOST!PORT, such as tcp!127.0.0.1!5642")
        return TcpAddress(host, int(port))
    path = dial.removeprefix("unix!")
    size = len(os.fsencode(path))
    if not path or "\0" in path:
        raise BadConfig(f"{dial!r} is no path of a socket")
    if size > MAX_PATH_BYTES:
        raise BadConfig(f"the socket path {path} has {size} bytes: a Unix socket can have {MAX_PATH_BYTES}")
    return UnixAddress(path)
