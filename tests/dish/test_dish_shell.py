"""dish on a terminal, over a private cluster with the built-in model."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from llambo.core import paths
from tests.dish.terminals import CTRL_C, CTRL_D, TAB, UP, terminal


def test_the_shell_runs_commands_completes_them_and_ends_with_ctrl_d() -> None:
    with terminal() as shell:
        shell.expect("a private one")
        shell.prompt()
        shell.enter("echo hello $cluster")
        shell.expect("\nhello /n/llambo\n")
        shell.prompt()
        shell.type(f"cat no{TAB}")
        shell.expect("nodes")
        shell.type(f"/n{TAB}")
        shell.expect("1/")  # the n may be drawn apart from it
        shell.enter("model")
        shell.expect("\nbuilt-in\n")
        shell.prompt()
        shell.enter("cat nope")
        shell.expect("/n/llambo/nope: file does not exist")
        shell.prompt()
        shell.type(CTRL_D)
        assert shell.wait() == 0
        assert "Traceback" not in shell.text


def test_ctrl_c_ends_the_running_command_alone(tiny_model: Path) -> None:
    with terminal(LLAMBO_MODELS_DEFAULT=str(tiny_model)) as shell:
        shell.prompt()
        shell.enter("infer max_tokens=100000 go on")  # a model whose answers do not end
        shell.expect(r"\n[^\n]{3}")
        shell.type(CTRL_C)
        shell.prompt()
        shell.enter("echo $status; cat status")
        shell.expect("\n130\n")
        shell.expect("\nbusy 0\n")
        shell.prompt()
        shell.type(f"this line is dropped{CTRL_C}")
        shell.prompt()
        shell.enter("exit 3")
        assert shell.wait() == 3


def test_lines_are_kept_for_the_next_shell_but_none_with_a_token() -> None:
    with terminal() as shell:
        shell.prompt()
        shell.enter("echo remembered")
        shell.prompt()
        shell.enter("echo llb_secret")
        shell.prompt()
        shell.enter("quit")
        assert shell.wait() == 0
    file = paths.home() / "dish_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "llb_secret" not in file.read_text()
    with terminal() as shell:
        shell.prompt()
        shell.type(UP)
        shell.expect("quit")
        shell.type(UP)
        shell.expect("echo.?remembered")  # what is on the screen already is not drawn again
        shell.type("\r")
        shell.expect("\nremembered\n")
        shell.prompt()
        shell.enter("cat /n/dish/history")
        shell.expect("\necho remembered\nquit\necho remembered\ncat /n/dish/history\n")
        shell.prompt()
        shell.type(CTRL_D)
        assert shell.wait() == 0


def test_watch_is_live_on_a_screen_of_its_own_until_ctrl_c() -> None:
    with terminal() as shell:
        shell.prompt()
        shell.enter("watch every=0.1 status")
        for _ in range(3):
            shell.expect(r"status, every 0\.1 s; Ctrl-C ends.*state ready.*uptime_s [0-9.]+")
        shell.type(CTRL_C)
        shell.prompt()
        shell.enter("watch every=0.1 times=2 nodes")
        shell.expect("ID +TYPE")
        shell.prompt()
        shell.type(CTRL_D)
        assert shell.wait() == 0
        assert shell.raw.count("\x1b[?1049h") == shell.raw.count("\x1b[?1049l") == 2
        assert len(set(re.findall(r"uptime_s ([0-9.]+)", shell.text))) >= 3


def test_a_job_tells_of_its_end_above_the_prompt() -> None:
    with terminal() as shell:
        shell.prompt()
        shell.enter("infer max_tokens=4 What is a node? &")
        shell.expect("%1\n")
        shell.expect(r"%1 done     infer max_tokens=4 What is a node\?\n[^\n]+\n")
        shell.enter("jobs")
        shell.prompt()
        shell.enter("cat events &")
        shell.prompt()
        shell.enter("jobs")
        shell.expect("%1 running  cat events")
        shell.enter("kill %1")
        shell.enter("exit")
        assert shell.wait() == 0


def test_a_private_cluster_that_is_shut_down_ends_the_shell() -> None:
    with terminal() as shell:
        shell.prompt()
        shell.enter("echo shutdown > ctl")
        assert shell.wait() == 0


def test_without_colours_nothing_is_coloured() -> None:
    with terminal(NO_COLOR="1") as shell:
        shell.prompt()
        shell.enter("cat nope")
        shell.expect("does not exist")
        shell.prompt()
        shell.type(CTRL_D)
        assert shell.wait() == 0
        assert "\x1b[31m" not in shell.raw
        assert "\x1b[0;3" not in shell.raw
