"""Real daemons for tests: started by `llamboctl init`, and gone when the test is over, whatever it did."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from llambo.cli import launching
from llambo.core import paths
from tests.cli.programs import run


def ctl(*arguments: str | Path, status: int = 0, **environment: str) -> str:
    """What a `llamboctl` command prints; it has to exit with `status`."""
    done = run("llamboctl", *arguments, **environment)
    assert done.returncode == status, done.stderr
    return done.stdout


def ask(*arguments: str | Path) -> Any:
    """The JSON document of a `llamboctl` command."""
    return json.loads(ctl(*arguments, "--json"))


def daemon_pid() -> int:
    """The process that holds this home's lock, or held it last; 0 where there was none."""
    try:
        return int((paths.home() / "daemon.lock").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def runs(pid: int) -> bool:
    """Whether the process runs; one that has ended, and whose parent has not taken note of that yet, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes(pid: int) -> list[psutil.Process]:
    """A daemon and everything below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def all_gone(left: list[psutil.Process], timeout_s: float = 30) -> bool:
    """Whether all of them end in time."""
    with contextlib.suppress(Exception):
        for process in left:
            launching.wait_for_end(process.pid, timeout_s, what="a process")
        return True
    return False


def sockets_and_files() -> list[str]:
    """What is in the runtime directory."""
    return sorted(path.name for path in paths.runtime_dir().iterdir())


@contextmanager
def no_daemon_left() -> Iterator[None]:
    """Kills what the block leaves of this home's daemon."""
    try:
        yield
    finally:
        pid = daemon_pid()
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid and runs(pid) and any("llambo" in word for word in psutil.Process(pid).cmdline()):
                left = processes(pid)
                left[0].kill()
                assert all_gone(left)


@contextmanager
def cluster(*arguments: str | Path) -> Iterator[dict[str, Any]]:
    """A running daemon; what `init --json` said. Shut down at the end, unless the block has done so."""
    with no_daemon_left():
        facts: dict[str, Any] = ask("init", *arguments)
        yield facts
        if runs(facts["pid"]) and run("llamboctl", "status").returncode == 0:
            ctl("shutdown")
