"""`llamboctl top` on a terminal, and what importing the command line costs."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.cli.fake_daemon import fake_daemon
from tests.cli.programs import command
from tests.namespace.namespace_world import NODE
from tests.terminals import CTRL_Z, Person, on_terminal

TOP = ("llamboctl", "top", "--interval", "0.1")


@pytest.mark.parametrize(("end", "status"), [("q", 0), ("Ctrl-C", 130)])
def test_top_draws_the_cluster_until_q_or_ctrl_c_and_gives_the_terminal_back(end: str, status: int) -> None:
    with fake_daemon() as control, on_terminal(command(*TOP), Person, columns=160) as person:
        before = person.modes
        control.by_id["n1"] = replace(NODE, state="busy", model="a [red]name")
        person.expect(r"^n1 +tiny +busy +a \[red\]name", on_screen=True)
        person.expect("^cluster   ready", on_screen=True)
        person.expect("^http      off$", on_screen=True)
        person.until(lambda: person.raw.count(b"q ends") >= 3, "it is not drawn again")
        if end == "q":
            person.type("q")
        else:
            person.process.send_signal(signal.SIGINT)
        assert person.wait() == status
        assert person.modes == before
        assert person.raw.count(b"\x1b[?1049h") == person.raw.count(b"\x1b[?1049l") == 1


def test_ctrl_z_gives_the_terminal_back_and_fg_brings_top_back_with_its_keys() -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with fake_daemon(), on_terminal(shell, Person, columns=160, PS1="sh$ ") as person:
        person.expect(r"sh\$")
        person.enter(shlex.join(command(*TOP)))
        person.expect_next("q ends")
        person.type(CTRL_Z)
        person.expect_next("Stopped")
        person.enter("fg")
        person.expect_next("q ends")
        person.type("q")
        person.expect_next(r"sh\$ ")
        assert person.raw.count(b"\x1b[?1049h") == person.raw.count(b"\x1b[?1049l") == 2
        person.enter("echo ended $?")
        person.expect_next("ended 0")
        person.enter("exit")
        assert person.wait() == 0


def test_the_command_line_is_imported_without_what_only_some_commands_need() -> None:
    heavy = ("aiohttp", "rich", "pydantic", "msgspec", "psutil", "asyncio", "prometheus_client", "ruamel", "uvloop")
    program = f"import sys; import llambo.cli.llamboctl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
