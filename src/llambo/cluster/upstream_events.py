"""A node's event stream, cut into whole events, without what is not for the reader.

Pure: bytes as they arrive in, whole server-sent events out. Takes comments out (pings), and reports of the prefill
where the reader did not ask for them; notices an error that the node tells in the stream.
"""

from __future__ import annotations

import re
from typing import Any

from llambo.cluster.transcript import END, parsed, split

MAX_EVENT_BYTES = 16 * 2**20
"""llama.cpp's last event repeats the whole prompt."""

_PROGRESS = re.compile(rb',?"prompt_progress":\s*\{[^{}]*\}')


class Oversized(Exception):
    """An event is larger than any that a server of this kind sends."""


class Cutter:
    """Cuts one stream. `drops_progress` takes reports of the prefill out."""

    def __init__(self, *, drops_progress: bool = False) -> None:
        self.error: Any = None
        """What the node said was wrong, once it did: the error's JSON, or its text."""
        self.reports = 0
        """How many reports of the prefill came."""
        self._drops_progress = drops_progress
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events that have come by now, as one piece; b"" for none. Raises: `Oversized`."""
        if self.error is not None:
            return b""
        if self._pending:
            data = self._pending + data
        if data.find(b"\r") >= 0:  # which JSON never holds as it is
            data = data.replace(b"\r\n", b"\n")
        if data.endswith(END):
            self._pending = b""
        else:
            end = data.rfind(END) + 2
            if end < 2:
                end = 0
            self._pending = data[end:]
            if len(self._pending) > MAX_EVENT_BYTES:
                raise Oversized
            data = data[:end]
        find = data.find  # `in` takes what is sought for a number first, and is slower by the exception inside
        # In a text of JSON these would have backslashes before their quotation marks.
        if data.startswith((b":", b"e")) or find(b"\n:") >= 0 or find(b'"prompt_progress"') >= 0 or find(b"error") >= 0:
            return b"".join(map(self._filtered, split(data)))
        return data

    def _filtered(self, event: bytes) -> bytes:
        if self.error is not None:
            return b""
        if event.startswith(b":") or b"\n:" in event:
            event = b"".join(line + b"\n" for line in event.split(b"\n")[:-1] if not line.startswith(b":"))
            if not event.strip():
                return b""
        if b"error" in event and (error := _error_in(event)) is not None:
            self.error = error
            return b""
        if b'"prompt_progress"' in event:
            self.reports += 1
            return self._without_report(event) if self._drops_progress else event
        return event

    def _without_report(self, event: bytes) -> bytes:
        # Of /v1/responses the first report is also the event that says that the answer is in progress.
        if event.startswith(b"event: response.in_progress") and self.reports == 1:
            return _PROGRESS.sub(b"", event)
        return b""


def _error_in(event: bytes) -> Any:
    """What an event says is wrong; None where it is no error."""
    if event.startswith(b"error:"):  # llama-server's own, before it had an OpenAI API
        return parsed(event.replace(b"error:", b"data:", 1))
    value = parsed(event)
    if isinstance(value, dict):
        if value.get("error") is not None and ("choices" not in value or not value["choices"]):
            return value["error"]
        if value.get("type") == "error":
            return value
    return None
