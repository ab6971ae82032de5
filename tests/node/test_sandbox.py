"""What a process under the sandbox can and cannot do, tried by one."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llambo.node import sandbox
from llambo.node.main import model_files

pytestmark = pytest.mark.skipif(sandbox.landlock_version() < 6, reason="needs Landlock's scopes (Linux 6.12)")

PROGRAM = """
import ast, ctypes, errno, json, os, resource, signal, socket, sys, threading
from llambo.node import sandbox

def unix(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.connect(path)

def unix_server(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()

def tcp(port):
    with socket.socket() as s:
        s.connect(("127.0.0.1", port))

def write(path):
    with open(path, "w") as f:
        f.write("x")

def read(path):
    with open(path, "rb") as f:
        f.read(1)

def in_thread(act, *args):
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(tried(act, *args)))
    thread.start()
    thread.join()
    if outcome[0] != "done":
        raise OSError(getattr(errno, outcome[0]), "in a thread")

def tried(act, *args):
    try:
        act(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"

version, directory, model, acts = ast.literal_eval(sys.argv[1])
if version is not None:
    sandbox.landlock_version = lambda: version
enforced = sandbox.enforce(reads=[model], directory=directory)
print(json.dumps([enforced, {act: tried(eval(f"lambda: {act}")) for act in acts}]))
"""


class Prisoner:
    """A program that limits itself to `cell` and `model`, then tries things."""

    def __init__(self, tmp_path: Path) -> None:
        self.cell = tmp_path / "cell"
        self.cell.mkdir()
        self.outside = tmp_path / "outside"
        self.outside.mkdir()
        self.model = tmp_path / "m.gguf"
        self.model.write_bytes(b"GGUF")
        self.enforced: list[str] = []

    def tries(self, *acts: str, version: int | None = None) -> dict[str, str]:
        """What came of each act: "done" or the name of the error."""
        argument = repr((version, str(self.cell), str(self.model), acts))
        assert ast.literal_eval(argument)
        output = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), argument], check=True, capture_output=True, text=True
        ).stdout
        self.enforced, outcome = json.loads(output)
        result: dict[str, str] = outcome
        return result


@pytest.fixture
def prisoner(tmp_path: Path) -> Prisoner:
    return Prisoner(tmp_path)


def test_all_that_this_kernel_has_is_enforced_and_named(prisoner: Prisoner) -> None:
    prisoner.tries()
    assert prisoner.enforced == ["landlock-fs", "landlock-tcp", "landlock-scope", "seccomp-net", "no-new-privs"]


def test_the_model_is_read_and_the_own_directory_written(prisoner: Prisoner) -> None:
    own = f"{prisoner.cell}/slots"
    acts = [f"read({str(prisoner.model)!r})", f"os.mkdir({own!r})", f"write({own + '/a'!r})", f"read({own + '/a'!r})"]
    acts += [f"os.rename({own + '/a'!r}, {str(prisoner.cell) + '/b'!r})", f"os.unlink({str(prisoner.cell) + '/b'!r})"]
    acts += [f"unix_server({str(prisoner.cell) + '/node.sock'!r})", "read('/dev/null')", "write('/dev/null')"]
    acts += ["read('/proc/self/status')", "read('/proc/cpuinfo')", "os.listdir('/sys/devices/system/cpu')"]
    assert prisoner.tries(*acts) == dict.fromkeys(acts, "done")


def test_nothing_else_is_read(prisoner: Prisoner) -> None:
    (prisoner.outside / "secret").write_text("s")
    acts = ["read('/etc/passwd')", f"read({str(prisoner.outside / 'secret')!r})", "os.listdir('/')"]
    acts += [f"read('/proc/{os.getpid()}/environ')", f"os.listdir({str(prisoner.outside)!r})"]
    assert prisoner.tries(*acts) == dict.fromkeys(acts, "EACCES")


def test_nothing_else_is_written(prisoner: Prisoner) -> None:
    outside = str(prisoner.outside / "new")
    acts = [f"write({outside!r})", f"os.mkdir({outside!r})", f"write({str(prisoner.model)!r})"]
    acts += [f"os.truncate({str(prisoner.model)!r}, 0)", f"os.symlink('/etc', {str(prisoner.cell / 'link')!r})"]
    acts += [f"os.mkfifo({str(prisoner.cell / 'fifo')!r})", f"unix_server({outside!r})"]
    assert prisoner.tries(*acts) == dict.fromkeys(acts, "EACCES")
    assert prisoner.model.read_bytes() == b"GGUF"


def test_a_link_out_of_the_own_directory_leads_nowhere(prisoner: Prisoner) -> None:
    (prisoner.cell / "link").symlink_to("/etc/passwd")
    act = f"read({str(prisoner.cell / 'link')!r})"
    assert prisoner.tries(act) == {act: "EACCES"}


def test_no_program_is_run(prisoner: Prisoner) -> None:
    act = "os.execv('/bin/true', ['true'])"
    assert prisoner.tries(act) == {act: "EACCES"}


def test_nobody_is_dialled(prisoner: Prisoner) -> None:
    path = str(prisoner.outside / "neighbour.sock")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as neighbour:
        neighbour.bind(path)
        neighbour.listen()
        acts = [f"tcp({tcp.getsockname()[1]})", f"unix({path!r})", f"in_thread(unix, {path!r})"]
        acts += ["socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"]
        assert prisoner.tries(*acts) == dict.fromkeys(acts, "EACCES")


def test_landlock_alone_keeps_tcp_shut(prisoner: Prisoner, tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import socket, sys
        from llambo.node import sandbox
        s = socket.socket()
        sandbox._seccomp = lambda: ()
        assert "landlock-tcp" in sandbox.enforce(reads=[], directory={str(tmp_path)!r})
        for act in (lambda: s.connect(("127.0.0.1", 9)), lambda: s.bind(("127.0.0.1", 0)), lambda: s.bind(("", 8))):
            try:
                act()
            except PermissionError:
                continue
            sys.exit("allowed")
    """)
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_process_outside_is_signalled(prisoner: Prisoner) -> None:
    with subprocess.Popen(["sleep", "60"]) as sibling:
        acts = [f"os.kill({sibling.pid}, signal.SIGTERM)", f"os.kill({os.getpid()}, 0)"]
        assert prisoner.tries(*acts, "os.kill(os.getpid(), 0)") == {
            **dict.fromkeys(acts, "EPERM"),
            "os.kill(os.getpid(), 0)": "done",
        }
        assert sibling.poll() is None
        sibling.send_signal(signal.SIGKILL)


def test_threads_started_later_are_held_too(prisoner: Prisoner) -> None:
    act = "in_thread(read, '/etc/passwd')"
    assert prisoner.tries(act) == {act: "EACCES"}


def test_no_core_file_is_written(prisoner: Prisoner) -> None:
    act = "write('/nowhere' if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else '/dev/null')"
    assert prisoner.tries(act) == {act: "EACCES"}


@pytest.mark.parametrize(
    ("version", "labels"),
    [
        (0, ["seccomp-net", "no-new-privs"]),
        (1, ["landlock-fs", "seccomp-net", "no-new-privs"]),
        (3, ["landlock-fs", "seccomp-net", "no-new-privs"]),
        (4, ["landlock-fs", "landlock-tcp", "seccomp-net", "no-new-privs"]),
        (5, ["landlock-fs", "landlock-tcp", "seccomp-net", "no-new-privs"]),
    ],
)
def test_an_older_kernel_enforces_and_says_less(prisoner: Prisoner, version: int, labels: list[str]) -> None:
    outcome = prisoner.tries("read('/etc/passwd')", f"read({str(prisoner.model)!r})", version=version)
    assert prisoner.enforced == labels
    assert list(outcome.values()) == ["EACCES" if version else "done", "done"]


def test_all_parts_of_a_split_model_are_its_files(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00002-of-00003.gguf", "n-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    found = model_files(str(tmp_path / "m-00001-of-00002.gguf"))
    assert sorted(Path(path).name for path in found) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert model_files("/nowhere/m.gguf") == ["/nowhere/m.gguf"]
