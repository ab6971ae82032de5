"""What every launcher offers, wherever its nodes run.

A launcher starts and stops nodes and tells of their end; it decides nothing. Names are the caller's and are used once:
the node's id and epoch, such as "n3.2".
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from llambo.core.types import LoadOptions

UNIX = "unix://"
"""Begins the address of a node on a Unix socket; the others are http:// or https:// URLs."""


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """A node wanted: `ctx` and `slots` of `options` are set; `embedding` nodes give embeddings and nothing else,
    `reranking` nodes rank texts.

    `model` is what the cluster calls its model.

    `model_path` is what a launcher of processes loads; `url` and `api_key` are what `attach` dials.
    """

    name: str
    model_path: str = ""
    options: LoadOptions = field(default_factory=LoadOptions)
    embedding: bool = False
    reranking: bool = False
    url: str = ""
    api_key: str = field(default="", repr=False)
    model: str = ""


@dataclass(frozen=True, slots=True)
class NodeHandle:
    """A node that serves. `address` is `unix://PATH` or a URL; `pid` 0 and `log_path` "" where they are not known here.

    `slots`, `ctx` (tokens per slot), `model` and `features` are what the node itself says; `sandbox` what the kernel
    enforces on it; `backend` the CPU backend that was built here and that it computes with, "" for the engine's own.
    """

    name: str
    pid: int
    address: str
    machine: str
    slots: int
    ctx: int
    model: str = ""
    log_path: str = ""
    sandbox: tuple[str, ...] = ()
    backend: str = ""
    features: frozenset[str] = frozenset()
    api_key: str = field(default="", repr=False)

    @property
    def socket_path(self) -> str:
        """The Unix socket's path; "" for a node elsewhere."""
        return self.address.removeprefix(UNIX) if self.address.startswith(UNIX) else ""


UNNAMED = "default"
"""What the model of a server is called that does not name one."""

TOKEN_IDS = "token_ids"  # noqa: S105 - no secret
"""Feature: takes a prompt as token ids and gives ids with the text, so that another such node can continue."""
TEMPLATE = "template"
"""Feature: applies its chat template on its own (`/apply-template`)."""
SLOT_FILES = "slot_files"
"""Feature: saves a slot's state to a file and restores it (`/slots/N?action=save`)."""
EMBEDDING = "embedding"
"""Feature: gives embeddings."""
RERANKING = "reranking"
"""Feature: ranks texts by how well they answer a question."""
GENERATE = "generate"
"""Feature: gives answers."""


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

        Raises: `BadModel` with llama.cpp's own last words, `Unreachable`, `Refused`, `TimedOut`, `LlamboError` where no
        process can be made.
        """
        ...

    async def room_for(self, request: NodeRequest) -> int | None:
        """How many more nodes like `request` there is memory for now; None where that cannot be told."""
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
