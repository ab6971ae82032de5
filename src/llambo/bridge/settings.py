"""The limits of a bridge. Plain values: nothing here reads files or the environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """What one bridge accepts from its clients; times in seconds, sizes in bytes.

    `max_queued_commands` and `max_queued_bytes` bound what one text connection may send ahead, `max_requests` what one
    binary connection may have in flight. `write_timeout_s` is how long a client may leave its answers unread once
    `write_buffer_bytes` of them wait.
    """

    max_connections: int = 1024
    max_line_bytes: int = 1 << 20
    max_frame_bytes: int = 16 << 20
    max_queued_commands: int = 64
    max_queued_bytes: int = 4 << 20
    max_requests: int = 128
    write_buffer_bytes: int = 1 << 20
    write_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    auth_timeout_s: float = 10.0
    max_auth_attempts: int = 3
