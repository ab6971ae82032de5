"""Addresses of HTTP listeners: `HOST:PORT`, `[::1]:PORT` and `unix!PATH`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from llambo.core.address import UnixAddress

EXPECTED = "HOST:PORT such as 127.0.0.1:5641, [::1]:PORT or unix!PATH"
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """A TCP port to listen on; port 0 is any free one, host "*" or "0.0.0.0" every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_http_address(text: str) -> HttpAddress | UnixAddress:
    """The address in `text`; `unix:PATH` is `unix!PATH`.

    Raises: `ValueError` with what was expected.
    """
    if text.startswith(("unix!", "unix:")):
        if text[5:] and "\0" not in text:
            return UnixAddress(text[5:])
        raise ValueError(f"{text!r} names no socket: expected {EXPECTED}")
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    # A bare IPv6 address has colons of its own: which of them begins the port cannot be told.
    if not colon or not name or any(c.isspace() or c in "/@![]" for c in name) or (":" in name) != bracketed:
        raise ValueError(f"{text!r} is no address: expected {EXPECTED}")
    if not (port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise ValueError(f"{port!r} is no port: expected {EXPECTED}, with a port from 0 to {_MAX_PORT}")
    return HttpAddress(name, int(port))
