"""The part of docs/usage.md on dish: its lines run as they stand, and its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from llambo.core.errors import LlamboError, from_code
from llambo.dish.command import SETTINGS
from llambo.dish.commands import TABLE
from tests.cli.programs import run

PAGE = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
OF_DISH = PAGE.split("\n## From Python")[0]
LINES = re.findall(r"^ {4}llambo> (.*)$", PAGE, re.MULTILINE)


def test_the_lines_that_are_shown_run() -> None:
    lines = [line for line in LINES if line != "exit"]
    assert len(lines) == len(LINES) - 1 >= 15
    done = run("dish", "-c", "\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert "%1 running  infer max_tokens=20" in done.stdout or "%1 done     infer max_tokens=20" in done.stdout


def test_the_table_of_commands_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(.*?)` \| (.*?)(?: \(also `(.*)`\))? \|$", OF_DISH, re.MULTILINE)
    told = [(usage.replace("\\|", "|"), what, alias) for usage, what, alias in rows]
    assert told == [(command.usage, command.help, "".join(command.aliases)) for command in TABLE.commands]


def test_the_settings_and_statuses_are_those_of_the_code() -> None:
    assert all(f"`{name}`" in PAGE for name in SETTINGS)
    codes = ("failed", "bad_request", "unreachable", "refused", "overloaded", "timeout", "no_quorum", "cancelled")
    told = {int(status) for status in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {0, *(from_code(code, "").exit_status for code in codes)}
    assert LlamboError.exit_status in told
