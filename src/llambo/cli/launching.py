"""Starts a program that serves in the background, waits until it says that it is ready, and ends it again.

The other end of the report is `serving`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from llambo.core.errors import LlamboError, TimedOut, from_code

STOP_MARGIN_S = 10.0
"""Over the drain: nodes end, sockets close."""


class LaunchFailed(Exception):
    """The program ended before it served, with `error`; `fields` are what its report said beside that."""

    def __init__(self, error: LlamboError, fields: dict[str, Any]) -> None:
        super().__init__(error)
        self.error = error
        self.fields = fields


def launch(
    module: str, arguments: list[str], *, what: str, progress: Callable[[dict[str, Any]], None] | None = None
) -> tuple[int, dict[str, Any]]:
    """Runs `module` in a session of its own and returns its process id and its report once it serves.

    `what` names it in errors. Raises: `LaunchFailed`.
    """
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as report:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--ready-fd", str(write_fd), *arguments],
            pass_fds=[write_fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(write_fd)
        try:
            fields = _read_report(report, progress)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if not fields:
        error = LlamboError(f"{what} ended with status {process.wait()} before it was ready")
        raise LaunchFailed(error, {})
    if "code" in fields:
        process.wait()
        raise LaunchFailed(from_code(fields.pop("code"), fields.pop("message")), fields)
    process.returncode = 0  # it is on its own from here: no warning that a child still runs
    return process.pid, fields


def _read_report(report: Any, progress: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
    """The last line of the report; empty when the program died without one."""
    import msgspec

    for line in report:
        fields: dict[str, Any] = msgspec.json.decode(line)
        if "progress" not in fields:
            return fields
        if progress is not None:
            progress(fields["progress"])
    return {}


def end(pid: int, timeout_s: float, *, what: str) -> None:
    """Asks a program to stop by SIGTERM and returns when it has ended; one that has is no error.

    Raises: `TimedOut`.
    """
    import psutil

    try:
        psutil.Process(pid).terminate()
    except psutil.NoSuchProcess:
        return
    wait_for_end(pid, timeout_s, what=what)


def wait_for_end(pid: int, timeout_s: float, *, what: str) -> None:
    """Returns when the process is gone.

    Raises: `TimedOut`.
    """
    late = TimedOut(f"{what} (pid {pid}) did not end within {timeout_s:g} s")
    if hasattr(os, "pidfd_open"):
        # Readable when the process ends; its parent, which may be long in taking note of that, is not waited for.
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if not select.select([descriptor], [], [], timeout_s)[0]:
                raise late
        finally:
            os.close(descriptor)
        return
    import psutil

    try:
        psutil.Process(pid).wait(timeout_s)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise late from None
