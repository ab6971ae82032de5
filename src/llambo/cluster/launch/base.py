"""What every launcher offers, wherever its nodes run.

A launcher starts and stops nodes and tells of their end; it decides nothing. Names are the caller's and are used once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from llambo.core.types import LoadOptions


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """A node wanted: `ctx` and `slots` of `options` are set; `embedding` nodes give embeddings and nothing else."""

    name: str
    model_path: str
    options: LoadOptions
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class NodeHandle:
    """A node that serves: `socket_path` is where llama.cpp's HTTP server answers."""

    name: str
    pid: int
    socket_path: str


@dataclass(frozen=True, slots=True)
class NodeExited:
    """A node that had served is gone. `reason` is a sentence part: "it was killed by signal 9 (SIGKILL)"."""

    name: str
    pid: int
    reason: str


class Launcher(Protocol):
    """Starts, stops and watches nodes."""

    async def spawn(self, request: NodeRequest, *, timeout_s: float) -> NodeHandle:
        """Starts a node and returns once its engine answers; cancelling it leaves no node behind.

        Raises: `BadModel` with llama.cpp's own last words, `TimedOut`, `LlamboError` where no process can be made.
        """
        ...

    async def terminate(self, name: str) -> None:
        """Ends a node and returns when it is gone; its exit is not reported. An unknown name is no error."""
        ...

    def watch(self) -> AsyncIterator[NodeExited]:
        """Every node that ended without `terminate`, as it happens; one reader."""
        ...

    async def close(self) -> None:
        """Ends every node and what the launcher itself started; leaves no process, socket or directory."""
        ...
