"""The machine that the tests of the set-up run on."""

from __future__ import annotations

from pathlib import Path

import pytest
from setup_machine import Machine, make_machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with uv and one Python, and a checkout that nobody has set up."""
    return make_machine(tmp_path)


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """The same machine after the first call."""
    first = machine.run()
    assert first.returncode == 0, first.stderr
    return machine
