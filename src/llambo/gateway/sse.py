"""Server-sent events as bytes.

Pure. What an event says is of no interest here; those of a node pass as they are.
"""

from __future__ import annotations

PING = b": ping\n\n"
"""A comment: a sign of life that no client takes for an event."""

HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""What keeps whoever stands between from collecting events."""


def event(data: bytes, name: str = "") -> bytes:
    """One event with `data`, JSON on one line, and the empty line that ends it."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"
