"""What a machine lacks is named, with what brings it, before anything is downloaded."""

from __future__ import annotations

import os
import stat

import pytest
from setup_machine import Machine

OLD = "#!/bin/sh\n[ \"$1\" != -I ] || exit 1\nprintf '3.9.2\\n'\n"
"""Answers the question for its version, and fails the test for a new one."""

SHIM = "#!/bin/sh\nprintf 'pyenv: python3.13: command not found\\n' >&2\nexit 127\n"


def refused(machine: Machine, **environment: str) -> str:
    failed = machine.run(environment=environment)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert machine.calls() == []
    assert machine.stamps() == set()
    return failed.stderr


def test_no_python(machine: Machine) -> None:
    machine.without("python3")
    said = refused(machine)
    assert "Python 3.11 or newer is needed; found none" in said
    assert "apt install python3 python3-venv" in said


def test_an_old_python(machine: Machine) -> None:
    machine.command("python3", OLD)
    assert "found python3 (3.9.2)" in refused(machine)


def test_a_shim_that_only_fails_is_passed_over(machine: Machine) -> None:
    machine.command("python3.13", SHIM)
    assert machine.run().returncode == 0


def test_a_shim_alone_is_no_python(machine: Machine) -> None:
    machine.without("python3")
    machine.command("python3.13", SHIM)
    assert "found python3.13 (does not run)" in refused(machine)


def test_a_python_that_was_asked_for_is_taken_or_refused(machine: Machine) -> None:
    old = machine.command("python-of-mine", OLD)
    assert f"LLAMBO_PYTHON is {old} (3.9.2)" in refused(machine, LLAMBO_PYTHON=str(old))
    machine.path.joinpath("python3").rename(machine.path / "other-python")
    assert machine.run(environment={"LLAMBO_PYTHON": "other-python"}).returncode == 0


@pytest.mark.parametrize("library", ["libgomp.so.1", "libstdc++.so.6"])
def test_a_missing_library(machine: Machine, library: str) -> None:
    machine.python_lacking(library)
    assert f"the engine needs {library}, which this machine lacks: " in refused(machine)


def test_a_missing_venv_module(machine: Machine) -> None:
    machine.python_lacking("venv")
    assert "lacks its module venv: " in refused(machine)


def test_a_missing_ensurepip_matters_to_pip_alone(machine: Machine) -> None:
    machine.python_lacking("ensurepip")
    assert machine.run().returncode == 0


def test_a_missing_ensurepip_without_uv(machine: Machine) -> None:
    machine.without("uv")
    machine.python_lacking("ensurepip")
    assert "lacks its module ensurepip: " in refused(machine)


def test_too_little_room(machine: Machine) -> None:
    machine.python_lacking("disk")
    assert "the set-up needs 300 MB of disk space" in refused(machine)
    assert "has 100 MB free" in refused(machine)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_checkout_that_cannot_be_written(machine: Machine) -> None:
    machine.root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert "cannot be written: use a checkout that belongs to you" in refused(machine)
    finally:
        machine.root.chmod(stat.S_IRWXU)


def test_a_place_where_no_directory_can_be_made(machine: Machine) -> None:
    (machine.root / ".venv.setup").write_text("in the way")
    assert ".venv.setup: File exists" in refused(machine)


def test_a_path_that_venv_refuses(machine: Machine) -> None:
    odd = Machine(machine.root.with_name("a:b"), machine.path, machine.stub_dir)
    machine.root.rename(odd.root)
    assert "no virtual environment below a path with a colon" in refused(odd)
