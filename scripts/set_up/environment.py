"""`.venv` on disk: whose it is, whether it is whole, and its stamps.

What a stamp says is known by scripts/set-up.sh alone, which is asked for it.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("run", "test", "check")
"""Each level holds the packages of those before it."""

OWNER_FILE = ".llambo-owner"
"""In .venv: says that the set-up made it, and for which checkout."""


@dataclass(frozen=True)
class Environment:
    """The virtual environment of the checkout at `root`."""

    root: Path

    @property
    def path(self) -> Path:
        """Where it stands."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    def is_set_up(self, level: str) -> bool:
        """What every start of Llambo asks, in the very words that it asks it."""
        return _ask_shell("is_set_up", self.root, level).returncode == 0

    def is_whole(self) -> bool:
        """Made for this checkout, its Python runs, and no installed file is missing or cut short."""
        try:
            made_for = (self.path / OWNER_FILE).read_text()
        except OSError:
            return False
        if made_for != f"{self.root}\n":
            return False
        packages = self._packages()
        return packages is not None and all(_is_whole(packages, entry) for entry in packages.iterdir())

    def _packages(self) -> Path | None:
        """The directory of the installed packages, when the environment's Python runs and can see it."""
        command: list[str | Path] = [self.python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        try:
            asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        packages = Path(asked.stdout.rstrip("\n"))
        return packages if packages.is_dir() else None

    def claim(self) -> None:
        """Makes the directory, marked as made by the set-up before anything else is in it."""
        self.path.mkdir()
        (self.path / OWNER_FILE).write_text(f"{self.root}\n")

    def clear(self, trash: Path) -> Path | None:
        """Takes away what stands at .venv. Ours is deleted; anything else is kept, and its new name returned."""
        shutil.rmtree(trash, ignore_errors=True)
        if (self.path / OWNER_FILE).is_file():
            # Renamed first: an interrupted deletion must not leave an unmarked half at .venv.
            self.path.rename(trash)
            shutil.rmtree(trash)
            return None
        if not os.path.lexists(self.path):
            return None
        number = 1
        while os.path.lexists(kept := self.root / f".venv.kept-{number}"):
            number += 1
        return self.path.rename(kept)

    def stamp(self, level: str) -> None:
        """Declares `level` and every lower one done, each in one step."""
        for lower in LEVELS[: LEVELS.index(level) + 1]:
            draft = self.path / f".llambo-{lower}.draft"
            draft.write_text(_ask_shell("fingerprint", self.root, lower).stdout)
            draft.replace(self.path / f".llambo-{lower}")

    def unstamp(self) -> None:
        """Takes every declaration back; comes before any change."""
        for level in LEVELS:
            (self.path / f".llambo-{level}").unlink(missing_ok=True)


def base_python() -> str:
    """This interpreter under its real name, outside of any virtual environment.

    The real name holds the version (…/bin/python3.11), so that an upgrade shows as a missing interpreter.
    """
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _is_whole(packages: Path, entry: Path) -> bool:
    """Whether an entry of site-packages is what an installer leaves that was not interrupted.

    Every installed package lists its files in RECORD; pip calls what it is about to remove `~name`.
    """
    if entry.name.startswith("~"):
        return False
    if entry.suffix != ".dist-info":
        return True
    try:
        with (entry / "RECORD").open(newline="", encoding="utf-8") as record:
            return all(_has_size(packages / name, size) for name, _, size in csv.reader(record))
    except (OSError, ValueError):
        return False


def _has_size(path: Path, size: str) -> bool:
    """Whether the file is there with the size that RECORD gives; bytecode may come and go."""
    if path.suffix == ".pyc":
        return True
    return path.stat().st_size == int(size) if size else path.exists()


def _ask_shell(function: str, root: Path, level: str) -> subprocess.CompletedProcess[str]:
    script = f'root=$1; . "$root/scripts/set-up.sh"; {function} "$2"'
    command = ["/bin/sh", "-c", script, "sh", str(root), level]
    return subprocess.run(command, capture_output=True, text=True, check=False)
