"""Addresses as Plan 9 writes them: `unix!PATH` and `tcp!HOST!PORT`. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from llambo.core.errors import BadConfig

# sun_path with its terminating NUL has 108 bytes on Linux (unix(7)), 104 elsewhere
MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103
_MAX_PORT = 65535


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


def parse_address(text: str, default_port: int | None = None) -> Address:
    """The address in `text`; `tcp!HOST` alone has the default port, where there is one. A path needs a slash, or unix!.

    Raises: `BadConfig` for what is no address, a port that is none, or a path that no socket can have.
    """
    if text.startswith("tcp!"):
        return _tcp_address(text, default_port)
    if text.startswith("unix!"):
        return unix_address(text.removeprefix("unix!"))
    if text.startswith(("/", "./", "../")):
        return unix_address(text)
    port = 5642 if default_port is None else default_port
    raise BadConfig(f"{text!r} is no address: write unix!PATH or tcp!HOST!PORT, such as tcp!127.0.0.1!{port}")


def unix_address(path: str) -> UnixAddress:
    """The Unix socket at `path`.

    Raises: `BadConfig` for a path that no socket can have.
    """
    try:
        size = len(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise BadConfig(f"{path!r} is no path of a socket: it is not valid Unicode text") from None
    if not path or "\0" in path:
        raise BadConfig(f"{path!r} is no path of a socket")
    if size > MAX_PATH_BYTES:
        raise BadConfig(f"the socket path {path} has {size} bytes: a Unix socket can have {MAX_PATH_BYTES}")
    return UnixAddress(path)


def _tcp_address(text: str, default_port: int | None) -> TcpAddress:
    host, *rest = text.removeprefix("tcp!").split("!")
    port = rest[0] if rest else str(default_port)
    if not host or len(rest) > 1 or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        example = f"tcp!127.0.0.1!{5642 if default_port is None else default_port}"
        raise BadConfig(f"{text!r} is no address: write tcp!HOST!PORT, such as {example}")
    try:
        host.encode("idna")  # as every resolver does
    except UnicodeError:
        raise BadConfig(f"{text!r} is no address: {host!r} is no name of a host") from None
    return TcpAddress(host, int(port))
