"""`llamboctl top` on a terminal, and what importing the command line costs."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from dataclasses import replace

import pytest

from tests.cli.fake_daemon import fake_daemon
from tests.cli.programs import command
from tests.namespace.namespace_world import NODE


@pytest.mark.parametrize(("end", "status"), [("q", 0), ("Ctrl-C", 130)])
def test_top_draws_the_cluster_until_q_or_ctrl_c_and_gives_the_terminal_back(end: str, status: int) -> None:
    main, other = pty.openpty()
    before = termios.tcgetattr(other)
    with fake_daemon() as control:
        control.by_id["n1"] = replace(NODE, state="busy", model="a [red]name")
        process = subprocess.Popen(
            command("llamboctl", "top", "--interval", "0.1"),
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
        )
        drawn = b""
        while drawn.count(b"q ends") < 3:
            drawn += os.read(main, 65536)
        if end == "q":
            os.write(main, b"q")
        else:
            process.send_signal(signal.SIGINT)
        while process.poll() is None:
            if select.select([main], [], [], 0.1)[0]:
                drawn += os.read(main, 65536)
        assert process.returncode == status
    assert termios.tcgetattr(other) == before
    os.close(main)
    os.close(other)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", drawn).decode()
    assert "cluster   ready" in text
    assert re.search(r"n1 +tiny +busy +a \[red\]name", text)
    assert drawn.count(b"\x1b[?1049h") == drawn.count(b"\x1b[?1049l") == 1


def test_the_command_line_is_imported_without_what_only_some_commands_need() -> None:
    heavy = ("aiohttp", "rich", "pydantic", "msgspec", "psutil", "asyncio", "prometheus_client", "ruamel", "uvloop")
    program = f"import sys; import llambo.cli.llamboctl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
