"""What this machine must have before anything is downloaded, and the package that brings what it lacks."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

SPACE_NEEDED_MB = {"run": 300, "test": 400, "check": 520}
"""Room for the environment and for what pip unpacks on the way: measured sizes and a quarter more."""

INSTALL_COMMANDS = {
    "debian": "apt install",
    "fedora": "dnf install",
    "alpine": "apk add",
    "arch": "pacman -S",
    "suse": "zypper install",
}

PACKAGES = {
    "libgomp.so.1": {
        "debian": "libgomp1",
        "fedora": "libgomp",
        "alpine": "libgomp",
        "arch": "gcc-libs",
        "suse": "libgomp1",
    },
    "libstdc++.so.6": {
        "debian": "libstdc++6",
        "fedora": "libstdc++",
        "alpine": "libstdc++",
        "arch": "gcc-libs",
        "suse": "libstdc++6",
    },
    "venv": {
        "debian": f"python3.{sys.version_info.minor}-venv",
        "fedora": "python3-pip",
        "alpine": "py3-pip",
        "arch": "python",
        "suse": f"python3{sys.version_info.minor}-base",
    },
}
"""What can be missing, and how each family of systems calls the package that brings it."""

FAMILIES = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "opensuse": "suse"}
"""Names in /etc/os-release that stand for a family with another name."""


class Refused(Exception):
    """The set-up cannot be done; the text is one sentence for the person at the terminal."""


def refuse_what_cannot_work(root: Path, level: str, *, with_pip: bool) -> None:
    """Returns when the set-up of `level` at `root` can begin; changes nothing.

    Raises:
        Refused: naming the first thing that is missing.
    """
    if os.pathsep in str(root) or "\n" in str(root):
        raise Refused(f"Python makes no virtual environment below a path with a colon or a line end: {root}")
    for module in ("venv", "ensurepip") if with_pip else ("venv",):
        if importlib.util.find_spec(module) is None:
            raise Refused(f"this Python ({sys.executable}) lacks its module {module}: {how_to_get('venv')}")
    if library := lacking_library():
        raise Refused(f"the engine needs {library}, which this machine lacks: {how_to_get(library)}")
    free_mb = shutil.disk_usage(root).free // 1_000_000
    needed_mb = SPACE_NEEDED_MB[level] - size_mb(root / ".venv")
    if free_mb < needed_mb:
        raise Refused(f"the set-up needs {needed_mb} MB of disk space, and {root} has {free_mb} MB free")


def lacking_library() -> str | None:
    """The first library of the system that the engine needs and the loader does not find."""
    if sys.platform != "linux":
        return None  # the engine's builds for other systems bring their own
    for library in ("libgomp.so.1", "libstdc++.so.6"):
        try:
            ctypes.CDLL(library)
        except OSError:
            return library
    return None


def how_to_get(missing: str) -> str:
    """The command that installs `missing` (a key of PACKAGES) on this system."""
    family = system_family()
    return f"{INSTALL_COMMANDS[family]} {PACKAGES[missing][family]}"


def system_family() -> str:
    """The family of systems whose package names to give; Debian's where nothing better is known."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "debian"
    for name in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        family = FAMILIES.get(name, name)
        if family in INSTALL_COMMANDS:
            return family
    return "debian"


def size_mb(directory: Path) -> int:
    """What `directory` takes on the disk; 0 when it is not there."""
    size_bytes = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(f"{parent}/{name}")
            except OSError:
                continue
            size_bytes += status.st_blocks * 512
    return size_bytes // 1_000_000


def explain(error: OSError, root: Path) -> str:
    """One sentence for a system error met while working at `root`."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{root} cannot be written: use a checkout that belongs to you ({error.strerror})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {root} is full"
    return f"{error.filename}: {error.strerror}"
