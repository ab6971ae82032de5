"""Where a bridge listens, written as Plan 9 does: `tcp!HOST!PORT`, `unix!PATH`, or the path of a Unix socket alone."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from llambo.core.errors import BadConfig

# sun_path with its terminating NUL has 108 bytes on Linux (unix(7)), 104 elsewhere
MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103


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
    """Where a bridge listens when nothing was said to it: `LLAMBO_BRIDGE_SOCKET`, else what the configuration says.

    Raises: `BadConfig`.
    """
    path = os.environ.get("LLAMBO_BRIDGE_SOCKET")
    if not path:
        from llambo.core import config  # noqa: PLC0415 - heavy, and seldom needed

        path = config.load().settings.bridge.socket_path
    return os.path.expanduser(path)  # noqa: PTH111 - as the bridge does; it need not be a path: tcp!HOST!PORT


def parse_dial(dial: str) -> Address:
    """The address in a dial string.

    Raises: `BadConfig` for a port that is none, or a path that no socket can have.
    """
    if dial.startswith("tcp!"):
        host, _, port = dial.removeprefix("tcp!").rpartition("!")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadConfig(f"{dial!r} is no address: write tcp!HOST!PORT, such as tcp!127.0.0.1!5642")
        try:
            host.encode("idna")  # as every resolver does
        except UnicodeError:
            raise BadConfig(f"{dial!r} is no address: {host!r} is no name of a host") from None
        return TcpAddress(host, int(port))
    path = dial.removeprefix("unix!")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise BadConfig(f"{dial!r} is no path of a socket: it is not valid Unicode text") from None
    if not path or "\0" in path:
        raise BadConfig(f"{dial!r} is no path of a socket")
    if size > MAX_PATH_BYTES:
        raise BadConfig(f"the socket path {path} has {size} bytes: a Unix socket can have {MAX_PATH_BYTES}")
    return UnixAddress(path)
