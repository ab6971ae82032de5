"""A small checkout in a path with spaces, on a machine that holds only what a test puts there.

The scripts are the real ones, the virtual environment is a real one; `uv` is a stub that leaves what uv leaves.
What a machine lacks is played by a Python that runs the set-up without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

SYSTEM_COMMANDS = ("sh", "cat", "cksum", "dirname", "mkdir", "readlink")
"""All that the scripts may use of the system."""

UV = """\
#!/bin/sh
set -eu
printf '%s\\n' "$*" >>"$STUB_DIR/calls"
if [ -p "$STUB_DIR/go" ]; then
    printf 'entered\\n' >"$STUB_DIR/entered"
    read -r _ <"$STUB_DIR/go" || :
fi
if [ -f "$STUB_DIR/failure" ]; then
    cat "$STUB_DIR/failure"
    exit 1
fi
for argument in "$@"; do
    case $argument in */bin/python) venv=${argument%/bin/python} ;; esac
done
case $* in
    *--editable*)
        for command in limbot llamboctl; do
            printf '#!/bin/sh\\nfor a in %s "$@"; do printf "<%%s>" "$a"; done; printf "\\\\n"; cat\\n' \\
                "$command" >"$venv/bin/$command"
            chmod +x "$venv/bin/$command"
        done
        ;;
    *)
        for site in "$venv"/lib/python3.*/site-packages; do
            mkdir -p "$site/xllamacpp" "$site/xllamacpp-1.dist-info"
            printf '# engine\\n' >"$site/xllamacpp/__init__.py"
            printf 'xllamacpp/__init__.py,,9\\n' >"$site/xllamacpp-1.dist-info/RECORD"
            printf 'import sys; print("pytest", sys.argv[1:])\\n' >"$site/pytest.py"
        done
        ;;
esac
"""

LACKING = """\
import ctypes, importlib.util, runpy, shutil, sys
what, script, level = sys.argv[1:]
if what.endswith((".1", ".6")):
    def load(name, whole=ctypes.CDLL):
        if name == what:
            raise OSError(f"{name}: cannot open shared object file")
        return whole(name)
    ctypes.CDLL = load
elif what == "disk":
    shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**9, 9 * 10**8, 10**8)
else:
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name: None if name == what else find(name)
sys.argv = [script, level]
runpy.run_path(script, run_name="__main__")
"""
"""A Python without something: a library, a module, or room on the disk."""


@dataclass(frozen=True)
class Machine:
    """A directory that is the whole PATH, and the checkout on this machine."""

    root: Path
    path: Path
    stub_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.path), "STUB_DIR": str(self.stub_dir), "HOME": str(self.stub_dir), "LC_ALL": "C.UTF-8"}

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def site_packages(self) -> Path:
        return next(self.venv.glob("lib/python3.*/site-packages"))

    def command(self, name: str, text: str) -> Path:
        """Puts a command on the PATH."""
        path = self.path / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def without(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink()

    def python_lacking(self, what: str) -> None:
        """Makes the only Python one that runs the set-up without `what`."""
        script = self.stub_dir / "lacking.py"
        script.write_text(LACKING)
        self.command(
            "python3",
            f'#!/bin/sh\ncase $2 in */set_up) exec "{sys.executable}" -I "{script}" {what} "$2" "$3" ;; esac\n'
            f'exec "{sys.executable}" "$@"\n',
        )

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        stdin: str = "",
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command, by default `./limbot-cli hello`, to its end."""
        return subprocess.run(
            command or (self.root / "limbot-cli", "hello"),
            cwd=cwd or self.root,
            env={**self.environment, **(environment or {})},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def start(self) -> subprocess.Popen[str]:
        """Starts `./limbot-cli hello` in a process group of its own; the caller waits for it."""
        return subprocess.Popen(
            [self.root / "limbot-cli", "hello"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def calls(self) -> list[str]:
        """What the installer was called with so far."""
        log = self.stub_dir / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def stamps(self) -> set[str]:
        return {path.name for path in self.venv.glob(".llambo-*") if path.name != ".llambo-owner"}

    @contextmanager
    def installer_held(self) -> Iterator[Gate]:
        """Makes the installer stop when it is called, until the gate is opened."""
        for name in ("entered", "go"):
            os.mkfifo(self.stub_dir / name)
        gate = Gate(self.stub_dir)
        try:
            yield gate
        finally:
            gate.remove()


@dataclass(frozen=True)
class Gate:
    """Two pipes: the installer says that it has been entered, then waits for the word to go on."""

    directory: Path

    def wait_until_entered(self) -> None:
        assert (self.directory / "entered").read_text() == "entered\n"

    def open(self) -> None:
        """Lets the installer that waits go on, and later ones pass."""
        with (self.directory / "go").open("w") as go:  # opens when the installer has opened its end
            self.remove()
            go.write("\n")

    def remove(self) -> None:
        for name in ("entered", "go"):
            (self.directory / name).unlink(missing_ok=True)


def make_machine(directory: Path) -> Machine:
    """A machine with uv and one Python, and a checkout that nobody has set up."""
    root = directory / "a checkout's place"
    for name in ("limbot-cli", "deploy.sh"):
        root.mkdir(exist_ok=True)
        shutil.copy2(CHECKOUT / name, root / name)
    shutil.copytree(CHECKOUT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pyproject.toml").write_text("# dependencies\n")
    (root / "requirements").mkdir()
    for level in ("run", "test", "check"):
        (root / "requirements" / f"{level}.txt").write_text(f"# {level}\n")
    (root / "src").mkdir()
    path, stub_dir = directory / "bin", directory / "stub"
    path.mkdir()
    stub_dir.mkdir()
    for name in (*SYSTEM_COMMANDS, "chmod"):
        found = shutil.which(name)
        assert found, f"this machine has no {name}"
        (path / name).symlink_to(found)
    made = Machine(root, path, stub_dir)
    made.command("uv", UV)
    made.command("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    return made
