"""`llamboctl mount` and `umount`: the namespace as a directory, by the kernel's 9P file system or by 9pfuse.

Owns which of the two is taken and how it is called. What is mounted is the namespace as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from llambo.core.errors import BadRequest, LlamboError, NameInUse, NotFound

_TIMEOUT_S = 20.0
_FILE_SYSTEMS = Path("/proc/filesystems")
_MOUNTS = Path("/proc/self/mountinfo")

Where = Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    app.command()(mount)
    app.command()(umount)


def mount(directory: Where) -> None:
    """Mounts the cluster's files at DIR: with the kernel's 9P as root, else with 9pfuse."""
    from llambo.cli.daemon_client import the_daemon

    found = the_daemon()
    where = _checked(directory)
    kernel_has_it = os.geteuid() == 0 and has_kernel_9p()
    words = mount_words(
        found.styx.removeprefix("unix!"), where, kernel=kernel_has_it, fuse=shutil.which("9pfuse"), uid=os.geteuid()
    )
    _run(words)
    sys.stdout.write(f"{where}\n")


def umount(directory: Where) -> None:
    """Takes the cluster's files away from DIR."""
    where = directory.absolute()
    kind = mounted_kind(str(where), _MOUNTS.read_text(encoding="utf-8") if _MOUNTS.exists() else "")
    if kind is None:
        raise NotFound(f"nothing of ours is mounted at {where}; llamboctl mount {directory} mounts the cluster there")
    _run(umount_words(where, kind=kind, fuse=shutil.which("fusermount3") or shutil.which("fusermount")))


def mount_words(socket: str, where: Path, *, kernel: bool, fuse: str | None, uid: int) -> list[str]:
    """The command that mounts. `fuse` is where 9pfuse is.

    Raises: `LlamboError` where neither can do it, saying what is needed.
    """
    if kernel:
        # One attach for everybody: who may reach the mount point is decided by the directory it lies in.
        options = f"trans=unix,version=9p2000,access=any,cache=none,msize=65536,dfltuid={uid},dfltgid={uid}"
        return ["mount", "-t", "9p", "-o", options, socket, str(where)]
    if fuse:
        return [fuse, f"unix!{socket}", str(where)]
    raise LlamboError(
        "nothing here can mount: be root with a kernel that has 9p (modprobe 9p), or install 9pfuse of plan9port"
    )


def umount_words(where: Path, *, kind: str, fuse: str | None) -> list[str]:
    """The command that unmounts a file system of that kind ("9p" or "fuse…")."""
    return [fuse, "-u", str(where)] if kind != "9p" and fuse else ["umount", str(where)]


def mounted_kind(where: str, mounts: str) -> str | None:
    """The kind of the 9P or FUSE file system mounted last at `where`, by the text of /proc/self/mountinfo (proc(5))."""
    kind = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) > 4 and _unescaped(words[4]) == where:
            kind = after.split(maxsplit=1)[0]
    return kind if kind is not None and (kind == "9p" or kind.startswith("fuse")) else None


def has_kernel_9p() -> bool:
    """Whether the kernel has the 9P file system, or can load it."""
    if _is_listed():
        return True
    modprobe = shutil.which("modprobe")
    if modprobe is None:
        return False
    for module in ("9p", "9pnet_fd"):
        subprocess.run([modprobe, "-q", module], check=False, capture_output=True, timeout=_TIMEOUT_S)
    return _is_listed()


def _is_listed() -> bool:
    try:
        return "9p" in _FILE_SYSTEMS.read_text(encoding="utf-8").split()
    except OSError:
        return False


def _checked(directory: Path) -> Path:
    if not directory.is_dir():
        raise BadRequest(f"{directory} is no directory: make it first")
    if any(directory.iterdir()):
        raise NameInUse(f"{directory} is not empty, or mounted on already: give an empty directory")
    return directory.resolve()


def _run(words: list[str]) -> None:
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        raise LlamboError(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise LlamboError(f"{words[0]} did not end within {_TIMEOUT_S:g} s") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise LlamboError(f"{Path(words[0]).name} failed: {reason}")


def _unescaped(path: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path
