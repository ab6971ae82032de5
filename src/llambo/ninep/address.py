"""Addresses as Plan 9 writes them: `unix!PATH` and `tcp!HOST!PORT`. A path alone is a Unix socket."""

from __future__ import annotations

from dataclasses import dataclass

from llambo.core.errors import BadConfig

DEFAULT_PORT = 5640  # of Styx servers
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


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """The address in `text`; `tcp!HOST` alone is port 5640.

    Raises: `BadConfig`.
    """
    match text.split("!"):
        case ["tcp", host] if host:
            return TcpAddress(host, DEFAULT_PORT)
        case ["tcp", host, port] if host and port.isascii() and port.isdigit() and int(port) <= _MAX_PORT:
            return TcpAddress(host, int(port))
        case ["unix", *path] if any(path) and "\0" not in text:
            return UnixAddress("!".join(path))
        case [path] if path.startswith(("/", "./", "../")) and "\0" not in path:
            return UnixAddress(path)
    raise BadConfig(f"{text!r} is no address: write unix!PATH or tcp!HOST!PORT, such as tcp!127.0.0.1!{DEFAULT_PORT}")
