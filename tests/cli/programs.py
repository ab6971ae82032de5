"""Runs the entry points as a shell would: real processes, real pipes and terminals."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = {
    "limbot": "llambo.cli.limbot",
    "llamboctl": "llambo.cli.llamboctl",
    "llama-cpp-bridge": "llambo.cli.bridge",
    "dish": "llambo.cli.dish",
}


def command(program: str, *arguments: str | Path) -> list[str]:
    """The command line of an entry point in this environment."""
    start = f"import {PROGRAMS[program]} as m; m.main()"
    return [sys.executable, "-c", start, *map(str, arguments)]


def run(
    program: str, *arguments: str | Path, stdin: str | bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs an entry point to its end; without `stdin` it reads /dev/null."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    if stdin is not None:
        given = {"input": stdin.encode() if isinstance(stdin, str) else stdin}
    done = subprocess.run(
        command(program, *arguments),
        capture_output=True,
        timeout=100,
        env={**os.environ, **environment},
        check=False,
        **given,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def start(program: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Starts an entry point with its output on pipes."""
    return subprocess.Popen(command(program, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def on_a_terminal(program: str, *arguments: str) -> str:
    """What a program draws on a terminal of 80 columns."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        command(program, *arguments), stdin=other, stdout=other, stderr=other, env={**os.environ, "TERM": "xterm"}
    )
    os.close(other)
    drawn = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # EIO: nobody holds the other side any more
            break
        drawn += piece
    os.close(main)
    assert process.wait(60) == 0
    return drawn.decode()
