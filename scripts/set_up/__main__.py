"""Makes `.venv` in this checkout and fills it from the lock files: `python -I scripts/set_up run|test|check`.

Called by scripts/set-up.sh when something is missing. Runs on any Python from 3.11 on, with the standard
library alone, because it comes before anything is installed. It owns the order of the work:

1. One call works at a time; others wait for it and then find the work done.
2. What the machine lacks is named before anything is downloaded.
3. An environment that is whole is kept and completed; a damaged or moved one is made anew.
4. The stamp is written last. Whatever ends a set-up early, the next call sees no stamp and repairs.

It refuses to know which packages there are: that is in requirements/.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from environment import LEVELS, Environment, base_python
from installing import Installers, Progress, installer_environment, only_one
from machine import Refused, explain, refuse_what_cannot_work


@dataclass(frozen=True)
class SetUp:
    """The three steps for one level of one checkout. The lock is held."""

    environment: Environment
    level: str
    uv: str | None
    installers: Installers

    def perform(self) -> None:
        """Does what is missing and stamps it.

        Raises:
            Refused: it cannot be done; nothing is stamped.
        """
        progress = self.installers.progress
        refuse_what_cannot_work(self.environment.root, self.level, with_pip=self.uv is None)
        self.environment.unstamp()
        progress.begin(1, "virtual environment")
        if not self.environment.is_whole():
            self._make_anew()
        progress.begin(2, "packages")
        self._install()
        progress.begin(3, "check")
        self._check()
        self.environment.stamp(self.level)
        progress.say(f"llambo: set up in {progress.elapsed()}")

    def _make_anew(self) -> None:
        kept = self.environment.clear(trash=self.installers.log.parent / "trash")
        if kept:
            self.installers.progress.say(f"llambo: .venv was not made by this script; kept as {kept.name}")
        self.environment.claim()
        make_venv = [base_python(), "-I", "-m", "venv", *(["--without-pip"] if self.uv else [])]
        self.installers.run("making .venv", [*make_venv, self.environment.path])

    def _install(self) -> None:
        """Installs the locked packages, then Llambo itself, editable.

        The second needs no download: the build backend is among the locked packages, so it runs in the
        environment itself and not in one that pip would fill with whatever the registry has.
        """
        root = self.environment.root
        lock_file = root / "requirements" / f"{self.level}.txt"
        itself: list[str | Path] = ["--no-deps", "--no-build-isolation", "--editable", root]
        if self.uv:
            install: list[str | Path] = [self.uv, "pip", "install", "--python", self.environment.python]
            bytecode, offline = ["--compile-bytecode"], ["--offline"]
        else:
            self._bring_pip()
            install = [self.environment.python, "-I", "-m", "pip", "install"]
            bytecode, offline = [], ["--no-index"]  # pip compiles unasked
        self.installers.run("installing the packages", [*install, *bytecode, "--require-hashes", "-r", lock_file])
        self.installers.run("installing Llambo", [*install, *offline, *itself])

    def _bring_pip(self) -> None:
        """Adds pip to an environment that was made for uv."""
        python = self.environment.python
        asked = subprocess.run([python, "-I", "-c", "import pip"], capture_output=True, check=False)
        if asked.returncode != 0:
            self.installers.run("installing pip", [python, "-I", "-m", "ensurepip"])

    def _check(self) -> None:
        python = self.environment.python
        try:
            self.installers.run("loading the engine", [python, "-I", "-c", "import xllamacpp"])
        except Refused as refusal:
            if "SIGILL" in str(refusal):
                raise Refused("the engine's build needs a processor with AVX2, and this one lacks it") from None
            raise
        if not os.access(self.environment.path / "bin" / "limbot", os.X_OK):
            raise Refused(f"the set-up left no limbot command. The whole log: {self.installers.log}")
        # Compiled so that the first answer is quick; a file that does not compile is not the set-up's matter.
        subprocess.run(
            [python, "-I", "-m", "compileall", "-q", self.environment.root / "src"],
            env=installer_environment(os.environ),
            capture_output=True,
            check=False,
        )


def set_up(root: Path, level: str, progress: Progress) -> None:
    """Brings the checkout at `root` to `level`, unless another call has done it meanwhile.

    Raises:
        Refused: it cannot be done.
    """
    environment = Environment(root)
    work = root / ".venv.setup"
    try:
        work.mkdir(exist_ok=True)
        with only_one(work / "lock", progress) as lock:
            if environment.is_set_up(level):
                return
            log = work / "log"
            log.write_bytes(b"")
            SetUp(environment, level, shutil.which("uv"), Installers(log, lock, progress)).perform()
    except OSError as error:
        raise Refused(explain(error, root)) from error


def end_as_interrupted(_signal: int, _frame: FrameType | None) -> None:
    """Makes SIGTERM and SIGHUP end the installers as Ctrl-C does."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Sets up; returns 0, 1 with a sentence on standard error, 2 on bad usage, or 130."""
    if len(arguments) != 1 or arguments[0] not in LEVELS:
        sys.stderr.write(f"usage: python -I scripts/set_up {'|'.join(LEVELS)}\n")
        return 2
    signal.signal(signal.SIGTERM, end_as_interrupted)
    signal.signal(signal.SIGHUP, end_as_interrupted)
    progress = Progress(steps=3)
    try:
        set_up(Path(__file__).resolve().parents[2], arguments[0], progress)
    except Refused as refusal:
        progress.say(f"llambo: {refusal}")
        return 1
    except KeyboardInterrupt:
        progress.say("llambo: interrupted; the next call takes the set-up up again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
