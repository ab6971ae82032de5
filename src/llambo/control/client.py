"""The client of a daemon's control socket. Blocking: what `llamboctl` needs, and nothing more."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llambo.control import protocol as p
from llambo.core.errors import LlamboError, Refused, TimedOut, Unreachable

_CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
"""How long a daemon may take for a call that needs no node to start or end."""


class ControlClient:
    """A connection to the daemon that listens at `path`; closing it cancels what it has under way."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_CONNECT_TIMEOUT_S)
            self._socket.connect(str(path))
        except PermissionError:
            self._socket.close()
            raise Refused(f"{path} belongs to another user") from None
        except TimeoutError:
            self._socket.close()
            raise TimedOut(f"the cluster at {path} takes no connection") from None
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"no cluster listens on {path}: {error.strerror or error}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self._lines.close()
        self._socket.close()

    def call(
        self,
        call: p.Call,
        *,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        progress: Callable[[Any], None] | None = None,
    ) -> Any:
        """What the call gives, as plain values. `timeout_s` bounds each wait for a line; None waits for ever.

        Raises: the error that the cluster answered with, `Unreachable` when it ended, `TimedOut`.
        """
        for answer in self._answers(call, timeout_s):
            match answer:
                case p.Progress(value):
                    if progress is not None:
                        progress(value)
                case p.Result(value):
                    return value
                case LlamboError():
                    raise answer
        raise AssertionError("answers end with a result or an error")

    def _answers(self, call: p.Call, timeout_s: float | None) -> Iterator[p.Progress | p.Result | LlamboError]:
        self._last_id += 1
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(p.encode_request(self._last_id, call))
            while line := self._lines.readline():
                request_id, answer = p.decode_answer(line)
                if request_id in {self._last_id, 0}:  # 0: the server could not tell which
                    yield answer
        except TimeoutError:
            self.close()  # the answer may still come, and would be taken for the next call's
            raise TimedOut(f"the cluster at {self._path} gave no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise Unreachable(f"the cluster at {self._path} is gone: {error.strerror or error}") from None
        raise Unreachable(f"the cluster at {self._path} ended before it answered")
