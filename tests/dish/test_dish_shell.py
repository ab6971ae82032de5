"""dish on a terminal, over a private cluster with the built-in model."""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from llambo.core import paths
from tests.cli.programs import command, run
from tests.terminals import CTRL_C, CTRL_D, TAB, UP, Person, on_terminal


class Sitter(Person):
    """Somebody who uses dish."""

    def prompt(self) -> None:
        """Waits until the next line can be typed."""
        self.expect_next("llambo> ")

    def leave(self) -> None:
        """Ends dish at its prompt; it ends well."""
        self.type(CTRL_D)
        assert self.wait() == 0
        assert "Traceback" not in self.written


@contextlib.contextmanager
def dish(**environment: str) -> Iterator[Sitter]:
    """dish on a terminal, at its first prompt."""
    with on_terminal(command("dish"), Sitter, columns=100, rows=30, **environment) as person:
        person.prompt()
        yield person


def test_the_shell_runs_commands_completes_them_and_ends_with_ctrl_d() -> None:
    with dish() as shell:
        assert "a private one" in shell.written
        shell.enter("echo hello $cluster")
        shell.expect_next("\nhello /n/llambo\n")
        shell.prompt()
        shell.type(f"cat no{TAB}")
        shell.expect_next("nodes")
        shell.type(f"/n{TAB}")
        shell.expect_next("1/")  # the n may be drawn apart from it
        shell.enter("model")
        shell.expect_next("\nbuilt-in\n")
        shell.prompt()
        shell.enter("cat nope")
        shell.expect_next("/n/llambo/nope: file does not exist")
        shell.prompt()
        shell.leave()


def test_ctrl_c_ends_the_running_command_alone(tiny_model: Path) -> None:
    with dish(LLAMBO_MODELS_DEFAULT=str(tiny_model)) as shell:
        shell.enter("infer max_tokens=100000 go on")  # a model whose answers do not end
        shell.expect_next(r"\n[^\n]{3}")
        shell.type(CTRL_C)
        shell.prompt()
        shell.enter("echo $status; cat status")
        shell.expect_next("\n130\n")
        shell.expect_next("\nbusy 0\n")
        shell.prompt()
        shell.type(f"this line is dropped{CTRL_C}")
        shell.prompt()
        shell.enter("exit 3")
        assert shell.wait() == 3


def test_the_lines_of_a_long_answer_break_between_words() -> None:
    line = "infer temperature=0 max_tokens=60 What is a node?"
    answer = run("dish", "-c", line).stdout
    assert len(answer) > 150
    with dish() as shell:
        shell.enter(line)
        shell.expect_next(f"\n{answer.split()[0]} ")
        shell.prompt()
        asked = next(number for number, shown in enumerate(shell.screen) if line in shown)
        shown = [text for text in shell.screen[asked + 1 :] if text and text != "llambo>"]
        shell.leave()
    assert len(shown) >= 2
    assert " ".join(shown).split() == answer.split()


def test_lines_are_kept_for_the_next_shell_but_none_with_a_token() -> None:
    with dish() as shell:
        shell.enter("echo remembered")
        shell.prompt()
        shell.enter("echo llb_secret")
        shell.prompt()
        shell.enter("quit")
        assert shell.wait() == 0
    file = paths.home() / "dish_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "llb_secret" not in file.read_text()
    with dish() as shell:
        shell.type(UP)
        shell.expect_next("quit")
        shell.type(UP)
        shell.expect_next("echo.?remembered")  # what is on the screen already is not drawn again
        shell.type("\r")
        shell.expect_next("\nremembered\n")
        shell.prompt()
        shell.enter("cat /n/dish/history")
        shell.expect_next("\necho remembered\nquit\necho remembered\ncat /n/dish/history\n")
        shell.prompt()
        shell.leave()


def test_watch_is_live_on_a_screen_of_its_own_until_ctrl_c() -> None:
    with dish() as shell:
        shell.enter("watch every=0.1 status")
        for _ in range(3):
            shell.expect_next(r"status, every 0\.1 s; Ctrl-C ends.*state ready.*uptime_s [0-9.]+")
        shell.type(CTRL_C)
        shell.prompt()
        shell.enter("watch every=0.1 times=2 nodes")
        shell.expect_next("ID +TYPE")
        shell.prompt()
        shell.leave()
        assert shell.raw.count(b"\x1b[?1049h") == shell.raw.count(b"\x1b[?1049l") == 2
        assert len(set(re.findall(r"uptime_s ([0-9.]+)", shell.written))) >= 3


def test_a_job_tells_of_its_end_above_the_prompt() -> None:
    with dish() as shell:
        shell.enter("infer max_tokens=4 What is a node? &")
        shell.expect_next("%1\n")
        shell.expect_next(r"%1 done     infer max_tokens=4 What is a node\?\n[^\n]+\n")
        shell.enter("jobs")
        shell.prompt()
        shell.enter("cat events &")
        shell.prompt()
        shell.enter("jobs")
        shell.expect_next("%1 running  cat events")
        shell.enter("kill %1")
        shell.enter("exit")
        assert shell.wait() == 0


def test_a_private_cluster_that_is_shut_down_ends_the_shell() -> None:
    with dish() as shell:
        shell.enter("echo shutdown > ctl")
        assert shell.wait() == 0


def test_without_colours_nothing_is_coloured() -> None:
    with dish(NO_COLOR="1") as shell:
        shell.enter("cat nope")
        shell.expect_next("does not exist")
        shell.prompt()
        shell.leave()
        assert b"\x1b[31m" not in shell.raw
        assert b"\x1b[0;3" not in shell.raw
