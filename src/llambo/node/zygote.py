"""The zygote: a small process that has loaded the engine's library and nothing else, and forks a node per spawn.

A fork costs milliseconds where a start costs a hundred, and shares the library's memory. It owns its children: it
reaps them and reports their end, and when its standard input closes it kills them all and ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from llambo.core.errors import LlamboError
from llambo.engine import llama
from llambo.node import main as node
from llambo.node.spec import NodeSpec

if TYPE_CHECKING:
    from llambo.engine.backend import Prepared

_STDIN, _STDOUT = 0, 1
_FILES = 65_536


class Zygote:
    """One loop over two sources: orders on standard input, and ended children."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # pid -> node name
        self._pids: dict[str, int] = {}  # and back
        # By directory and library: loaded once, and shared by every fork.
        self._backends: dict[tuple[str, str], Prepared] = {}
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Serves until standard input closes, then leaves no child behind."""
        signal.signal(signal.SIGCHLD, _ignore)  # a handler is what makes the wake-up pipe speak
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            node.say(_STDOUT, event="up", pid=os.getpid())
            self._serve()
        finally:
            self._end()

    def _serve(self) -> None:
        pending = b""
        while True:
            readable, _, _ = select.select([_STDIN, self._wake_read], [], [])
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
                self._reap()
            if _STDIN in readable:
                chunk = os.read(_STDIN, 65536)
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        match order:
            case {"spawn": dict() as fields}:
                self._spawn(NodeSpec(**fields))
            case {"signal": int() as number, "name": str() as name}:
                if pid := self._pids.get(name):
                    os.kill(pid, number)
            case _:
                raise ValueError(f"unknown order: {order}")

    def _spawn(self, spec: NodeSpec) -> None:
        parent_pid = os.getpid()
        prepared = self._prepare(spec)
        try:
            pid = os.fork()
        except OSError as error:  # of this node alone: the others go on
            node.say(_STDOUT, event="unforked", name=spec.name, message=str(error.strerror))
            return
        if pid == 0:
            self._become(spec, parent_pid, prepared)
        self._names[pid] = spec.name
        self._pids[spec.name] = pid
        node.say(_STDOUT, event="started", name=spec.name, pid=pid)

    def _prepare(self, spec: NodeSpec) -> Prepared | None:
        """The backend that the node wants, loaded; None for the wheel's own, also where it cannot be loaded."""
        if not spec.backend:
            return None
        from llambo.engine import backend  # noqa: PLC0415 - only where something was built

        try:
            key = (spec.backend, spec.library_sha256)
            if key not in self._backends:
                self._backends[key] = backend.prepare(Path(spec.backend), library_sha256=spec.library_sha256)
            return self._backends[key]
        except (LlamboError, OSError) as error:
            lasts = not isinstance(error, backend.NotHere)
            node.say(_STDOUT, event="unbacked", name=spec.name, message=str(error), lasts=lasts)
            return None

    def _become(self, spec: NodeSpec, parent_pid: int, prepared: Prepared | None) -> NoReturn:
        """In the child: drops everything that is the zygote's, then runs the node."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._lifeline_write, self._wake_read, self._wake_write):
                os.close(fd)
            events_fd = os.dup(_STDOUT)
            null_fd = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null_fd, _STDIN)
            os.close(null_fd)
            try:
                node.run(
                    spec,
                    events_fd=events_fd,
                    lifeline_fd=self._lifeline_read,
                    parent_pid=parent_pid,
                    prepared=prepared,
                )
            except OSError as error:
                node.say(events_fd, event="failed", name=spec.name, message=str(error))
        except BaseException:  # whatever it was, this child must not become a second zygote
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while self._names:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name = self._names.pop(pid)
            if self._pids.get(name) == pid:
                del self._pids[name]
            node.say(_STDOUT, event="exited", name=name, pid=pid, status=os.waitstatus_to_exitcode(status))

    def _end(self) -> None:
        for pid in self._names:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._names:
            os.waitpid(pid, 0)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Does nothing: the wake-up pipe has told the loop."""


def _raise_file_limit() -> None:
    """A connection to a node is a descriptor in it, and the usual soft limit of 1,024 is meant for `select` alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """The process's entry: `python -m llambo.node.zygote`, started by a launcher and by nobody else."""
    try:
        llama.load_library()
    except ImportError as error:
        node.say(_STDOUT, event="broken", message=str(error))
        return 1
    _raise_file_limit()
    gc.collect()
    gc.freeze()  # a collection in a node would write to, and so copy, every page that it shares with us
    # The launcher may be gone already; then there is nobody to tell and nothing to do.
    with contextlib.suppress(BrokenPipeError):
        Zygote().run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
