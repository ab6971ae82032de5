"""The launchers under test, each with what the suite needs to drive it: a rig."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from llambo.cluster.launch.attach import AttachLauncher
from llambo.cluster.launch.base import Launcher, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core.types import LoadOptions
from tests.cluster.llama_server import llama_server

SMALL = LoadOptions(ctx=256, slots=2, threads=1)


class Rig(Protocol):
    """A launcher and requests for it. `model` is what its nodes must say that they serve."""

    launcher: Launcher
    model: str

    def request(self, name: str, *, embedding: bool = False) -> NodeRequest:
        """A node that can be."""
        ...

    def broken(self, name: str) -> list[NodeRequest]:
        """Nodes that cannot be."""
        ...

    def left(self) -> list[Path]:
        """What nodes have on the disk now."""
        ...


class LocalRig:
    """Processes on this machine."""

    def __init__(self, run: Path, model: Path) -> None:
        self.launcher: Launcher = LocalLauncher(run)
        self.model = model.stem
        self._run = run
        self._path = model

    def request(self, name: str, *, embedding: bool = False) -> NodeRequest:
        return NodeRequest(name, str(self._path), SMALL, embedding=embedding)

    def broken(self, name: str) -> list[NodeRequest]:
        garbage = self._run.parent / "garbage.gguf"
        garbage.write_bytes(b"GGUF" + bytes(100))
        return [NodeRequest(name, str(path), SMALL) for path in (garbage, self._run.parent / "absent.gguf")]

    def left(self) -> list[Path]:
        return [*self._run.glob("*/*")]


class AttachRig:
    """Servers that run already: one for text, one for embeddings too."""

    def __init__(self, url: str, embedding_url: str, model: Path) -> None:
        self.launcher: Launcher = AttachLauncher()
        self.model = model.stem
        self._urls = (url, embedding_url)

    def request(self, name: str, *, embedding: bool = False) -> NodeRequest:
        return NodeRequest(name, url=self._urls[embedding])

    def broken(self, name: str) -> list[NodeRequest]:
        urls = ("http://127.0.0.1:1", "ftp://127.0.0.1", "unix:///absent", f"{self._urls[0]}/elsewhere")
        return [NodeRequest(name, url=url) for url in urls]

    def left(self) -> list[Path]:
        return []


@asynccontextmanager
async def local(tmp_path: Path, model: Path) -> AsyncIterator[Rig]:
    """A rig for `LocalLauncher`."""
    yield LocalRig(tmp_path / "run", model)


@asynccontextmanager
async def attach(tmp_path: Path, model: Path) -> AsyncIterator[Rig]:
    """A rig for `AttachLauncher`."""
    async with (
        llama_server(model, slot_dir=tmp_path) as server,
        llama_server(model, embedding=True) as embedding_server,
    ):
        yield AttachRig(server.url, embedding_server.url, model)


RIGS: dict[str, Callable[[Path, Path], AbstractAsyncContextManager[Rig]]] = {"local": local, "attach": attach}
