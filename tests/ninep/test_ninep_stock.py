"""Clients that others wrote, unchanged, against our server.

Two are on PyPI and both are called `py9p` inside, so each is looked for in a directory of its own below
`LLAMBO_TEST_9P_CLIENTS`: `pip install --target DIR/python-9p python-9p`, `pip install --target DIR/p9fs p9fs`.
python-9p carries plan9port's own codec in C, p9fs is a file system for fsspec.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from ninep_world import World, serving

from llambo.ninep.files import StaticDirectory, TextFile

PYTHON_9P = r"""
import sys, threading
from py9p import Client, Dir, OREAD, OWRITE, ORDWR, OTRUNC, RemoteError, Tauth, Tflush, Tread, decode_dir
address = sys.argv[1]
with Client.connect_unix(address) as c:
    assert c.negotiate().version == "9P2000"
    try:
        c.rpc(Tauth(afid=9, uname="glenda", aname=""))
    except RemoteError as error:
        assert "authentication" in str(error)
    assert c.attach(0, uname="glenda").type == 0x80
    c.walk(0, 1, "status")
    assert c.open(1, int(OREAD))[1] == 8168
    assert c.read(1) == b"state ready\n" and c.read(1, offset=12) == b""
    assert c.stat(1).name == "status"
    c.clunk(1)
    c.walk(0, 1, "ctl")
    c.open(1, int(OWRITE) | int(OTRUNC))
    assert c.write(1, b"say stock\n") == 10
    try:
        c.write(1, b"nonsense\n")
    except RemoteError as error:
        assert str(error) == "invalid argument: no such command: nonsense; there are say and wait", error
    else:
        raise SystemExit("a wrong command was taken")
    c.clunk(1)
    c.walk(0, 1, "clone")
    c.open(1, int(ORDWR))
    assert c.read(1) == b"0\n" and c.stat(1).name == "ctl"
    c.clunk(1)
    c.walk(0, 1, "many")
    c.open(1, int(OREAD))
    names, offset = [], 0
    while data := c.read(1, offset=offset):
        offset += len(data)
        while data:
            size = int.from_bytes(data[:2], "little") + 2
            names.append(decode_dir(data[:size]).name)
            data = data[size:]
    assert len(names) == 300 and names[7] == "n007", names
    c.walk(0, 2, "events")
    c.open(2, int(OREAD))
    blocked = threading.Thread(target=lambda: print(c.read(2).decode()))
    blocked.start()
    c.walk(0, 3, "ctl")
    c.open(3, int(OWRITE))
    c.write(3, b"say blocked\n")
    blocked.join()
print("done")
"""

P9FS = r"""
import sys
from p9fs import P9FileSystem
fs = P9FileSystem(sys.argv[1], int(sys.argv[2]), "glenda", version="9P2000")
assert "status" in [name.strip("/") for name in fs.ls("", detail=False)], fs.ls("")
assert len(fs.ls("many", detail=False)) == 300
assert fs.info("deep")["type"] == "directory"
with fs.open("deep/sized", "rb") as file:  # it reads as many bytes as the entry says, which is 0 for most of ours
    assert file.read() == b"12345"
print("done")
"""


def directory_of(name: str) -> str:
    below = os.environ.get("LLAMBO_TEST_9P_CLIENTS")
    if not below or not (Path(below) / name).is_dir():
        pytest.skip(f"{name} is not below LLAMBO_TEST_9P_CLIENTS: pip install --target DIR/{name} {name}")
    return str(Path(below) / name)


async def run(script: str, path: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *arguments,
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_python_9p_reads_writes_lists_clones_and_waits(tmp_path: Path) -> None:
    path = directory_of("python-9p")
    world = World()
    async with serving(world, tmp_path) as (_, address):
        process = await run(PYTHON_9P, path, address.removeprefix("unix!"))
        while "blocked" not in world.log and process.returncode is None:
            await asyncio.sleep(0.01)
        world.events.send("an event")
        output, _ = await process.communicate()
    assert output.decode().splitlines() == ["an event", "", "done"], output.decode()
    assert world.log[0] == "stock"


class Sized(TextFile):
    @property
    def length(self) -> int:
        return 5


async def test_p9fs_lists_and_reads(tmp_path: Path) -> None:
    path = directory_of("p9fs")
    world = World()
    world.root.add(StaticDirectory("deep", [Sized("sized", lambda: "12345")]))
    async with serving(world, tmp_path, address="tcp!127.0.0.1!0") as (_, address):
        process = await run(P9FS, path, *address.split("!")[1:])
        output, _ = await process.communicate()
    assert output.decode().splitlines()[-1:] == ["done"], output.decode()
