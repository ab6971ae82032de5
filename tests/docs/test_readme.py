"""The README's commands, as they are written, do what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group

from llambo.cli import llamboctl
from tests.cli.programs import command, run

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
QUESTIONS = [
    line.strip()
    for line in README.splitlines()
    if re.match(r"    (.*\| )?\./limbot-cli ", line) and "user/repo" not in line  # those need a network
]


def test_the_readme_has_questions() -> None:
    assert len(QUESTIONS) >= 4


@pytest.mark.parametrize("line", sorted(set(QUESTIONS)))
def test_a_question_of_the_readme_is_answered(line: str) -> None:
    if " -c " in line:  # there must be something to go on with
        assert run("limbot", "What is a node?").returncode == 0
    done = subprocess.run(
        ["sh", "-c", line.replace("./limbot-cli", shlex.join(command("limbot")))],
        cwd=REPOSITORY,
        input="What is a node?\n" if line.endswith(" -i") else "",  # a chat without a terminal
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 10


def test_the_python_example_runs_against_a_bridge() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert run("llamboctl", "bridge", "start").returncode == 0
    try:
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=True)
    finally:
        assert run("llamboctl", "bridge", "stop").returncode == 0
    assert len(done.stdout) > 10


def test_the_commands_of_the_readme_exist() -> None:
    scripts = (REPOSITORY / "deploy.sh").read_text(encoding="utf-8")
    for name in re.findall(r"\./deploy\.sh ([\w-]+)", README):
        assert re.search(rf"^    {name}\b.*\)", scripts, re.MULTILINE), name
    assert set(re.findall(r"\bllamboctl (\w+)", README)) <= set(get_group(llamboctl.app).commands)
