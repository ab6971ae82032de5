"""Whatever broke or changed, the next call puts it right; nothing claims to be set up that is not."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from setup_machine import Machine


def long_ago(stamp: Path) -> None:
    """Ages a stamp, so that what a test changes now is later on file systems with coarse times too."""
    os.utime(stamp, (1_000_000_000, 1_000_000_000))


def settle(machine: Machine) -> None:
    """Ages everything that stands, so that only what comes after shows as a change."""
    for path in (machine.venv / "bin", machine.site_packages, *machine.site_packages.iterdir()):
        os.utime(path, (999_999_999, 999_999_999))
    for name in machine.stamps():
        long_ago(machine.venv / name)


def assert_repairs(machine: Machine, *, installs: bool = True) -> None:
    before = machine.calls()
    repaired = machine.run()
    assert (repaired.returncode, repaired.stdout) == (0, "<limbot><hello>\n"), repaired.stderr
    assert (machine.calls() != before) is installs
    after = machine.calls()
    assert machine.run().stderr == ""
    assert machine.calls() == after


def test_a_failed_install_is_told_and_taken_up_again(machine: Machine) -> None:
    (machine.stub_dir / "failure").write_text("downloading\nerror: something odd\n")
    failed = machine.run()
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "  | error: something odd" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("llambo: installing the packages failed: exit status 1.")
    assert machine.stamps() == set()
    (machine.stub_dir / "failure").unlink()
    assert_repairs(machine)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("NewConnectionError: Failed to establish a new connection", "the package registry cannot be reached"),
        ("error: Failed to fetch: dns error", "the package registry cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for xllamacpp", "the registry has no build of it for this Python"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "a package is not the one that was locked"),
    ],
)
def test_an_installer_s_error_becomes_one_sentence(machine: Machine, output: str, sentence: str) -> None:
    (machine.stub_dir / "failure").write_text(f"{output}\n")
    failed = machine.run()
    assert (failed.returncode, sentence in failed.stderr.splitlines()[-1]) == (1, True)


def test_pip_takes_over_from_uv_and_tells_of_a_registry_that_is_out_of_reach(ready: Machine) -> None:
    ready.without("uv")
    (ready.root / "requirements/run.txt").write_text(f"six==1.16.0 --hash=sha256:{'0' * 64}\n")
    registry = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    failed = ready.run(environment=registry)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "the package registry cannot be reached" in failed.stderr.splitlines()[-1]
    assert ready.stamps() == set()


def test_a_set_up_killed_at_any_place_is_repaired(machine: Machine) -> None:
    with machine.installer_held() as gate, machine.start() as killed:
        gate.wait_until_entered()
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert machine.stamps() == set()
    assert_repairs(machine)


def test_ctrl_c_ends_the_set_up_and_its_installer(machine: Machine) -> None:
    with machine.installer_held() as gate, machine.start() as interrupted:
        gate.wait_until_entered()
        os.killpg(interrupted.pid, signal.SIGINT)
        _, said = interrupted.communicate()
    assert interrupted.returncode in (130, -signal.SIGINT)
    assert "interrupted; the next call takes the set-up up again" in said
    assert_repairs(machine)


def test_a_kill_while_the_environment_is_made_is_repaired(ready: Machine) -> None:
    (ready.venv / ".llambo-run").unlink()
    shutil.rmtree(ready.venv / "lib")
    (ready.venv / "pyvenv.cfg").unlink()
    assert_repairs(ready)


@pytest.mark.parametrize(
    "damage",
    [".llambo-run", "bin/limbot", "bin/python", "bin", "lib", "pyvenv.cfg", ".llambo-owner"],
)
def test_what_is_deleted_in_the_environment_is_brought_back(ready: Machine, damage: str) -> None:
    if damage in (".llambo-owner", "pyvenv.cfg"):  # no start looks at these; they count when a set-up is due
        (ready.venv / ".llambo-run").unlink()
    path = ready.venv / damage
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert_repairs(ready)


def test_a_package_that_is_deleted_is_brought_back(ready: Machine) -> None:
    settle(ready)
    shutil.rmtree(ready.site_packages / "xllamacpp")
    assert_repairs(ready)
    assert (ready.site_packages / "xllamacpp/__init__.py").is_file()


def test_a_file_of_a_package_that_is_deleted_is_brought_back(ready: Machine) -> None:
    settle(ready)
    (ready.site_packages / "xllamacpp/__init__.py").unlink()
    assert_repairs(ready)
    assert (ready.site_packages / "xllamacpp/__init__.py").is_file()


@pytest.mark.parametrize("remains", ["~lamacpp", "broken-1.dist-info"])
def test_what_an_interrupted_installer_left_is_not_built_upon(ready: Machine, remains: str) -> None:
    (ready.site_packages / remains).mkdir()
    (ready.venv / ".llambo-run").unlink()
    assert_repairs(ready)
    assert not (ready.site_packages / remains).exists()


def test_a_whole_environment_is_completed_and_not_made_anew(ready: Machine) -> None:
    (ready.venv / "kept").touch()
    (ready.venv / ".llambo-run").unlink()
    assert_repairs(ready)
    assert (ready.venv / "kept").exists()


@pytest.mark.parametrize("changed", ["requirements/run.txt", "pyproject.toml"])
def test_a_change_of_what_is_wanted_installs_it(ready: Machine, changed: str) -> None:
    (ready.root / changed).write_text("# another version\n")
    assert_repairs(ready)


def test_a_change_of_what_only_tests_want_does_not_concern_limbot(ready: Machine) -> None:
    (ready.root / "requirements/test.txt").write_text("# another version\n")
    assert ready.run().stderr == ""


def test_a_checkout_that_moved_is_set_up_at_its_new_place(ready: Machine) -> None:
    moved = Machine(ready.root.with_name("moved here"), ready.path, ready.stub_dir)
    ready.root.rename(moved.root)
    assert_repairs(moved)
    assert str(ready.root) not in (moved.venv / ".llambo-run").read_text()


def test_a_python_that_was_removed_is_replaced(ready: Machine) -> None:
    (ready.venv / "bin/python").unlink()
    (ready.venv / "bin/python").symlink_to("/nowhere/bin/python3.11")
    assert_repairs(ready)


def test_an_environment_made_by_others_is_kept_beside(machine: Machine) -> None:
    for number in (1, 2):
        machine.venv.mkdir()
        (machine.venv / "mine").write_text(f"{number}")
        told = machine.run()
        assert f"kept as .venv.kept-{number}" in told.stderr
        assert (machine.root / f".venv.kept-{number}/mine").read_text() == f"{number}"
        shutil.rmtree(machine.venv)


def test_two_calls_at_once_install_once(machine: Machine) -> None:
    with machine.installer_held() as gate, machine.start() as first:
        gate.wait_until_entered()
        with machine.start() as second:
            assert second.stderr is not None
            assert "waiting for the set-up that process" in second.stderr.readline()
            gate.open()
            assert first.communicate()[0] == second.communicate()[0] == "<limbot><hello>\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(machine.calls()) == 2


def test_an_installer_that_outlives_its_set_up_is_waited_for(machine: Machine) -> None:
    with machine.installer_held() as gate, machine.start() as first:
        gate.wait_until_entered()
        os.kill(int((machine.root / ".venv.setup/lock").read_text()), signal.SIGKILL)
        assert first.wait() != 0
        with machine.start() as second:
            assert second.stderr is not None
            assert "waiting for the set-up" in second.stderr.readline()
            gate.open()
            assert second.communicate()[0] == "<limbot><hello>\n"
    assert machine.stamps() == {".llambo-run"}


def test_a_set_up_for_tests_serves_limbot_too(machine: Machine) -> None:
    assert machine.run("./deploy.sh", "set-up", "test").returncode == 0
    calls = machine.calls()
    assert machine.run().stderr == ""
    assert machine.calls() == calls
    assert machine.stamps() == {".llambo-run", ".llambo-test"}


def test_test_packages_that_failed_to_install_leave_limbot_usable(ready: Machine) -> None:
    (ready.stub_dir / "failure").write_text("no\n")
    assert ready.run("./deploy.sh", "set-up", "test").returncode == 1
    (ready.stub_dir / "failure").unlink()
    assert_repairs(ready)
    assert ".llambo-test" not in ready.stamps()


def test_an_active_virtual_environment_of_its_own_is_no_base(ready: Machine) -> None:
    ready.command("python3", f'#!/bin/sh\nexec "{ready.venv}/bin/python" "$@"\n')
    (ready.site_packages / "~broken").mkdir()
    (ready.venv / ".llambo-run").unlink()
    assert_repairs(ready)
    assert (ready.venv / "bin/python").resolve() == Path(sys.executable).resolve()
