"""The sentences that need no machine: package names per system, and system errors."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest
from setup_machine import CHECKOUT


@pytest.fixture(scope="module")
def set_up_machine() -> ModuleType:
    """scripts/set_up/machine.py under a name of its own: the set-up is a program, not a package."""
    spec = importlib.util.spec_from_file_location("set_up_machine", CHECKOUT / "scripts/set_up/machine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ({"ID": "debian"}, "apt install libgomp1"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "apt install libgomp1"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "apt install libgomp1"),
        ({"ID": "fedora"}, "dnf install libgomp"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "dnf install libgomp"),
        ({"ID": "alpine"}, "apk add libgomp"),
        ({"ID": "arch"}, "pacman -S gcc-libs"),
        ({"ID": "opensuse-leap", "ID_LIKE": "suse opensuse"}, "zypper install libgomp1"),
        ({"ID": "something-else"}, "apt install libgomp1"),
    ],
)
def test_each_system_is_told_its_own_package(
    set_up_machine: ModuleType, monkeypatch: pytest.MonkeyPatch, release: dict[str, str], command: str
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    assert set_up_machine.how_to_get("libgomp.so.1") == command


def test_debian_s_venv_package_is_named_after_the_python_that_lacks_it(
    set_up_machine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    assert set_up_machine.how_to_get("venv") == f"apt install python3.{sys.version_info.minor}-venv"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
        (errno.ENOSPC, "the disk of /x is full"),
        (errno.EDQUOT, "the disk of /x is full"),
        (errno.ENOTDIR, "/x/y: Not a directory"),
    ],
)
def test_a_system_error_becomes_a_sentence(set_up_machine: ModuleType, number: int, sentence: str) -> None:
    error = OSError(number, os.strerror(number), "/x/y")
    assert sentence in set_up_machine.explain(error, Path("/x"))
