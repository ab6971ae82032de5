"""Clients that others wrote, unchanged, against the cluster's files; where they are looked for, `tests/ninep` tells."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.namespace.namespace_world import World

PYTHON_9P = r"""
import sys
from py9p import Client, OREAD, OWRITE, ORDWR, OTRUNC, RemoteError
with Client.connect_unix(sys.argv[1]) as c:
    c.negotiate()
    c.attach(0, uname="glenda")
    def whole(fid, *names):
        c.walk(0, fid, "/".join(names))
        c.open(fid, int(OREAD))
        data, piece = b"", b""
        while piece := c.read(fid, offset=len(data)):
            data += piece
        c.clunk(fid)
        return data
    assert b"state ready\n" in whole(1, "status")
    c.walk(0, 2, "clone")
    c.open(2, int(ORDWR))
    number = c.read(2).decode().strip()
    c.write(2, b"max_tokens 5\n")
    c.walk(0, 3, f"sessions/{number}/prompt")
    c.open(3, int(OWRITE) | int(OTRUNC))
    c.write(3, b"Hello\n")
    c.clunk(3)
    print(whole(4, "sessions", number, "stream").decode())
    c.walk(0, 5, "ctl")
    c.open(5, int(OWRITE) | int(OTRUNC))
    c.write(5, b"spawn 1 tiny\n")
    try:
        c.write(5, b"explode\n")
    except RemoteError as error:
        print(error)
    print(whole(6, "nodes", "n2", "model").decode().strip())
"""

P9FS = r"""
import sys
from p9fs import P9FileSystem
fs = P9FileSystem(sys.argv[1], int(sys.argv[2]), "glenda", version="9P2000", aname=sys.argv[3])
print(sorted(name.strip("/") for name in fs.ls("", detail=False)))
print([name.strip("/") for name in fs.ls("nodes", detail=False)])
"""


def _directory_of(name: str) -> str:
    below = os.environ.get("LLAMBO_TEST_9P_CLIENTS")
    if not below or not (Path(below) / name).is_dir():
        pytest.skip(f"{name} is not below LLAMBO_TEST_9P_CLIENTS: pip install --target DIR/{name} {name}")
    return str(Path(below) / name)


async def _run(script: str, path: str, *arguments: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments,
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode().splitlines()


async def test_python_9p_has_a_conversation_and_controls_the_cluster(world: World) -> None:
    lines = await _run(PYTHON_9P, _directory_of("python-9p"), world.unix.removeprefix("unix!"))
    assert lines[0] == "one two drei€"
    assert lines[1].startswith("invalid argument: unknown command 'explode'; there are spawn, scale, ")
    assert lines[2] == "m"
    assert world.cluster.calls == [("spawn", 1, "tiny", "", 0)]
    assert world.cluster.requests[0].sampling.max_tokens == 5


async def test_p9fs_lists_what_a_token_may_see(world: World) -> None:
    path = _directory_of("p9fs")
    _, secret = world.tokens.create("read")
    lines = await _run(P9FS, path, *world.tcp.split("!")[1:], secret)
    assert "'status.json'" in lines[0]
    assert "'ctl'" not in lines[0]
    assert "n1" in lines[1]
