"""deploy.sh: what each command does with its arguments, and its exit status."""

from __future__ import annotations

import pytest
from setup_machine import Machine


@pytest.mark.parametrize("arguments", [(), ("no-such-command",), ("set-up", "no-such-level")])
def test_bad_usage_shows_the_commands_and_exits_2(machine: Machine, arguments: tuple[str, ...]) -> None:
    told = machine.run("./deploy.sh", *arguments)
    assert (told.returncode, told.stdout) == (2, "")
    assert "usage: ./deploy.sh COMMAND" in told.stderr
    assert machine.calls() == []


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
def test_help_is_an_answer(machine: Machine, word: str) -> None:
    told = machine.run("./deploy.sh", word)
    assert (told.returncode, told.stderr) == (0, "")
    assert "test [PYTEST ARGUMENT…]" in told.stdout


def test_build_bridge_sets_up_and_is_llamboctl_engine_build(machine: Machine) -> None:
    done = machine.run("./deploy.sh", "build-bridge", "--no-tune")
    assert (done.returncode, done.stdout) == (0, "<llamboctl><engine><build><--no-tune>\n")
    assert machine.stamps() == {".llambo-run"}


@pytest.mark.parametrize(
    ("command", "delegated"),
    [
        (("start-bridge",), "<start>"),
        (("start-bridge", "--model", "my model.gguf"), "<start><--model><my model.gguf>"),
        (("stop-bridge",), "<stop>"),
        (("status",), "<status>"),
        (("test-ffi",), "<test><--ffi>"),
        (("test-streaming", "my model.gguf"), "<test><--streaming><my model.gguf>"),
    ],
)
def test_a_bridge_command_sets_up_and_is_llamboctl_s(
    machine: Machine, command: tuple[str, ...], delegated: str
) -> None:
    done = machine.run("./deploy.sh", *command)
    assert (done.returncode, done.stdout) == (0, f"<llamboctl><bridge>{delegated}\n")
    assert machine.stamps() == {".llambo-run"}


def test_test_installs_what_tests_need_once_and_runs_pytest(machine: Machine) -> None:
    # The stub compiles nothing, unlike uv and pip: bytecode that pytest wrote would count as a change by other hands.
    for _ in range(2):
        done = machine.run(
            machine.root / "deploy.sh",
            *("test", "-k", "two words"),
            cwd=machine.stub_dir,
            environment={"PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert (done.returncode, done.stdout) == (0, "pytest ['-k', 'two words']\n"), done.stderr
    assert [call.split("/")[-1] for call in machine.calls() if "--require-hashes" in call] == ["test.txt"]
    assert machine.stamps() == {".llambo-run", ".llambo-test"}
