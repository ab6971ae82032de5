"""The first call sets up and answers; later calls only answer."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from setup_machine import Machine

SHELLS = (["dash"], ["busybox", "ash"], ["bash", "--posix"])


def test_the_first_call_sets_up_and_answers_on_a_clean_standard_output(machine: Machine) -> None:
    first = machine.run()
    assert (first.returncode, first.stdout) == (0, "<limbot><hello>\n")
    steps = re.findall(r"\d/3 [a-z ]+[a-z]", first.stderr)
    assert steps == ["1/3 virtual environment", "2/3 packages", "3/3 check"]
    assert machine.stamps() == {".llambo-run"}


def test_the_packages_are_installed_by_hash_and_llambo_without_a_download(machine: Machine) -> None:
    machine.run()
    packages, llambo = machine.calls()
    assert "--require-hashes" in packages and packages.endswith("requirements/run.txt")
    assert all(option in llambo for option in ("--offline", "--no-deps", "--no-build-isolation", "--editable"))


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_second_call_installs_nothing_and_says_nothing(ready: Machine, shell: list[str]) -> None:
    interpreter = shutil.which(shell[0])
    if interpreter is None:
        pytest.skip(f"{shell[0]} is not installed")
    calls = ready.calls()
    second = ready.run(interpreter, *shell[1:], ready.root / "limbot-cli", "hello")
    assert (second.returncode, second.stdout, second.stderr) == (0, "<limbot><hello>\n", "")
    assert ready.calls() == calls


def test_the_second_call_starts_no_python(ready: Machine) -> None:
    ready.without("python3", "uv")
    assert ready.run().stdout == "<limbot><hello>\n"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_each_shell_can_set_up(machine: Machine, shell: list[str]) -> None:
    interpreter = shutil.which(shell[0])
    if interpreter is None:
        pytest.skip(f"{shell[0]} is not installed")
    first = machine.run(interpreter, *shell[1:], machine.root / "limbot-cli", "hello")
    assert (first.returncode, first.stdout) == (0, "<limbot><hello>\n")


def test_it_can_be_called_from_anywhere_and_through_links(ready: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "relative").symlink_to(Path("../a checkout's place/limbot-cli"))
    (elsewhere / "twice").symlink_to(elsewhere / "relative")
    for command in ("./relative", "./twice", "../a checkout's place/limbot-cli"):
        assert ready.run(command, "x", cwd=elsewhere).stdout == "<limbot><x>\n", command
    assert ready.run("sh", "limbot-cli", "x").stdout == "<limbot><x>\n"
    assert ready.run("sh", "relative", "x", cwd=elsewhere).stdout == "<limbot><x>\n"
    assert len(ready.calls()) == 2


def test_the_caller_s_directory_arguments_and_standard_input_reach_limbot(machine: Machine) -> None:
    answered = machine.run(machine.root / "limbot-cli", "two words", "", "*", "-m", "$HOME", stdin="piped\n")
    assert answered.stdout == "<limbot><two words><><*><-m><$HOME>\npiped\n"


def test_no_colour_or_cursor_movement_goes_where_no_terminal_is(machine: Machine) -> None:
    assert not set("\r\033") & set(machine.run().stderr)


def test_a_python_setting_of_the_caller_does_not_reach_the_set_up(machine: Machine) -> None:
    first = machine.run(environment={"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONWARNINGS": "error"})
    assert first.stdout == "<limbot><hello>\n", first.stderr
